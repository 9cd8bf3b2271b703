"""Every optimizer of torch.optim trains masked weights, or is refused by name: nothing of a dropped weight survives in its state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import fxsparse as fxs
from fxsparse.optimizer_state import keeps_gradients, works_by_element

from .test_mask_survival import require_exact, step
from .test_survival import batches

SHAPE = (6, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 12, bias=False), nn.ReLU(), nn.Linear(12, 5, bias=False))


def make(technique: Any = None) -> fxs.CompiledModel:
    return fxs.compile(network(), technique or fxs.RigL(sparsity=0.7, end=1000, interval=2), (torch.randn(SHAPE),))


class Halving(Optimizer):
    """A user's optimizer with state of the weight's shape, which moves every element, masked or not, and writes to the gradient."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("trace", torch.zeros_like(p)).mul_(0.5).add_(p.grad.mul_(0.5))
                p.data.add_(state["trace"] + 0.01, alpha=-0.1)


class Secret(Optimizer):
    """Its state cannot be read."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["rows"] = torch.zeros(p.shape[0])


class MySGD(torch.optim.SGD):
    """A subclass that changes nothing."""


BUILD: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05),
    "SGD momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "SGD nesterov foreach": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, fused=True),
    "SGD subclass": lambda p: MySGD(p, 0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 3e-3, weight_decay=1e-2),
    "Adam amsgrad foreach": lambda p: torch.optim.Adam(p, 3e-3, amsgrad=True, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, 3e-3, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0.1),
    "AdamW fused amsgrad": lambda p: torch.optim.AdamW(p, 3e-3, fused=True, amsgrad=True),
    "AdamW maximize": lambda p: torch.optim.AdamW(p, 3e-3, maximize=True),
    "Adamax": lambda p: torch.optim.Adamax(p, 3e-3, weight_decay=1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, 3e-3, decoupled_weight_decay=True),
    "RAdam": lambda p: torch.optim.RAdam(p, 3e-3, weight_decay=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5, centered=True, weight_decay=1e-2),
    "RMSprop foreach": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5, centered=True, foreach=True),
    "Rprop": lambda p: torch.optim.Rprop(p, 1e-3),
    "Rprop foreach": lambda p: torch.optim.Rprop(p, 1e-3, foreach=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, initial_accumulator_value=0.1, weight_decay=1e-2),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, 1e-2, fused=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=1e-2),
    "Adadelta foreach": lambda p: torch.optim.Adadelta(p, foreach=True),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.05, t0=2, weight_decay=1e-2),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 1e-2, weight_decay=1e-2),
    "Muon": lambda p: torch.optim.Muon(p, 1e-2),
    "a user's": Halving,
}
FIRST_VALUES = {("Rprop", "step_size"): 1e-3, ("Rprop foreach", "step_size"): 1e-3, ("Adagrad", "sum"): 0.1}


@pytest.mark.parametrize("name", BUILD)
def test_masked_weights_and_their_state_stay_at_the_start(name: str) -> None:
    compiled = make()
    optimizer = BUILD[name](compiled.parameters())
    compiled.attach(optimizer)
    moved = set()
    for index, (x, y) in enumerate(batches(SHAPE, 9)):
        before = {site: compiled.get_buffer(f"fxsparse.sites.{site}.mask").clone() for site in compiled.masks}
        step(compiled, optimizer, x, y)
        for site in compiled.masks:
            mask, weight = compiled.get_buffer(f"fxsparse.sites.{site}.mask"), compiled.get_parameter(site)
            if not torch.equal(mask, before[site]):
                moved.add(index)
            assert not bool(weight.detach()[~mask].any()), site
            grown = mask & ~before[site]
            assert not bool(weight.detach()[grown].any()), "grown weights begin at zero"
            for key, value in optimizer.state[weight].items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    first = FIRST_VALUES.get((name, key), 0.0)
                    rest = 1e-8 if key == "exp_inf" else 0.0  # Adamax puts its eps there
                    assert bool(((value[~mask | grown] - first).abs() <= rest).all()), f"{key} of {site} after step {index + 1}"
    assert moved == {1, 3, 5, 7}
    for row in compiled.sparsity().values():
        assert row["weight"]["actual"] == row["weight"]["target"]


@pytest.mark.parametrize("name", [name for name in BUILD if name not in ("Adafactor", "Muon", "a user's", "AdamW maximize")])
def test_growth_reads_the_gradient_before_the_optimizer_writes_to_it(name: str) -> None:
    """Whatever the optimizer does, the first growth is by the plain gradient of the second batch."""
    compiled = make()
    optimizer = BUILD[name](compiled.parameters())
    compiled.attach(optimizer)
    (x, y), (x2, y2) = batches(SHAPE, 2)
    step(compiled, optimizer, x, y)
    dense = copy.deepcopy(compiled)
    dense.needs_no_attachment()
    F.cross_entropy(dense(x2), y2).backward()
    before = {site: compiled.get_buffer(f"fxsparse.sites.{site}.mask").clone() for site in compiled.masks}
    step(compiled, optimizer, x2, y2)
    for site in compiled.masks:
        mask, grad = compiled.get_buffer(f"fxsparse.sites.{site}.mask"), dense.get_parameter(site).grad
        assert grad is not None
        grown = mask & ~before[site]
        left = ~mask & ~before[site]
        if bool(grown.any()) and bool(left.any()):
            assert float(grad[grown].abs().min()) >= float(grad[left].abs().max()), site


def test_only_torchs_own_steps_are_taken_to_work_by_element() -> None:
    p = [nn.Parameter(torch.zeros(2, 2))]
    assert works_by_element(MySGD(p, 0.1))
    assert works_by_element(torch.optim.AdamW(p))
    for optimizer in (Halving(p), torch.optim.Adafactor(p), torch.optim.Muon(p)):
        assert not works_by_element(optimizer)
    nesterov = torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, foreach=True)
    assert not keeps_gradients(nesterov, nesterov.param_groups[0], p[0])
    plain = torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)
    assert keeps_gradients(plain, plain.param_groups[0], p[0])


@pytest.mark.parametrize("technique", [fxs.StaticMask(sparsity=0.7), fxs.RigL(sparsity=0.7, end=100)])
@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda m: torch.optim.LBFGS(m.parameters()), "LBFGS cannot train masked weights: it keeps the gradients of all parameters"),
        (lambda m: torch.optim.SparseAdam(list(m.parameters())), "SparseAdam cannot train masked weights"),
        (lambda m: torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1), "SGD does not hold any of the 3 masked weights"),
        (lambda m: torch.optim.SGD(network().parameters(), 0.1), "SGD does not hold any of the 3 masked weights"),
        (lambda m: "SGD", "takes a torch.optim.Optimizer, got str"),
    ],
)
def test_what_cannot_be_attached(technique: Any, build: Any, text: str) -> None:
    compiled = make(technique)
    with pytest.raises(fxs.PolicyError) as caught:
        compiled.attach(build(compiled))
    assert text in str(caught.value)


def test_an_optimizer_whose_state_cannot_be_masked_is_refused_when_it_shows() -> None:
    compiled = make()
    optimizer = Secret(compiled.parameters())
    compiled.attach(optimizer)
    with pytest.raises(fxs.PolicyError, match=r"Secret keeps a tensor of shape \(16,\) under 'rows' for '0.weight', of shape \(16, 8\)"):
        step(compiled, optimizer, *batches(SHAPE, 1)[0])


def test_attaching_twice() -> None:
    compiled = make()
    optimizer = BUILD["SGD"](compiled.parameters())
    handle = compiled.attach(optimizer)
    for other in (optimizer, BUILD["Adam"](compiled.parameters())):
        with pytest.raises(fxs.PolicyError, match=r"'0.weight' is attached to an optimizer already"):
            compiled.attach(other)
    handle.remove()
    handle.remove()
    with pytest.raises(fxs.FxSparseError, match=r"call compiled\.attach\(optimizer\)"):
        compiled(torch.randn(SHAPE))
    compiled.attach(BUILD["Adam"](compiled.parameters()))
    compiled(torch.randn(SHAPE))


def with_closure(compiled: fxs.CompiledModel, optimizer: Optimizer, x: Tensor, y: Tensor) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(compiled(x), y)
        loss.backward()
        return loss

    return closure


def test_closures() -> None:
    compiled, twin = make(), make()
    optimizer, other = BUILD["Adam"](compiled.parameters()), BUILD["Adam"](twin.parameters())
    compiled.attach(optimizer)
    twin.attach(other)
    for x, y in batches(SHAPE, 6):
        optimizer.step(with_closure(compiled, optimizer, x, y))
        step(twin, other, x, y)
    require_exact(compiled, optimizer)
    for name in compiled.masks:
        assert torch.equal(compiled.get_buffer(f"fxsparse.sites.{name}.mask"), twin.get_buffer(f"fxsparse.sites.{name}.mask"))
        assert torch.equal(compiled.get_parameter(name), twin.get_parameter(name))


def test_a_closure_is_refused_where_its_gradient_would_be_lost() -> None:
    compiled = make()
    optimizer = BUILD["Adafactor"](compiled.parameters())
    compiled.attach(optimizer)
    (x, y), (x2, y2) = batches(SHAPE, 2)
    optimizer.step(with_closure(compiled, optimizer, x, y))
    require_exact(compiled)
    with pytest.raises(fxs.PolicyError, match=r"Adafactor\.step was given a closure"):
        optimizer.step(with_closure(compiled, optimizer, x2, y2))


def test_growth_by_momentum_sees_that_of_masked_weights() -> None:
    compiled = make(fxs.RigL(sparsity=0.7, end=6, interval=2, grow="momentum"))
    with pytest.raises(fxs.PolicyError, match=r"SGD keeps none for '0.weight' that can be read"):
        compiled.attach(torch.optim.SGD(compiled.parameters(), 0.1))
    optimizer = torch.optim.SGD(compiled.parameters(), 0.05, momentum=0.9)
    compiled.attach(optimizer)
    data = batches(SHAPE, 8)
    for index, (x, y) in enumerate(data, start=1):
        masks = {site: compiled.get_buffer(f"fxsparse.sites.{site}.mask").clone() for site in compiled.masks}
        optimizer.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        grad = torch.cat([compiled.get_parameter(site).grad[~masks[site]] for site in masks])  # type: ignore[index]
        assert bool(grad.any()) == (index <= 6), "dense as long as something will be grown by it"
        optimizer.step()
        for site, before in masks.items():
            mask = compiled.get_buffer(f"fxsparse.sites.{site}.mask")
            momentum = optimizer.state[compiled.get_parameter(site)]["momentum_buffer"]
            grown, left = mask & ~before, ~mask & ~before
            if bool(grown.any()):
                assert float(momentum[grown].abs().min()) >= float(momentum[left].abs().max())
            assert not bool(compiled.get_parameter(site).detach()[~mask].any())
    assert all(row["weight"]["actual"] == row["weight"]["target"] for row in compiled.sparsity().values())


def test_a_weight_without_a_gradient_is_left_alone() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x) + 0.0 * self.a(x).detach().sum()

    torch.manual_seed(0)
    compiled = fxs.compile(Branch(), fxs.RigL(sparsity=0.5, end=100, interval=1), (torch.randn(SHAPE),))
    optimizer = torch.optim.SGD(compiled.parameters(), 0.1, momentum=0.9)
    compiled.attach(optimizer)
    before = {site: compiled.get_buffer(f"fxsparse.sites.{site}.mask").clone() for site in compiled.masks}
    for x, y in batches(SHAPE, 3):
        step(compiled, optimizer, x, y)
    assert torch.equal(before["a.weight"], compiled.get_buffer("fxsparse.sites.a.weight.mask"))
    assert not torch.equal(before["b.weight"], compiled.get_buffer("fxsparse.sites.b.weight.mask"))


def test_weights_lost_to_nan_are_named() -> None:
    compiled = make()
    optimizer = BUILD["SGD"](compiled.parameters())
    compiled.attach(optimizer)
    data = batches(SHAPE, 2)
    step(compiled, optimizer, *data[0])
    with torch.no_grad():
        compiled.get_parameter("2.weight").fill_(float("nan"))
    with pytest.raises(fxs.NumericalError, match=r"weight: its weights hold NaN or inf.*GradScaler"):
        step(compiled, optimizer, *data[1])
