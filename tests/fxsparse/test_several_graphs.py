"""Operations on a whole model whose graphs lie between parts that keep their Python: all of them work on the union of the graphs."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

import fxsparse as fxs

from ..saved_zoo import kept_bytes

X = torch.randn(6, 12)
SITES = ["encoder.0.weight", "encoder.2.weight", "gate.mix.weight", "decoder.weight"]
PYTHON = {"", "gate"}
MACS = {"encoder.0.weight": 12 * 16, "encoder.2.weight": 16 * 16, "gate.mix.weight": 16 * 16, "decoder.weight": 16 * 5}


class Gate(nn.Module):
    """Computes its scale without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def scale(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x.abs().mean() + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) / self.scale(x)


class Frozen(nn.Module):
    """Two graphs, and Python around and between them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU())
        self.gate, self.decoder = Gate(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = x - x.mean()
        return self.decoder(self.gate(self.encoder(x)))


class Decides(Frozen):
    """Its Python asks for values, so that only real ones tell what shapes there are behind."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x if float(x.detach().sum()) < 1e9 else -x)
        return self.decoder(self.gate(y))


MODELS = [Frozen, Decides]
both = pytest.mark.parametrize("kind", MODELS)


def compiled(kind: type[nn.Module], policy: Any = None, accelerator: str | None = None) -> fxs.CompiledModel:
    torch.manual_seed(0)
    return fxs.compile(kind(), policy, (X,), accelerator=accelerator)


def steps(model: fxs.CompiledModel, count: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.attach(optimizer)
    for _ in range(count):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


@both
def test_the_report_names_every_site_and_every_part_that_keeps_its_python(kind: type[nn.Module]) -> None:
    model = compiled(kind, fxs.SWAT(weight_sparsity=0.5, dense_first=False))
    assert set(model.report.left) == PYTHON
    assert len(model.graphs) >= 3
    assert list(model.sites) == SITES
    assert {change.site for change in model.report.changes} == set(SITES)
    text = str(model.report)
    assert all(re.search(rf"^{name} +it |^{name} +float", text, re.M) for name in (r"\(root\)", "gate"))
    assert {row.site for row in model.report.sites} == set(SITES)


@both
def test_every_site_is_priced_by_the_shapes_that_python_gives_it(kind: type[nn.Module]) -> None:
    costs = {node.site: node for node in compiled(kind).cost(batch_size=7).nodes if node.forward.macs}
    assert list(costs) == SITES
    for site, macs in MACS.items():
        assert costs[site].forward.macs == 7 * macs, site
        assert costs[site].grad_weight.macs == 7 * macs, site
    on_a_machine = {node.site: node for node in compiled(kind, accelerator="eyeriss").cost("eyeriss").nodes if node.forward.macs}
    assert all((on_a_machine[site].forward.cycles or 0) > 0 for site in SITES)


@both
def test_masks_are_pruned_and_regrown_across_the_graphs(kind: type[nn.Module]) -> None:
    policy = fxs.GraNet(initial_sparsity=0.3, final_sparsity=0.75, begin=0, end=6, total_steps=10, interval=2)
    model = compiled(kind, policy)
    steps(model, 8)
    densities = {name: found["weight"] for name, found in model.sparsity().items()}
    masked = [densities[name] for name in model.masks]
    assert set(model.masks) >= {"encoder.2.weight", "gate.mix.weight"}
    kept, total = (sum(found[key] for found in masked) for key in ("kept", "total"))
    assert kept / total == pytest.approx(0.25, abs=0.02)
    with torch.no_grad():
        for name in model.masks:
            assert int(model.get_parameter(name).count_nonzero()) <= densities[name]["kept"], name  # what has just grown is zero


@both
def test_activations_are_kept_as_codes_in_every_graph(kind: type[nn.Module]) -> None:
    x = torch.randn(4096, 12)
    exact = compiled(kind)
    codes = compiled(kind, fxs.SavedActivations(bits=4))
    changed = {change.graph for change in codes.report.changes}
    assert {"encoder", "gate.mix"} <= changed, changed
    assert kept_bytes(codes, x) < 0.6 * kept_bytes(exact, x)
    assert codes.cost(batch_size=4096).saved_bytes < 0.6 * exact.cost(batch_size=4096).saved_bytes


@both
def test_the_page_shows_every_graph(kind: type[nn.Module], tmp_path: Path) -> None:
    compiled(kind, fxs.SWAT(weight_sparsity=0.5), "eyeriss").save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(name in page for name in (*SITES, *compiled(kind).graphs))


@both
def test_the_networkx_graph_is_the_union(kind: type[nn.Module]) -> None:
    model = compiled(kind, fxs.SWAT(weight_sparsity=0.5))
    network, report = model.to_networkx(), model.cost()
    assert nx.is_weakly_connected(network)
    assert {data["graph"] for _, data in network.nodes(data=True)} == {"", *model.graphs}
    assert {data["site"] for _, data in network.nodes(data=True) if data["site"]} == set(SITES)
    assert sum(number for _, number in network.nodes(data="macs")) == report.total.total.macs


def test_onnx_export_goes_through_the_model_s_own_forward(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = compiled(Frozen, fxs.SWAT(weight_sparsity=0.5, dense_first=False)).eval()
    model.export_onnx(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for samples in (6, 2):
        x = torch.randn(samples, 12)
        with torch.no_grad():
            expected = model(x)
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_onnx_export_of_python_that_asks_for_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fxs.ExportError, match="Decides"):
        compiled(Decides).eval().export_onnx(tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


@both
def test_a_copy_does_all_of_it_too(kind: type[nn.Module]) -> None:
    model = compiled(kind, fxs.Policy(fxs.SWAT(weight_sparsity=0.5), fxs.SavedActivations(bits=4)))
    again = copy.deepcopy(model)
    assert again.cost().total.total == model.cost().total.total
    assert set(again.to_networkx()) == set(model.to_networkx())
    assert dict(again.report.left) == dict(model.report.left)
