"""Plain modules: bit-equal to eval mode, no trace of fxsparse, smaller where channels are dead."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import fxsparse as fxs
from tests.transformer_models import Transformer

INPUT = (torch.randn(2, 3, 32, 32),)


def _model(name: str = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    with torch.no_grad():
        for name_, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name_.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.2)
            elif name_.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize(
    "policy",
    [
        fxs.SWAT(weight_sparsity=0.9),
        fxs.SWAT(weight_sparsity=0.7, structure="kernel"),
        fxs.RigL(sparsity=0.8, end=100),
        fxs.Policy(fxs.StaticMask(sparsity=0.8), fxs.SWAT(weight_sparsity=0.0, activation_sparsity=0.5)),
    ],
)
def test_outputs_are_those_of_eval_mode_bit_for_bit(policy: Any) -> None:
    model = _model()
    compiled = fxs.compile(model, policy, INPUT)
    plain = compiled.finalize()
    assert type(plain) is type(model)
    assert not plain.training
    assert not any("fxsparse" in name for name in plain.state_dict())
    assert not any("fxsparse" in type(module).__module__ or "forward" in module.__dict__ for module in plain.modules())
    with torch.no_grad():
        assert torch.equal(plain(*INPUT), compiled.eval()(*INPUT))
        assert torch.equal(copy.deepcopy(plain)(*INPUT), plain(*INPUT))
        assert torch.equal(pickle.loads(pickle.dumps(plain))(*INPUT), plain(*INPUT))
    own = {tensor.data_ptr() for tensor in [*plain.parameters(), *plain.buffers()] if tensor.numel()}
    assert not own & {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()] if tensor.numel()}


def test_tied_word_vectors_stay_dense_for_the_table_and_sparse_for_the_head() -> None:
    model = Transformer(60, 24, 32, 4, 2, 0.0, causal=True, fused=True, tied=True)
    words = torch.arange(8).reshape(1, -1)
    for policy, same in ((fxs.SWAT(weight_sparsity=0.9), False), (fxs.StaticMask(sparsity=0.9), True)):
        compiled = fxs.compile(model, policy, (words,)).eval()
        plain = compiled.finalize()
        assert (plain.get_parameter("words.weight") is plain.get_parameter("head.weight")) is same
        with torch.no_grad():
            assert torch.equal(plain(words), compiled(words))


def test_a_weight_read_sparse_and_dense_under_one_name_is_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + self.layer.weight.abs().sum()

    compiled = fxs.compile(Both(), fxs.SWAT(weight_sparsity=0.5, dense_first=False), (torch.randn(2, 8),))
    with pytest.raises(fxs.ExportError, match=r"'layer.weight' is sparse where its contraction reads it and dense for node"):
        compiled.finalize()


def test_linear_weights_as_sparse_tensors() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    compiled = fxs.compile(model, fxs.SWAT(weight_sparsity=0.9), (torch.randn(4, 16),)).eval()
    plain = compiled.finalize(weights="csr")
    assert plain.get_parameter("2.weight").layout is torch.sparse_csr
    x = torch.randn(4, 16)
    with torch.no_grad():
        assert torch.allclose(plain(x), compiled(x), atol=1e-6)
    with pytest.raises(fxs.ExportError, match="expected one of 'dense', 'csr', 'semi_structured'"):
        compiled.finalize(weights="coo")
    with pytest.raises(fxs.ExportError, match=r"torch does not run that for '2.weight' \(8x32, torch.float32, cpu\)"):
        compiled.finalize(weights="semi_structured")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_dead_filters_are_removed_without_changing_outputs(name: str) -> None:
    compiled = fxs.compile(_model(name), fxs.SWAT(weight_sparsity=0.5, structure="filter"), INPUT).eval()
    plain, compact = compiled.finalize(), compiled.finalize(compact=True)
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in (plain, compact)]
    assert sizes[1] < 0.6 * sizes[0]
    for batch in (1, 3):
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            wanted, found = compiled(x), compact(x)
        assert float((wanted - found).abs().max() / wanted.abs().max()) < 1e-5


class Chain(nn.Module):
    """A padded convolution behind a dead filter whose bias makes it a constant."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(torch.relu(self.first(x)))
        return out


@pytest.mark.parametrize(("padding", "left"), [(0, 2), (1, 3)])
def test_constants_move_to_the_bias_or_to_one_channel_that_speaks_for_them(padding: int, left: int) -> None:
    torch.manual_seed(0)
    model = Chain(padding)
    with torch.no_grad():
        model.first.weight[:4] = 0
        model.first.bias[:4] = torch.tensor([0.5, 1.5, -1.0, 0.25])  # the third one is 0 behind the ReLU
    x = torch.randn(2, 3, 9, 9)
    compact = fxs.compile(model, None, (x,)).finalize(compact=True)
    assert compact.get_parameter("first.weight").shape[0] == left
    assert compact.get_parameter("second.weight").shape[1] == left
    with torch.no_grad():
        assert torch.allclose(compact(x), model(x), atol=1e-5)


def test_what_the_output_or_python_depends_on_stays() -> None:
    class Named(Chain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x).view(x.shape[0], 6, -1)

    model = Named(0)
    with torch.no_grad():
        model.first.weight[:4] = 0
    compact = fxs.compile(model, None, (torch.randn(2, 3, 9, 9),)).finalize(compact=True)
    assert compact.get_parameter("first.weight").shape[0] == 6
