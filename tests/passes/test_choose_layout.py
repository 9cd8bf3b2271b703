"""The layout pass: where regions reach, what stands at their borders, and that a model computes what it did."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxsparse as fxs
from fxsparse.digits import SmallResNet
from fxsparse.passes.kernels.library import library
from fxsparse.passes.layout.functions import LEAST_SAMPLES, concatenate, enter, leave, swap_samples
from fxsparse.passes.layout.rates import Product, Rates, best
from fxsparse.passes.ops import OPS
from fxsparse.passes.ops.codes.layout import is_innermost

pytestmark = pytest.mark.skipif(library() is None, reason="the native kernels were not built")

BATCH = 20
X = torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SWAT, MASK, GROWING = fxs.SWAT(weight_sparsity=0.7), fxs.StaticMask(sparsity=0.7), fxs.RigL(sparsity=0.7, end=100, interval=2)


class Net(nn.Module):
    """A stem that stays dense, a residual block, a concatenation, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv1, self.norm1 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.pool, self.average, self.fc = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm0(self.stem(x)))
        y = torch.relu(self.norm1(self.conv1(x)))
        z = torch.relu(self.norm2(self.conv2(y)) + y)
        out: Tensor = self.fc(self.average(self.pool(torch.cat([z, y], 1))).flatten(1))
        return out


def made(policy: Any, backend: str, net: nn.Module | None = None) -> fxs.CompiledModel:
    torch.manual_seed(1)
    return fxs.compile(copy.deepcopy(net) if net is not None else Net(), policy, (X,), backend=backend)


def targets(compiled: fxs.CompiledModel) -> list[Any]:
    return [node.target for node in compiled.graphs[""].graph.nodes]


def named(compiled: fxs.CompiledModel, target: Any) -> list[fx.Node]:
    return [node for node in compiled.graphs[""].graph.nodes if node.target is target]


def train(owner: fxs.CompiledModel, call: Callable[[Tensor], Tensor] | None = None, x: Tensor = X, steps: int = 3) -> list[Tensor]:
    """Losses and final parameters."""
    optimizer = torch.optim.SGD(owner.parameters(), lr=0.05, momentum=0.9)
    owner.attach(optimizer)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (owner if call is None else call)(x).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return [*found, *(p.detach().clone() for p in owner.parameters()), *(b.clone().float() for _, b in owner._root.named_buffers())]


def same(first: list[Tensor], second: list[Tensor], of: float = 1e-3) -> bool:
    return all(torch.allclose(a, b, rtol=of, atol=of) for a, b in zip(first, second, strict=True))


# Structure


@pytest.mark.parametrize("policy", [SWAT, MASK], ids=["swat", "mask"])
def test_one_region_with_one_entrance_and_one_exit(policy: Any) -> None:
    compiled = made(policy, "native")
    found = targets(compiled)
    [entrance], [out] = named(compiled, enter), named(compiled, leave)
    assert entrance.args[0].target == ("stem" if policy is SWAT else "x")  # type: ignore[union-attr]
    assert [user.target for user in out.users] == ["flatten"]
    assert found.count(OPS.innermost_norm.default) == 3
    assert concatenate in found
    assert OPS.innermost_max_pool.default in found
    assert found.count(swap_samples) == 2
    assert not any(target in found for target in (torch.relu, "norm0", "norm1", "norm2", "pool", torch.cat))


def test_a_norm_takes_the_sum_and_the_relu_behind_it() -> None:
    norms = named(made(SWAT, "native"), OPS.innermost_norm.default)
    assert [node.args[1] is not None for node in norms] == [False, False, True]
    assert all(node.args[-1] is True for node in norms)


def test_swat_packs_in_tiles_for_the_strides_of_its_readers() -> None:
    compiled = made(SWAT, "native")
    schemes = [node.args[4] for node in named(compiled, OPS.pack_sparse.default)]
    assert schemes[:2] == ["tiles:2:2:bitmap", "tiles:1:1:bitmap"]
    assert all(node.args[-1] == "fiw" for node in named(compiled, OPS.swat_convolution.default))


def test_tensors_are_batch_innermost_inside_and_nowhere_else() -> None:
    compiled = made(MASK, "native")
    compiled.needs_no_attachment()
    orders: dict[str, bool] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            out = super().run_node(n)
            if isinstance(out, Tensor) and out.dim() == 4:
                orders[n.name] = is_innermost(out)
            return out

    Watch(compiled.graphs[""]).run(X)
    inside = [name for name in orders if "innermost" in name or "convolution" in name or "enter" in name or name.startswith("getitem")]
    assert len(inside) > 5
    assert all(orders[name] for name in inside)
    assert not any(innermost for name, innermost in orders.items() if name in ("x", "leave"))


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_a_model_without_sparse_contractions_is_left_as_it_is(backend: str) -> None:
    neutral = made(None, backend)
    assert enter not in targets(neutral)
    torch.manual_seed(1)
    assert torch.equal(neutral(X), Net()(X))


