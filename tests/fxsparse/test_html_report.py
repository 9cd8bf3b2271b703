"""What goes into the HTML page, and what is refused before it is made."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxsparse as fxs
from fxsparse.html_report.compact import compact_rows
from fxsparse.html_report.document import document
from fxsparse.html_report.graph_view import node_rows
from fxsparse.passes.meta import read


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.relu(self.norm(self.conv(x)))


class Keeps(nn.Module):
    """Keeps its Python, and calls a child that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x) if x.sum() > 0 else self.block(-x)


class Net(nn.Module):
    def __init__(self, middle: type[nn.Module] = Block) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(Block(), middle())
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


X = (torch.randn(2, 3, 8, 8),)
POLICIES = {
    "none": None,
    "swat": fxs.Policy(fxs.SWAT(weight_sparsity=0.5)),
    "blpa": fxs.Policy(fxs.BLPA(bits=4)),
    "both": fxs.Policy(fxs.SWAT(weight_sparsity=0.5), fxs.BLPA(bits=2)),
    "saved": fxs.Policy(fxs.SavedActivations(bits=4)),
    "granet": fxs.Policy(fxs.GraNet(initial_sparsity=0.5, final_sparsity=0.9, begin=0, end=10, total_steps=20, interval=2)),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("middle", [Block, Keeps])
def test_every_priced_node_has_one_row(policy: str, middle: type[nn.Module]) -> None:
    compiled = fxs.compile(Net(middle), POLICIES[policy], X)
    rows = node_rows(compiled)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {node.name for node in compiled.cost().nodes} <= set(names)
    known = set(names)
    for row in rows:
        assert set(row.inputs) <= known
        known_before = names[: names.index(row.name)]
        assert set(row.inputs) <= set(known_before), "a row reads only what came before"
    assert {row.kind for row in rows} >= {"placeholder", "output"}


@pytest.mark.parametrize("root", [Keeps, Net])
def test_a_root_that_keeps_its_python_has_rows(root: type[nn.Module]) -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net() if root is Net else Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x if x.sum() > 0 else -x)

    compiled = fxs.compile(Root(), None, (torch.randn(2, 3 if root is Net else 4, 8, 8),))
    assert "" not in compiled.graphs
    assert {node.name for node in compiled.cost().nodes} <= {row.name for row in node_rows(compiled)}


def test_nodes_say_which_line_made_them_and_which_pass() -> None:
    compiled = fxs.compile(Net(), POLICIES["both"], X)
    rows = node_rows(compiled)
    contraction = next(row for row in rows if row.site == "blocks.1.conv.weight" and row.role == "contraction")
    assert contraction.module.startswith("blocks.1")
    assert contraction.made_by
    assert contraction.line.endswith("return x + self.relu(self.norm(self.conv(x)))")
    assert contraction.line.rpartition(".py:")[0].endswith("test_html_report")
    assert not contraction.line.startswith("/"), "the folders of the machine are nobody's business"
    assert contraction.technique.startswith("SWAT")
    kept = [row for row in rows if row.made_by == "compress_saved" and row.bits]
    assert {row.bits for row in kept} <= {1, 2}
    plain = fxs.compile(Net(), None, X)
    assert not [row for row in node_rows(plain) if row.made_by or row.technique]
    stem = next(node for node in plain.graphs[""].graph.nodes if str(node.target) == "stem")
    assert read(stem)["line"].startswith(f"{__file__}:")
    assert read(stem)["line"].endswith("return self.fc(self.blocks(self.stem(x)).mean((2, 3)))")


def test_lines_survive_a_copy(tmp_path: Path) -> None:
    compiled = fxs.compile(Net(), POLICIES["swat"], X)
    torch.save(compiled, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert [(row.line, row.module) for row in node_rows(again)] == [(row.line, row.module) for row in node_rows(compiled)]


def test_a_model_of_torch_s_own_modules_has_no_line() -> None:
    compiled = fxs.compile(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), None, (torch.randn(2, 3),))
    assert not [row.line for row in node_rows(compiled) if row.line]


