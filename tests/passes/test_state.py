"""Thresholds from step to step: when they are selected, where they are kept, what changes them and what does not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsparse as fxs
from fxsparse.passes.specs import SwatSpec
from fxsparse.passes.state import AddedState, Clock, SiteState

from .swat_reference import compiled_copy, top_k


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def smallest_kept(x: Tensor, sparsity: float) -> Tensor:
    return x.detach().abs()[top_k(x.detach().abs(), sparsity)].min()


def buffers(compiled: fxs.CompiledModel) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in compiled.named_buffers()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].nan_to_num(7.0), b[name].nan_to_num(7.0)) for name in a)


@pytest.mark.parametrize("period", [1, 3, 4])
def test_thresholds_are_selected_every_period_and_reused_in_between(period: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    compiled = compiled_copy(model, torch.randn(2, 3, 4, 4), period=period, linear_period=2)
    w, v = compiled.get_parameter("0.weight"), compiled.get_parameter("2.weight")
    tau_w = tau_a = tau_v = tau_h = torch.tensor(torch.nan)
    for step in range(2 * period + 2):
        x = torch.randn(2, 3, 4, 4)
        with torch.no_grad():
            w.copy_(torch.randn_like(w) * (step + 1))
            v.copy_(torch.randn_like(v) * (step + 1))
        if step % period == 0:
            tau_w, tau_a = smallest_kept(w, 0.7), smallest_kept(x, 0.7)
        h = F.conv2d(x, w * (w.abs() >= tau_w), compiled.get_parameter("0.bias")).flatten(1)
        if step % 2 == 0:
            tau_v, tau_h = smallest_kept(v, 0.7), smallest_kept(h, 0.7)
        expected = F.linear(h, v * (v.abs() >= tau_v), compiled.get_parameter("2.bias"))
        found = compiled(x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        (grad_v,) = torch.autograd.grad(found.sum(), v)
        torch.testing.assert_close(grad_v, torch.ones(5, 2) @ (h * (h.abs() >= tau_h)), rtol=1e-4, atol=1e-4)
        state = dict(compiled.named_buffers())
        assert state["fxsparse.sites.0.weight.weight_threshold"] == tau_w
        assert state["fxsparse.sites.0.weight.activation_threshold_0"] == tau_a
        assert int(state["fxsparse.clock.steps"]) == step + 1


@pytest.mark.parametrize("structure", ["kernel", "filter"])
def test_structures_are_selected_anew_in_every_forward(structure: str) -> None:
    compiled = compiled_copy(nn.Conv2d(3, 8, 3), torch.randn(2, 3, 4, 4), period=10, structure=structure)
    weight = compiled.get_parameter("weight")
    for _ in range(3):
        with torch.no_grad():
            weight.copy_(torch.randn_like(weight))
        compiled(torch.randn(2, 3, 4, 4))
        dims = (1, 2, 3) if structure == "filter" else (2, 3)
        expected = smallest_kept(weight.abs().sum(dims), 0.7)
        found = compiled.get_buffer("fxsparse.sites.weight.weight_threshold")
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("granularity", ["sample", "sample_channel"])
def test_thresholds_of_samples_are_selected_anew_in_every_forward(granularity: str) -> None:
    compiled = compiled_copy(nn.Conv2d(3, 8, 3, bias=False), torch.randn(2, 3, 4, 4), period=10, granularity=granularity)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 4, 4)
        (found,) = torch.autograd.grad(compiled(x).sum(), compiled.get_parameter("weight"))
        kept = x * top_k(x.abs(), 0.7, (0,) if granularity == "sample" else (0, 1))
        expected = F.unfold(kept, 3).sum((0, 2)).reshape(1, 3, 3, 3).expand(8, 3, 3, 3)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["eval", "no_grad", "eval without a threshold yet"])
def test_nothing_changes_outside_training(mode: str) -> None:
    compiled = compiled_copy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)), torch.randn(2, 3, 4, 4))
    if "yet" not in mode:
        compiled(torch.randn(2, 3, 4, 4))
    compiled.train(mode == "no_grad")
    before = {name: buffer for name, buffer in buffers(compiled).items() if name != "fxsparse.clock.now"}
    for _ in range(3):
        with torch.set_grad_enabled(mode != "no_grad"):
            compiled(torch.randn(3, 3, 4, 4))
    after = {name: buffer for name, buffer in buffers(compiled).items() if name != "fxsparse.clock.now"}
    assert same(before, after)


def test_evaluation_runs_through_the_sparse_weights() -> None:
    model, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 4, 4)
    compiled = compiled_copy(model, x).eval()
    w = compiled.get_parameter("weight").detach()
    expected = F.conv2d(x, w * top_k(w.abs(), 0.7), model.bias)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), expected)
    out = compiled(x)
    torch.testing.assert_close(out, expected)


def test_evaluation_between_training_steps_does_not_shift_the_period() -> None:
    compiled = compiled_copy(nn.Linear(6, 5), torch.randn(4, 6), linear_period=2)
    seen = []
    for _ in range(4):
        with torch.no_grad():
            compiled.get_parameter("weight").mul_(2.0)
        compiled.train()(torch.randn(4, 6))
        seen.append(float(compiled.get_buffer("fxsparse.sites.weight.weight_threshold")))
        compiled.eval()(torch.randn(4, 6))
    assert seen == pytest.approx([seen[0], seen[0], 4 * seen[0], 4 * seen[0]])


def test_ties_are_kept() -> None:
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -2.0, 2.0, 0.5], [2.0, 0.1, -2.0, 1.0]]))
    compiled = compiled_copy(model, torch.ones(1, 4), weight_sparsity=0.75)
    x = torch.tensor([[1.0, -1.0, 0.25, 1.0]])
    out = compiled(x)
    assert out.tolist() == [[3.0 + 2.0 + 0.5, 2.0 - 0.5]]
    assert compiled.sparsity()["weight"]["weight"]["kept"] == 5
    assert compiled.sparsity()["weight"]["activation"]["kept"] == 3
    out[0, 0].backward()
    assert compiled.get_parameter("weight").grad.tolist() == [[1.0, -1.0, 0.0, 1.0], [0.0] * 4]


def test_a_module_called_twice_keeps_a_threshold_for_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(100.0 * self.layer(x))

    compiled = compiled_copy(Twice(), torch.randn(4, 6), linear_period=3)
    x = torch.randn(4, 6)
    compiled(x)
    state = dict(compiled.named_buffers())
    assert state["fxsparse.sites.layer.weight.activation_threshold_0"] == smallest_kept(x, 0.7)
    assert state["fxsparse.sites.layer.weight.activation_threshold_1"] > 10 * state["fxsparse.sites.layer.weight.activation_threshold_0"]


class Block(nn.Module):
    """Keeps its Python; its layer is a graph of its own."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6, bias=False))
        self.inner[0].weight = weight

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().sum()) > 1e30:
            raise ValueError("too large")
        return self.inner(x)


