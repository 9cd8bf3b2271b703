"""The choice of kernels for linear layers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsparse as fxs
from fxsparse.passes.kernels.library import library
from fxsparse.passes.ops import OPS

pytestmark = pytest.mark.skipif(library() is None, reason="the native kernels were not built")

X = torch.randn(24, 6, 32, generator=torch.Generator().manual_seed(0))
SWAT, MASK, GROWING = fxs.SWAT(weight_sparsity=0.7), fxs.StaticMask(sparsity=0.7), fxs.RigL(sparsity=0.7, end=100, interval=2)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.key, self.value, self.last = nn.Linear(32, 40), nn.Linear(40, 48), nn.Linear(40, 48, bias=False), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        out: Tensor = self.last(torch.relu(self.key(x)) * self.value(x))
        return out


def made(policy: Any, backend: str) -> fxs.CompiledModel:
    torch.manual_seed(1)
    return fxs.compile(Mlp(), policy, (X,), backend=backend)


def letters(compiled: fxs.CompiledModel, target: Any) -> list[Any]:
    return [node.args[-1] for node in compiled.graphs[""].graph.nodes if node.target is target]


def train(owner: fxs.CompiledModel, call: Any = None) -> list[Tensor]:
    optimizer = torch.optim.SGD(owner.parameters(), lr=0.05, momentum=0.9)
    owner.attach(optimizer)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (owner if call is None else call)(X).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(p.detach() for p in owner.parameters())]


def test_every_sparse_layer_gets_its_letters() -> None:
    assert letters(made(SWAT, "native"), OPS.swat_linear.default) == ["fiw"] * 3
    assert letters(made(MASK, "native"), OPS.masked_linear.default) == ["fw", *["fiw"] * 3]
    assert letters(made(SWAT, "reference"), OPS.swat_linear.default) == [""] * 3
    assert letters(made(SWAT, "auto"), OPS.swat_linear.default) == [""] * 3  # too small to pay


def test_auto_takes_large_layers_and_says_so() -> None:
    net = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256))
    compiled = fxs.compile(net, fxs.StaticMask(sparsity=0.95), (torch.randn(2048, 256),))
    assert [row.backend for row in compiled.report.sites] == [
        "native kernels for forward, grad-weight", "native kernels for forward, grad-input, grad-weight",
    ]  # fmt: skip


@pytest.mark.parametrize("policy", [SWAT, MASK, GROWING], ids=["swat", "mask", "growing"])
@pytest.mark.parametrize("how", ["itself", "deepcopy", "pickle", "compile"])
def test_steps_are_those_of_the_reference(policy: Any, how: str) -> None:
    compiled, reference = made(policy, "native"), made(policy, "reference")
    compiled = pickle.loads(pickle.dumps(compiled)) if how == "pickle" else copy.deepcopy(compiled) if how == "deepcopy" else compiled
    call = torch.compile(compiled, fullgraph=True, backend="aot_eager") if how == "compile" else None
    for found, expected in zip(train(compiled, call), train(reference), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(32,), (1, 32), (3, 32), (9, 32), (2, 5, 32), (0, 32)])
def test_other_shapes(shape: tuple[int, ...]) -> None:
    compiled, reference = made(MASK, "native"), made(MASK, "reference")
    x = torch.randn(*shape)
    torch.testing.assert_close(compiled.eval()(x), reference.eval()(x), rtol=1e-4, atol=1e-5)


def test_autocast_is_left_to_pytorch() -> None:
    compiled, reference = made(SWAT, "native"), made(SWAT, "reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(X), reference(X))


@pytest.mark.parametrize("native", ["fi", "fiw"])
def test_opcheck(native: str) -> None:
    x, w = torch.randn(9, 6, requires_grad=True), torch.randn(5, 6)
    mask = w > 0
    w_hat = (w * mask).requires_grad_()
    torch.library.opcheck(OPS.masked_linear.default, (x, w_hat, mask, torch.tensor(False), torch.zeros(5, requires_grad=True), native))
    torch.library.opcheck(
        OPS.swat_linear.default, (x, x.detach(), w_hat, None, "exact", None, None, None, None, [], 1, native.replace("w", ""))
    )
