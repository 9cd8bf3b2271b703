"""Batch norms folded into the convolutions before them: the same numbers, in a file that is never larger than torch's own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx
import torch
import torchvision
from torch import Tensor, nn

import fxsparse as fxs

from .onnx_reference import check, relative_error


class Norms(nn.Module):
    """Convolutions of each kind before a batch norm, and batch norms that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.plain_norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-3)
        self.grouped, self.grouped_norm = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8, affine=False)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.seen_twice, self.seen_twice_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.called_twice, self.first_norm, self.second_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.before = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.plain_norm(self.plain(self.before(x))))
        x = torch.relu(self.up_norm(self.up(self.grouped_norm(self.grouped(x)))))
        y = self.seen_twice(x)
        return self.second_norm(self.called_twice(self.first_norm(self.called_twice(y + self.seen_twice_norm(y)))))


def awake(model: nn.Module) -> nn.Module:
    """With batch norms as after training."""
    torch.manual_seed(1)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            if part.affine:
                nn.init.normal_(part.weight, 1, 0.2)
                nn.init.normal_(part.bias)
    return model


X = (torch.randn(2, 4, 6, 6),)
POLICIES = {
    "dense": fxs.SWAT(weight_sparsity=0.0, activation_sparsity=0.5),
    "half": fxs.StaticMask(sparsity=0.5),
    "sparse": fxs.SWAT(weight_sparsity=0.9, dense_first=False),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_outputs_and_sparsity_are_the_models(policy: str, tmp_path: Path) -> None:
    compiled = fxs.compile(awake(Norms()), POLICIES[policy], X).eval()
    folded = compiled.export_onnx(tmp_path / "folded.onnx", fold_norms=True)
    plain = compiled.export_onnx(tmp_path / "plain.onnx")
    assert (folded.folded, plain.folded) == (3, 0)
    left = [node for node in onnx.load(tmp_path / "folded.onnx").graph.node if node.op_type == "BatchNormalization"]
    assert len(left) == 4
    assert folded.size_bytes < plain.size_bytes
    check(tmp_path / "folded.onnx")
    assert relative_error(tmp_path / "folded.onnx", compiled, X) < 1e-5
    assert fxs.onnx_file(tmp_path / "folded.onnx").sparsity() == {name: row["weight"] for name, row in compiled.sparsity().items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.66, 0.68, 0.9])
@pytest.mark.parametrize("name", ["small", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_a_folded_file_is_never_larger_than_torchs_own(name: str, sparsity: float, tmp_path: Path) -> None:
    model = awake(Norms() if name == "small" else torchvision.models.get_model(name, weights=None)).eval()
    inputs = X if name == "small" else (torch.randn(2, 3, 224, 224),)
    program = torch.onnx.export(copy.deepcopy(model), inputs, dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert program is not None
    program.save(tmp_path / "torch.onnx")
    compiled = fxs.compile(model, fxs.SWAT(weight_sparsity=sparsity, activation_sparsity=0.5), inputs)
    written = compiled.export_onnx(tmp_path / "ours.onnx", fold_norms=True, metadata=name != "small")
    assert written.size_bytes <= (tmp_path / "torch.onnx").stat().st_size


def test_masks_come_back_from_a_folded_file_and_weights_are_refused(tmp_path: Path) -> None:
    compiled = fxs.compile(awake(Norms()), POLICIES["half"], X)
    compiled.export_onnx(tmp_path / "net.onnx", fold_norms=True)
    with pytest.raises(fxs.ExportError, match=r"net\.onnx.*folded in.*weights=False"):
        fxs.from_onnx(tmp_path / "net.onnx", Norms())
    restored = fxs.from_onnx(tmp_path / "net.onnx", Norms(), weights=False)
    for site in compiled.masks:
        assert torch.equal(*(model.get_buffer(f"fxsparse.sites.{site}.mask") for model in (compiled, restored)))


def test_shown_nodes_are_not_folded(tmp_path: Path) -> None:
    with pytest.raises(fxs.ExportError, match=r"keep_nodes.*fold_norms"):
        fxs.compile(Norms(), POLICIES["half"], X).export_onnx(tmp_path / "net.onnx", fold_norms=True, keep_nodes=True)
    assert not list(tmp_path.iterdir())