def test_before_is_the_dense_model(tmp_path: Path) -> None:
    model = Net()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compiled = fxs.compile(model, POLICIES["both"], X)
    data = document(compiled, accelerator="eyeriss")
    assert data["views"]["before"]["cost"]["total"] == fxs.estimate(Net(), X, "eyeriss").to_dict()["total"]
    assert [row["name"] for row in data["compared"]] == ["dense"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    compiled.train()(*X).sum().backward()  # the compiled model is as it was


def test_without_changes_there_is_no_before() -> None:
    data = document(fxs.compile(Net(), None, X))
    assert list(data["views"]) == ["after"]
    assert data["without_before"] == "no pass changed a graph"


def test_an_evaluated_model_and_one_of_other_dtypes(tmp_path: Path) -> None:
    compiled = fxs.compile(Net().bfloat16().eval(), POLICIES["swat"], (X[0].bfloat16(),))
    compiled.save_html(tmp_path / "page.html", "h100-sxm")
    assert (tmp_path / "page.html").stat().st_size > 100_000


def test_columns_hold_rows() -> None:
    rows = [{"a": 1, "b": "x", "c": {"d": 1.5}}, {"a": None, "b": "x", "c": {"d": 2}}]
    assert compact_rows(rows) == {
        "length": 2,
        "columns": {"a": [1, None], "b": {"words": ["x"], "at": [0, 0]}, "c": {"rows": {"length": 2, "columns": {"d": [1.5, 2]}}}},
    }
    assert compact_rows([]) == {"length": 0, "columns": {}}


def test_the_page_asks_nothing_of_a_network(tmp_path: Path) -> None:
    compiled = fxs.compile(Net(), POLICIES["swat"], X)
    compiled.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page
    assert "sourceMappingURL" not in page
    for part in ("<script src", '<link rel="stylesheet', "@import", "url(http"):
        assert part not in page
    data = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert "<" not in data
    assert json.loads(data)["model"] == "Net"
    for licence in ("Mike Bostock", "Observable, Inc.", "Chris Pettitt"):
        assert licence in page


@pytest.mark.parametrize(
    ("path", "says"),
    [("missing/page.html", "lies in a folder that does not exist"), ("", "is a folder")],
)
def test_an_unwritable_path_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, says: str) -> None:
    compiled = fxs.compile(Net(), None, X)
    monkeypatch.setattr("fxsparse.html_report.page.document", lambda *_, **__: pytest.fail("it worked first"))
    with pytest.raises(fxs.FxSparseError, match=says):
        compiled.save_html(tmp_path / path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = fxs.compile(Net(), None, X)
    target = tmp_path / "page.html"
    target.write_text("old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compiled.save_html(target)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


def test_without_jinja2_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = fxs.compile(Net(), None, X)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(fxs.FxSparseError, match=r"pip install 'fxsparse\[report\]'"):
        compiled.save_html(tmp_path / "page.html")
    assert not os.listdir(tmp_path)
    shown = compiled._repr_html_()
    assert shown.startswith("<pre>")
    assert "fxsparse[report]" in shown


def test_without_example_inputs_there_is_nothing_to_show(tmp_path: Path) -> None:
    compiled = fxs.compile(Net(), None)
    with pytest.raises(fxs.CostError, match="example_inputs"):
        compiled.save_html(tmp_path / "page.html")
    assert not os.listdir(tmp_path)
    assert compiled._repr_html_().startswith("<pre>")


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    compiled = fxs.compile(Net(), None, X)
    with pytest.raises(fxs.CostError, match="expected a compiled model, a CostReport"):
        compiled.save_html(tmp_path / "page.html", compare={"dense": 3})  # type: ignore[dict-item]
    with pytest.raises(fxs.CostError, match="different batch_size"):
        compiled.save_html(tmp_path / "page.html", compare=compiled.cost(batch_size=7))
    with pytest.raises(fxs.CostError, match="did you mean 'eyeriss'"):
        compiled.save_html(tmp_path / "page.html", "eyerys")


def test_comparisons_with_reports_and_models(tmp_path: Path) -> None:
    compiled = fxs.compile(Net(), POLICIES["swat"], X)
    other = fxs.compile(Net(), POLICIES["blpa"], X)
    data = document(compiled, compare={"blpa": other, "a report": other.cost()})
    assert [row["name"] for row in data["compared"]] == ["dense", "blpa", "a report"]
    blpa, report = data["compared"][1:]
    assert blpa["total"] == report["total"]
    assert blpa["densities"]
    assert "densities" not in report
    assert document(compiled, compare=other)["compared"][-1]["name"] == "BLPA"


def test_the_vendored_libraries_are_what_was_released() -> None:
    """SHA-256 of the files of d3 7.9.2, @observablehq/plot 0.6.17 and @dagrejs/dagre 3.1.3 in the npm registry."""
    import hashlib

    folder = Path(fxs.__file__).parent / "html_report" / "vendor"
    wanted = {
        "d3.min.js": "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1",
        "dagre.min.js": "54a503e346f93ca0bb10abe7999587e037262935687aca45eb4e4b0f64bbb578",
        "plot.umd.min.js": "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
    }
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.js")} == wanted
    assert len(list(folder.glob("*.LICENSE.txt"))) == len(wanted)
