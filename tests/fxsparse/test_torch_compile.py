"""torch.compile of a model under SWAT: one graph, no recompile across periods, and eager's numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor

import fxsparse as fxs

from .test_survival import batches, make, optimizer_of


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True, allow_rnn=True):  # Dynamo refuses nn.LSTM by its class otherwise
        yield
    torch._dynamo.reset()


def steps(model: Any, owner: torch.nn.Module, shape: tuple[int, ...], count: int) -> list[Tensor]:
    """Losses of some training steps on one batch size."""
    optimizer = optimizer_of(owner)
    losses = []
    for x, y in batches(shape, count):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["resnet", "mlp", "attention", pytest.param("lstm", marks=pytest.mark.slow)])
def test_ten_steps_across_a_period_in_one_graph(name: str, backend: str) -> None:
    compiled, shape = make(name)
    eager = copy.deepcopy(compiled)
    fast = torch.compile(compiled, fullgraph=True, backend=backend)
    torch.testing.assert_close(
        torch.stack(steps(fast, compiled, shape, 10)), torch.stack(steps(eager, eager, shape, 10)), rtol=1e-5, atol=1e-5
    )
    for (key, p), q in zip(compiled.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    for key, buffer in eager.named_buffers():
        torch.testing.assert_close(
            compiled.get_buffer(key), buffer, rtol=1e-4, atol=1e-5, equal_nan=True, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert int(compiled.get_buffer("fxsparse.clock.steps")) == 10


def test_inductor_trains_a_small_model() -> None:
    compiled, shape = make("mlp")
    eager = copy.deepcopy(compiled)
    fast = torch.compile(compiled, fullgraph=True)
    torch.testing.assert_close(
        torch.stack(steps(fast, compiled, shape, 10)), torch.stack(steps(eager, eager, shape, 10)), rtol=1e-5, atol=1e-5
    )


KINDS = [("kernel", "channel"), ("filter", "sample_channel")]
OTHER_KINDS = [("element", "channel"), ("element", "sample"), ("kernel", "tensor"), ("kernel", "sample"), ("filter", "channel")]


@pytest.mark.parametrize(("structure", "granularity"), [*KINDS, *(pytest.param(*kind, marks=pytest.mark.slow) for kind in OTHER_KINDS)])
def test_every_kind_of_threshold_compiles(structure: str, granularity: str) -> None:
    technique = fxs.SWAT(weight_sparsity=0.6, structure=structure, granularity=granularity, period=3, dense_first=False)
    compiled, shape = make("resnet", technique)
    eager = copy.deepcopy(compiled)
    fast = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.stack(steps(fast, compiled, shape, 4)), torch.stack(steps(eager, eager, shape, 4)), rtol=1e-5, atol=1e-5
    )


def test_evaluation_compiles_too() -> None:
    compiled, shape = make("resnet")
    compiled.eval()
    (x, _), *_ = batches(shape, 1)
    fast = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), compiled(x), rtol=1e-5, atol=1e-5)


def test_densities_that_follow_the_momentum_do_not_recompile() -> None:
    compiled, shape = make("mlp", fxs.SWAT(weight_sparsity=0.7, distribution="momentum", dense_first=False))
    eager = copy.deepcopy(compiled)
    fast = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    losses = []
    for model, owner in ((fast, compiled), (eager, eager)):
        optimizer = optimizer_of(owner)
        owner.attach(optimizer)
        found = []
        for x, y in batches(shape, 5):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        losses.append(torch.stack(found))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


class Scaled(torch.nn.Module):
    """Takes several tensors and a plain value, some of them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 5)

    def forward(self, x: Tensor, shift: Tensor | None = None, *, factor: float = 1.0) -> Tensor:
        return self.fc(x * factor if shift is None else x * factor + shift)


@pytest.mark.parametrize("extra", [(), ("shift",)])
def test_arguments_by_name_do_not_recompile(extra: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"factor": 2.0, **{name: torch.randn(4, 6) for name in extra}}
    compiled = fxs.compile(Scaled(), fxs.SWAT(weight_sparsity=0.5, dense_first=False), (torch.randn(4, 6),), example_kwargs=kwargs)
    fast, eager = torch.compile(compiled, fullgraph=True, backend="aot_eager"), copy.deepcopy(compiled)
    for _ in range(3):
        x = torch.randn(4, 6)
        given = {name: torch.randn(4, 6) if isinstance(item, Tensor) else item for name, item in kwargs.items()}
        torch.testing.assert_close(fast(x, **given), eager(x, **given))
