"""What ONNX files cost: bytes against a dense file, time against torch's own export, speed without dead filters.

Run with ``-m benchmark -s``.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torchvision

import fxsparse as fxs

from ..transformer_models import gpt2_small_like
from .timing import interleaved, table

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]
INPUT = (torch.randn(1, 3, 224, 224),)


def _torch_export(model: torch.nn.Module, path: Path) -> int:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(model.eval(), (torch.randn(2, 3, 224, 224),), dynamo=True, verbose=False, dynamic_shapes=shapes)
    assert program is not None
    program.save(path)
    return path.stat().st_size


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("sparsity", "most"), [(0.5, 1.0), (0.9, 0.35), (0.95, 0.2)])
def test_bytes_of_resnet50_against_torchs_dense_export(sparsity: float, most: float, tmp_path: Path) -> None:
    model = torchvision.models.resnet50()
    dense = _torch_export(copy.deepcopy(model), tmp_path / "dense.onnx")
    found = fxs.compile(model, fxs.SWAT(weight_sparsity=sparsity), INPUT).export_onnx(tmp_path / "sparse.onnx").size_bytes
    print(f"\nResNet-50 at {100 * sparsity:g} %: {found:,} bytes, dense {dense:,}: {found / dense:.3f}x")
    assert found <= most * dense


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "swin_t"])
def test_time_of_an_export_against_torchs_own(name: str, tmp_path: Path) -> None:
    model = torchvision.models.get_model(name, weights=None)
    compiled = fxs.compile(copy.deepcopy(model), fxs.SWAT(weight_sparsity=0.9), INPUT)
    medians = interleaved(
        {
            "torch.onnx.export, dense": lambda: _torch_export(model, tmp_path / "dense.onnx"),
            "export_onnx, 90 % sparse": lambda: compiled.export_onnx(tmp_path / "sparse.onnx"),
        },
        rounds=3,
        warmup=1,
    )
    print("\n" + table(name, medians, "torch.onnx.export, dense"))
    assert medians["export_onnx, 90 % sparse"] < 1.3 * medians["torch.onnx.export, dense"]


@pytest.mark.filterwarnings("ignore")
def test_time_of_an_export_of_gpt2_against_torchs_own(tmp_path: Path) -> None:
    model, tokens = gpt2_small_like().eval(), torch.randint(0, 50257, (2, 64))
    compiled = fxs.compile(copy.deepcopy(model), "swat-u-90", (tokens,)).eval()
    shapes = ({0: torch.export.Dim.AUTO},)
    path = tmp_path / "dense.onnx"
    medians = interleaved(
        {
            "torch.onnx.export, dense": lambda: torch.onnx.export(
                model, (tokens,), path, dynamo=True, verbose=False, dynamic_shapes=shapes
            ),
            "export_onnx, 90 % sparse": lambda: compiled.export_onnx(tmp_path / "sparse.onnx"),
        },
        rounds=3,
        warmup=1,
    )
    print("\n" + table("GPT-2-small-like", medians, "torch.onnx.export, dense"))
    assert medians["export_onnx, 90 % sparse"] < 1.3 * medians["torch.onnx.export, dense"]


def test_resnet50_without_half_of_its_filters_in_onnx_runtime(tmp_path: Path) -> None:
    model = torchvision.models.resnet50()
    policy = fxs.SWAT(weight_sparsity=0.5, structure="filter", exclude=("fc",))
    compiled = fxs.compile(model, policy, INPUT)
    compiled.export_onnx(tmp_path / "dense.onnx", sparse=False)
    compiled.export_onnx(tmp_path / "compact.onnx", compact=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    x = torch.randn(4, 3, 224, 224).numpy()
    sessions = {
        name: ort.InferenceSession(tmp_path / f"{name}.onnx", options, providers=["CPUExecutionProvider"]) for name in ("dense", "compact")
    }
    medians = interleaved({name: lambda s=session: s.run(None, {"x": x}) for name, session in sessions.items()}, rounds=15, warmup=3)
    print("\n" + table("ResNet-50 with half of its filters dead, ONNX Runtime", medians, "dense"))
    assert medians["compact"] * 1.5 < medians["dense"]
