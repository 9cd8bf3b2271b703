"""Densities that follow an optimizer's momentum."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxsparse as fxs
from fxsparse.attach import momentum_counts, momentum_of

MOMENTUM = fxs.SWAT(weight_sparsity=0.8, distribution="momentum", dense_first=False)


def make(sizes: tuple[int, ...] = (8, 12, 10, 6)) -> tuple[fxs.CompiledModel, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    x = torch.randn(16, sizes[0])
    return fxs.compile(model, MOMENTUM, (x,)), x


def step(compiled: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    compiled(x).square().mean().backward()
    optimizer.step()


OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_densities_follow_the_momentum_and_the_budget_is_exact(name: str) -> None:
    compiled, x = make()
    optimizer = OPTIMIZERS[name](compiled.parameters())
    compiled.attach(optimizer)
    budget = sum(spec.weight_kept for spec in compiled.plan.values())
    before = [float(compiled.get_buffer(f"fxsparse.sites.{site}.weight_density")) for site in compiled.plan]
    for _ in range(4):
        thresholds = {}
        step(compiled, optimizer, x)
        means = {}
        for site in compiled.plan:
            weight, state = compiled.get_parameter(site), optimizer.state[compiled.get_parameter(site)]
            tau = thresholds[site] = compiled.get_buffer(f"fxsparse.sites.{site}.weight_threshold")
            momentum = state["momentum_buffer"] if "momentum_buffer" in state else state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)
            means[site] = float(momentum[weight.detach().abs() >= tau].abs().mean())
        found = {site: compiled.sparsity()[site] for site in compiled.plan}
        counts = {site: round(found[site]["weight"]["target"] * compiled.get_parameter(site).numel()) for site in compiled.plan}
        assert sum(counts.values()) == budget
        assert all(
            found[site]["activation"]["target"] == pytest.approx(counts[site] / compiled.get_parameter(site).numel()) for site in counts
        )
        total = sum(means.values())
        for site, count in counts.items():
            assert count == pytest.approx(means[site] / total * budget, abs=len(counts) + 1)
    after = [float(compiled.get_buffer(f"fxsparse.sites.{site}.weight_density")) for site in compiled.plan]
    assert before != after


def test_the_next_forward_keeps_what_the_densities_say() -> None:
    compiled, x = make()
    optimizer = OPTIMIZERS["SGD"](compiled.parameters())
    compiled.attach(optimizer)
    step(compiled, optimizer, x)
    compiled(x)
    for site, found in compiled.sparsity().items():
        assert found["weight"]["kept"] == round(found["weight"]["target"] * found["weight"]["total"]), site
    assert sum(found["weight"]["kept"] for found in compiled.sparsity().values()) == sum(
        spec.weight_kept for spec in compiled.plan.values()
    )


def test_activations_with_a_sparsity_of_their_own_do_not_follow() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 6)), torch.randn(16, 8)
    policy = fxs.SWAT(weight_sparsity=0.8, activation_sparsity=0.5, distribution="momentum", dense_first=False)
    compiled = fxs.compile(model, policy, (x,))
    optimizer = OPTIMIZERS["SGD"](compiled.parameters())
    compiled.attach(optimizer)
    for _ in range(2):
        step(compiled, optimizer, x)
    assert [found["activation"]["target"] for found in compiled.sparsity().values()] == [0.5, 0.5]
    assert compiled.sparsity()["0.weight"]["weight"]["target"] != pytest.approx(0.2, abs=1e-4)


def test_training_without_attach_says_what_to_do() -> None:
    compiled, x = make()
    with pytest.raises(fxs.FxSparseError, match=r"compiled\.attach\(optimizer\) before training"):
        compiled(x)
    compiled.eval()(x)
    with torch.no_grad():
        compiled.train()(x)
    optimizer = OPTIMIZERS["SGD"](compiled.parameters())
    first, second = compiled.attach(optimizer), compiled.attach(optimizer)
    first.remove()
    first.remove()
    compiled(x)
    second.remove()
    with pytest.raises(fxs.FxSparseError, match="attach"):
        compiled(x)


def test_a_removed_attachment_changes_nothing_any_more() -> None:
    compiled, x = make()
    optimizer = OPTIMIZERS["SGD"](compiled.parameters())
    handle = compiled.attach(optimizer)
    step(compiled, optimizer, x)
    densities = [b.clone() for n, b in compiled.named_buffers() if "density" in n]
    handle.remove()
    for parameter in compiled.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(densities, [b for n, b in compiled.named_buffers() if "density" in n], strict=True))


def test_a_copy_asks_to_be_attached_again() -> None:
    compiled, x = make()
    compiled.attach(OPTIMIZERS["SGD"](compiled.parameters()))
    compiled(x)
    with pytest.raises(fxs.FxSparseError, match="again on a copy"):
        copy.deepcopy(compiled)(x)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda m: torch.optim.SGD(m.parameters(), lr=0.1), "SGD keeps no momentum for '0.weight'; use SGD with momentum > 0"),
        (lambda m: torch.optim.Adagrad(m.parameters()), "Adagrad keeps no momentum"),
        (lambda m: torch.optim.LBFGS(m.parameters()), "LBFGS keeps no momentum"),
        (lambda m: torch.optim.SGD([m.get_parameter("0.weight")], lr=0.1, momentum=0.9), "does not train '1.weight'"),
        (lambda m: "SGD", "takes a torch.optim.Optimizer, got str"),
    ],
)
def test_optimizers_without_a_momentum_are_refused(build: Any, text: str) -> None:
    compiled, _ = make()
    with pytest.raises(fxs.PolicyError) as caught:
        compiled.attach(build(compiled))
    assert text in str(caught.value)


def test_an_optimizer_whose_state_cannot_be_read_is_refused_when_it_shows() -> None:
    compiled, x = make()
    optimizer = torch.optim.Adamax(compiled.parameters())
    compiled.attach(optimizer)
    with pytest.raises(fxs.PolicyError, match=r"Adamax keeps .*'exp_inf'.* none of which can be read as a momentum"):
        step(compiled, optimizer, x)


def test_attaching_without_momentum_wants_nothing_of_the_optimizer() -> None:
    compiled = fxs.compile(nn.Sequential(nn.Linear(4, 4)), fxs.SWAT(weight_sparsity=0.5, dense_first=False), (torch.randn(2, 4),))
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    handle = compiled.attach(optimizer)
    step(compiled, optimizer, torch.randn(2, 4))
    handle.remove()


def test_a_layer_that_was_not_used_keeps_its_density() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 40)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) + 0.0 * self.b(x).detach())

    torch.manual_seed(0)
    compiled = fxs.compile(Branch(), MOMENTUM, (torch.randn(4, 8),))
    optimizer = OPTIMIZERS["SGD"](compiled.parameters())
    compiled.attach(optimizer)
    before = compiled.sparsity()["a.weight"]["weight"]["target"]
    for _ in range(2):
        step(compiled, optimizer, torch.randn(4, 8))
    found = compiled.sparsity()
    assert found["b.weight"]["weight"]["target"] == compiled.plan["b.weight"].weight_density
    assert found["a.weight"]["weight"]["target"] != before
    assert sum(round(row["weight"]["target"] * row["weight"]["total"]) for row in found.values()) == sum(
        s.weight_kept for s in compiled.plan.values()
    )


def test_a_skipped_step_moves_nothing() -> None:
    compiled, x = make()
    optimizer = OPTIMIZERS["SGD"](compiled.parameters())
    compiled.attach(optimizer)
    step(compiled, optimizer, x)
    densities = [b.clone() for n, b in compiled.named_buffers() if "density" in n]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer.zero_grad()
    scaler.scale(compiled(x).mean() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(densities, [b for n, b in compiled.named_buffers() if "density" in n], strict=True))


# The counts alone


LAYERS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=2), st.tuples(st.floats(0.0, 1e6), st.integers(1, 5000)), min_size=1, max_size=8
).filter(lambda layers: sum(mean for mean, _ in layers.values()) > 0)


@given(LAYERS, st.floats(0.0, 1.0))
def test_counts_sum_to_the_budget(layers: dict[str, tuple[float, int]], density: float) -> None:
    means, sizes = ({name: pair[i] for name, pair in layers.items()} for i in (0, 1))
    total = sum(sizes.values())
    budget = max(len(sizes), round(density * total))
    counts = momentum_counts(means, sizes, budget)
    assert sum(counts.values()) == budget
    assert all(1 <= counts[name] <= sizes[name] for name in sizes)


def test_counts_by_hand() -> None:
    sizes = {"a": 100, "b": 100, "c": 100}
    assert momentum_counts({"a": 1.0, "b": 2.0, "c": 1.0}, sizes, 80) == {"a": 20, "b": 40, "c": 20}
    # b's share of 120 is more than it has; the 20 that it leaves go to a and c in equal parts
    assert momentum_counts({"a": 1.0, "b": 6.0, "c": 3.0}, sizes, 200) == {"a": 30, "b": 100, "c": 70}
    # above 0.99 counts as all, as far as the budget and one weight for each layer allow
    assert momentum_counts({"a": 995.0, "b": 5.0}, {"a": 1000, "b": 1000}, 1000) == {"a": 999, "b": 1}
    assert momentum_counts({"a": 993.0, "b": 7.0}, {"a": 1000, "b": 1000}, 1010) == {"a": 1000, "b": 10}
    assert momentum_counts({"a": 0.0, "b": 1.0}, {"a": 50, "b": 100}, 50) == {"a": 1, "b": 49}


def test_a_layer_with_more_momentum_keeps_no_less() -> None:
    sizes = {"a": 400, "b": 400, "c": 400}
    seen = [momentum_counts({"a": mean, "b": 1.0, "c": 2.0}, sizes, 300)["a"] for mean in (0.1, 0.5, 1.0, 3.0, 10.0, 100.0)]
    assert seen == sorted(seen)


def test_momentum_of() -> None:
    buffer = torch.ones(3)
    assert momentum_of({"momentum_buffer": buffer}) is buffer
    found = momentum_of({"exp_avg": torch.tensor([2.0]), "exp_avg_sq": torch.tensor([4.0])})
    assert found is not None
    assert found.item() == pytest.approx(1.0)
    assert momentum_of({"momentum_buffer": None}) is None
    assert momentum_of({"step": torch.tensor(1.0)}) is None