def test_a_weight_shared_by_two_graphs_keeps_a_threshold_for_each() -> None:
    weight = nn.Parameter(torch.randn(6, 6))

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(weight), Block(weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(100.0 * self.first(x))

    x = torch.randn(4, 6)
    compiled = compiled_copy(Shared(), x, linear_period=2)
    assert len(compiled.graphs) >= 2
    compiled(x)
    thresholds = [buffer for name, buffer in compiled.named_buffers() if "activation_threshold" in name]
    assert len(thresholds) == 2
    assert min(thresholds) == smallest_kept(x, 0.7)
    assert max(thresholds) > 10 * min(thresholds)


def spec(**settings: Any) -> SwatSpec:
    return SwatSpec(**{"site": "a.weight", "weight_kept": 3, "weight_scores": 10, "activation_sparsity": 0.5, **settings})


@pytest.mark.parametrize("convert", [lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.to(torch.bfloat16)])
def test_state_stays_as_precise_as_it_must(convert: Any) -> None:
    compiled = convert(compiled_copy(nn.Linear(6, 5), torch.randn(4, 6)))
    assert compiled.get_parameter("weight").element_size() == 2
    for name, buffer in compiled.named_buffers():
        expected = torch.int64 if "clock" in name or "counts" in name else torch.float64 if "density" in name else torch.float32
        assert buffer.dtype == expected, name
    out = compiled(torch.randn(4, 6).to(compiled.get_parameter("weight").dtype))
    assert out.element_size() == 2


def test_state_follows_to_a_wider_type() -> None:
    compiled = compiled_copy(nn.Linear(6, 5), torch.randn(4, 6)).to(torch.float64)
    assert compiled.get_buffer("fxsparse.sites.weight.weight_threshold").dtype == torch.float64
    w, x = compiled.get_parameter("weight").detach(), torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(compiled(x), F.linear(x, w * top_k(w.abs(), 0.7), compiled.get_parameter("bias")), rtol=1e-12, atol=1e-12)
    assert compiled.get_buffer("fxsparse.sites.weight.weight_threshold") == smallest_kept(w, 0.7)


def test_the_clock_counts_live_forwards_only() -> None:
    clock = Clock()
    for live, steps, now in ((True, 1, 0), (False, 1, -1), (True, 2, 1)):
        clock.advance(live)
        assert (int(clock.steps), int(clock.now)) == (steps, now)
    assert list(clock.state_dict()) == ["steps"]
    moved = copy.deepcopy(clock).to(torch.float16)
    assert moved.steps.dtype == torch.int64


def test_each_site_has_its_place() -> None:
    state = AddedState()
    made = SiteState(spec(), [(), (1, 4)], torch.device("cpu"), torch.float16)
    state.add("layer.0.weight", made)
    assert state.site("layer.0.weight") is made
    assert state.site("layer.0.bias") is None
    assert state.site("layer") is None
    names = [name for name in state.state_dict() if "layer" in name]
    assert names == [
        f"sites.layer.0.weight.{name}"
        for name in (
            "weight_threshold", "weight_density", "activation_density", "activation_threshold_0", "activation_counts_0",
            "activation_threshold_1", "activation_counts_1",
        )
    ]  # fmt: skip
    assert made.get_buffer("weight_threshold").dtype == torch.float32
    assert made.get_buffer("activation_threshold_1").shape == (1, 4)


def test_dense_operands_need_no_state() -> None:
    made = SiteState(spec(activation_sparsity=0.0), [()], torch.device("cpu"), torch.float32)
    assert list(made.state_dict()) == ["weight_threshold", "weight_density"]
    made = SiteState(spec(weight_kept=10), [()], torch.device("cpu"), torch.float32)
    assert not any("weight_" in name for name in made.state_dict())


def test_what_is_read_on_the_host_stays_there() -> None:
    """The clock and the densities are read by Python in every forward: on another device each reading would wait for it."""
    compiled = compiled_copy(nn.Linear(6, 5), torch.randn(4, 6)).to("meta")
    for name, buffer in compiled.named_buffers():
        assert buffer.device.type == ("cpu" if "clock" in name or "density" in name else "meta"), name