def test_the_reference_backend_changes_no_order() -> None:
    assert enter not in targets(made(SWAT, "reference"))


class InPlace(nn.Module):
    """Overwrites what it gets from outside of the region, and reads that again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = F.relu_(a)
        out: Tensor = self.conv(b)
        return out.sum((2, 3)) + a.sum((2, 3))


def test_what_overwrites_a_tensor_from_outside_stays_outside() -> None:
    net = InPlace()
    found = [made(SWAT, backend, net) for backend in ("reference", "native")]
    assert F.relu_ in targets(found[1])
    assert same([found[0](X)], [found[1](X)])


# What pays


def product(**changes: Any) -> Product:
    given = {
        "elements": 10**5, "macs": 10**9, "samples": 16, "x_bytes": 10**6, "y_bytes": 10**6, "groups": 1, "weight": 0.1, "activation": 0.1,
        "masked": False, "needs_x": True, **changes,
    }  # fmt: skip
    return Product(**given)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "fiw"),
        ({"needs_x": False}, "fw"),
        ({"activation": 1.0}, "fi"),
        ({"weight": 1.0}, "w"),
        ({"weight": 1.0, "activation": 1.0}, ""),
        ({"samples": 1}, ""),
        ({"macs": 10**4, "x_bytes": 10, "y_bytes": 10}, ""),
        ({"masked": True, "activation": 1.0}, "fiw"),
        ({"masked": True, "activation": 1.0, "weight": 0.9}, ""),
    ],
)
def test_each_product_is_native_where_that_is_faster(changes: dict[str, Any], expected: str) -> None:
    assert best(product(**changes), Rates()) == expected


def test_auto_leaves_small_convolutions_alone_and_takes_large_ones() -> None:
    assert enter not in targets(fxs.compile(Net(), fxs.SWAT(weight_sparsity=0.9), (X[:, :, :6, :6],)))
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    compiled = fxs.compile(net, fxs.SWAT(weight_sparsity=0.9), (torch.randn(16, 3, 32, 32),))
    assert enter in targets(compiled)
    rows = {row.site: row.backend for row in compiled.report.sites}
    assert rows == {"0.weight": "PyTorch", **dict.fromkeys(["1.weight", "3.weight"], "native kernels for forward, grad-input, grad-weight")}


# Numbers and survival


@pytest.mark.parametrize("policy", [SWAT, MASK, GROWING], ids=["swat", "mask", "growing"])
@pytest.mark.parametrize("how", ["itself", "deepcopy", "pickle", "compile"])
def test_steps_are_those_of_the_reference(policy: Any, how: str) -> None:
    compiled, reference = made(policy, "native"), made(policy, "reference")
    assert compiled.state_dict().keys() == reference.state_dict().keys()
    if how == "pickle":
        compiled = pickle.loads(pickle.dumps(compiled))
    elif how == "deepcopy":
        compiled = copy.deepcopy(compiled)
    call = torch.compile(compiled, fullgraph=True, backend="aot_eager") if how == "compile" else compiled
    assert same(train(compiled, call), train(reference))
    compiled.eval(), reference.eval()
    assert same([compiled(X)], [reference(X)])


@pytest.mark.parametrize("samples", [1, LEAST_SAMPLES - 1, LEAST_SAMPLES, 17])
def test_other_batch_sizes(samples: int) -> None:
    compiled, reference = made(SWAT, "native"), made(SWAT, "reference")
    for model in (compiled, reference):
        model.eval()
    assert same([compiled(X[:samples])], [reference(X[:samples])], 1e-5)


def test_autocast_is_left_to_pytorch() -> None:
    compiled, reference = made(SWAT, "native"), made(SWAT, "reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [model(X) for model in (compiled, reference)]
    assert torch.equal(*found)


def test_the_state_of_one_backend_continues_on_another() -> None:
    first = made(SWAT, "native")
    train(first)
    second = made(SWAT, "reference")
    second.load_state_dict(first.state_dict())
    first.eval(), second.eval()
    assert same([first(X)], [second(X)], 1e-5)


def test_costs_are_the_same() -> None:
    costs = [made(SWAT, backend).cost() for backend in ("reference", "native")]
    for part in ("forward", "grad_input", "grad_weight"):
        assert getattr(costs[0].total, part).macs == getattr(costs[1].total, part).macs


def test_a_contraction_that_stays_outside_keeps_what_it_multiplies() -> None:
    """Under ERK a small residual network has convolutions that read a region's tensors from outside."""
    torch.manual_seed(0)
    model, x = SmallResNet(), torch.randn(32, 1, 8, 8)
    gradients = []
    for backend in ("auto", "reference"):
        compiled = fxs.compile(copy.deepcopy(model), "swat-erk-90", (x,), backend=backend)
        compiled(x).square().mean().backward()
        gradients.append([p.grad for p in compiled.parameters()])
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
