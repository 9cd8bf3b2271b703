"""Files that are written whole or not at all, read back, and refused with a reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx
import torch
from torch import nn
from typer.testing import CliRunner

import fxsparse as fxs
from fxsparse.cli import app
from fxsparse.onnx_export import write as writing
from fxsparse.onnx_export.export import export_onnx

from .onnx_reference import relative_error, run
from .test_onnx_export import INPUT, Net, _awake, _compiled

GRANET = fxs.GraNet(initial_sparsity=0.3, final_sparsity=0.9, begin=0, end=10, total_steps=12, interval=2)


def _trained() -> fxs.CompiledModel:
    compiled = _compiled(GRANET)
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1, momentum=0.9)
    compiled.attach(optimizer)
    torch.manual_seed(2)
    for _ in range(5):
        optimizer.zero_grad()
        compiled(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return compiled


def test_masks_weights_and_counters_come_back(tmp_path: Path) -> None:
    trained = _trained()
    trained.export_onnx(tmp_path / "net.onnx")
    torch.manual_seed(9)
    restored = fxs.from_onnx(tmp_path / "net.onnx", Net())
    assert restored.policy == trained.policy
    assert restored.sparsity() == trained.sparsity()
    wanted, found = trained.state_dict(), restored.state_dict()
    for name in wanted:
        if name.startswith("fxsparse.") and not name.endswith("_sum"):
            assert torch.equal(wanted[name], found[name]), name
    with torch.no_grad():
        assert torch.equal(restored.eval()(*INPUT), trained.eval()(*INPUT))
    fresh = Net()
    before = fresh.second.weight.detach().clone()
    assert fxs.from_onnx(tmp_path / "net.onnx", fresh, weights=False).sparsity() == trained.sparsity()
    assert torch.equal(fresh.second.weight, before)


def test_a_restored_model_trains_on(tmp_path: Path) -> None:
    _trained().export_onnx(tmp_path / "net.onnx")
    restored = fxs.from_onnx(tmp_path / "net.onnx", Net())
    optimizer = torch.optim.SGD(restored.parameters(), lr=0.1)
    restored.attach(optimizer)
    kept = sum(row["weight"]["kept"] for row in restored.sparsity().values())
    for _ in range(3):
        restored(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    assert sum(row["weight"]["kept"] for row in restored.sparsity().values()) < kept


def test_a_file_prints_the_live_report(tmp_path: Path) -> None:
    compiled = _compiled()
    compiled.export_onnx(tmp_path / "net.onnx")
    assert str(fxs.onnx_file(tmp_path / "net.onnx").report) == str(compiled.report)
    out = CliRunner().invoke(app, ["inspect", str(tmp_path / "net.onnx")]).stdout
    assert str(compiled.report).splitlines()[1] in out
    assert "second.weight  sparse" in out


def test_weights_beyond_the_limit_go_to_a_file_beside_it(tmp_path: Path) -> None:
    compiled = _compiled(fxs.SWAT(weight_sparsity=0.5)).eval()
    for _ in range(2):
        written = export_onnx(compiled, tmp_path / "net.onnx", limit=20_000)
        [beside] = [file for file in tmp_path.iterdir() if file.suffix == ".data"]
        assert written.size_bytes == beside.stat().st_size + (tmp_path / "net.onnx").stat().st_size
        onnx.checker.check_model(tmp_path / "net.onnx")
        assert relative_error(tmp_path / "net.onnx", compiled, INPUT) < 1e-4
        assert fxs.onnx_file(tmp_path / "net.onnx").sparsity()["second.weight"] == compiled.sparsity()["second.weight"]["weight"]


def test_a_crash_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = _compiled()
    compiled.export_onnx(tmp_path / "net.onnx")
    before = (tmp_path / "net.onnx").read_bytes()

    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    for limit in (2**30, 5_000):
        with pytest.raises(fxs.ExportError, match=r"net.onnx' cannot be written: No space left.*what was there is as it was"):
            export_onnx(compiled, tmp_path / "net.onnx", limit=limit, sparse=False)
        assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
        assert (tmp_path / "net.onnx").read_bytes() == before


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    compiled = _compiled()
    with pytest.raises(fxs.ExportError, match="is a folder"):
        compiled.export_onnx(tmp_path)
    with pytest.raises(fxs.ExportError, match="folder that does not exist"):
        compiled.export_onnx(tmp_path / "no" / "net.onnx")


def test_arguments_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(fxs.ExportError, match="sparse is 'csr'; expected True, False, or one of 'constant', 'initializer'"):
        _compiled().export_onnx(tmp_path / "net.onnx", sparse="csr")
    with pytest.raises(fxs.ExportError, match="compiled without example inputs"):
        fxs.compile(Net()).export_onnx(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


class Eigen(Net):
    """Calls an operator that ONNX has not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(self.second(self.first(x)).mean((2, 3)))
        return torch.linalg.eigvalsh(x[:, :, None] * x[:, None])


class Branch(Net):
    """Branches on its data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x))
        return x if x.sum() > 0 else -x


def test_an_operator_that_onnx_lacks_is_named_with_its_line(tmp_path: Path) -> None:
    compiled = fxs.compile(Eigen(), fxs.SWAT(weight_sparsity=0.5), INPUT)
    with pytest.raises(fxs.ExportError, match=r"aten._linalg_eigh.default \(node '\w+'\) has no.*test_onnx_files.py:\d+: return torch.lin"):
        compiled.export_onnx(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_branch_on_data_is_refused_with_its_line(tmp_path: Path) -> None:
    compiled = fxs.compile(Branch(), fxs.SWAT(weight_sparsity=0.5), INPUT)
    with pytest.raises(fxs.ExportError, match=r"Branch cannot be exported.*test_onnx_files.py:\d+: return x if x.sum"):
        compiled.export_onnx(tmp_path / "net.onnx")


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else find(name, *rest))
    with pytest.raises(fxs.ExportError, match=r"onnxscript not installed; .*pip install 'fxsparse\[onnx\]'"):
        _compiled().export_onnx(tmp_path / "net.onnx")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(fxs.ExportError, match="there is no file"):
        fxs.from_onnx(tmp_path / "net.onnx", Net())
    (tmp_path / "net.onnx").write_bytes(b"not a model")
    with pytest.raises(fxs.ExportError, match="cannot be read as an ONNX model"):
        fxs.from_onnx(tmp_path / "net.onnx", Net())
    _compiled().export_onnx(tmp_path / "net.onnx", metadata=False)
    with pytest.raises(fxs.ExportError, match="says nothing of fxsparse"):
        fxs.from_onnx(tmp_path / "net.onnx", Net())
    _compiled().export_onnx(tmp_path / "net.onnx")
    with pytest.raises(fxs.ExportError, match=r"has the weight 'first.weight', and Linear has none"):
        fxs.from_onnx(tmp_path / "net.onnx", nn.Linear(2, 2))
    other = Net()
    other.second = nn.Conv2d(16, 8, 3)
    with pytest.raises(fxs.ExportError, match=r"'second.weight' has the shape \(32, 16, 3, 3\)"):
        fxs.from_onnx(tmp_path / "net.onnx", other)


def test_any_batch_size_runs_after_an_example_of_one(tmp_path: Path) -> None:
    compiled = fxs.compile(_awake(Net()), fxs.SWAT(weight_sparsity=0.5), (torch.randn(1, 3, 8, 8),))
    assert compiled.export_onnx(tmp_path / "net.onnx").dynamic_batch
    assert run(tmp_path / "net.onnx", (torch.randn(7, 3, 8, 8),))[0].shape == (7, 10)
