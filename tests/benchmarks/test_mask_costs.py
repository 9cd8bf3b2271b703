"""What masks cost: an ordinary step against a dense one, an update against a forward and backward pass, in time and in memory.

Run with ``-m benchmark -s``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from itertools import accumulate
from statistics import median

import pytest
import torch
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile

import fxsparse as fxs

from .timing import interleaved, table

pytestmark = pytest.mark.benchmark
GRANET = fxs.GraNet(initial_sparsity=0.5, final_sparsity=0.9, begin=0, end=1000, total_steps=2000, interval=1)


class Step:
    """Training steps of a model: forward, backward, SGD with momentum."""

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        if isinstance(model, fxs.CompiledModel):
            model.attach(self.optimizer)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()


@pytest.mark.parametrize(
    ("name", "shape", "rounds", "limit"), [("resnet50", (8, 3, 224, 224), 21, 1.05), ("resnet18", (128, 3, 32, 32), 40, 1.10)]
)
def test_a_masked_step_costs_what_a_dense_one_costs(name: str, shape: tuple[int, ...], rounds: int, limit: float) -> None:
    """Masking costs by the weight and the rest of a step by the image, so that images of 32x32 leave more of it to be seen."""
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    x, y = torch.randn(shape), torch.randint(0, 10, shape[:1])
    rigl = fxs.RigL(sparsity=0.9, end=100_000, interval=50_000)
    medians = interleaved(
        {
            "eager, dense": Step(copy.deepcopy(model), x, y),
            "static ERK 90 %": Step(fxs.compile(copy.deepcopy(model), fxs.StaticMask(sparsity=0.9), (x,)), x, y),
            "RigL 90 %, an ordinary step": Step(fxs.compile(copy.deepcopy(model), rigl, (x,)), x, y),
        },
        rounds=rounds,
        warmup=2,
    )
    print("\n" + table(f"{name}, {'x'.join(map(str, shape))}", medians, "eager, dense"))
    for contender in ("static ERK 90 %", "RigL 90 %, an ordinary step"):
        assert medians[contender] < limit * medians["eager, dense"]


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_of(call: Callable[[], object]) -> int:
    """The most bytes that torch's allocator holds at once for ``call``, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    found = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [event.nbytes() for event in sorted(found, key=lambda event: event.start_ns()) if event.name() == "[memory]"]
    return max(accumulate(changes))


def test_an_update_of_resnet50_is_cheaper_than_a_forward_and_backward_pass() -> None:
    model = torchvision.models.resnet50()
    x, y = torch.randn(8, 3, 224, 224), torch.randint(0, 1000, (8,))
    compiled = fxs.compile(model, GRANET, (x,))
    optimizer = torch.optim.SGD(compiled.parameters(), lr=1e-3, momentum=0.9)
    compiled.attach(optimizer)
    [regime] = compiled.regimes
    machine = compiled.machine()

    def forward_and_backward() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(compiled(x), y).backward()

    @torch.no_grad()
    def update() -> None:
        """Another update than the one that the step has made: it prunes to the sparsity of a later step, and grows."""
        machine._change(regime, 2 * int(regime.steps))

    passes, updates = [], []
    for _ in range(5):
        passes.append(seconds_of(forward_and_backward))
        optimizer.step()
        updates.append(seconds_of(update))
        assert all(row["weight"]["actual"] == row["weight"]["target"] for row in compiled.sparsity().values())
    forward_and_backward()
    optimizer.step()
    peak = peak_of(update)
    weights = sum(compiled.get_parameter(name).numel() * 4 for name in compiled.masks)
    print(
        f"\nResNet-50, global threshold over {weights / 4e6:.1f} M weights: an update takes {1e3 * median(updates):.0f} ms and "
        f"{peak / weights:.3f} of the weights' memory; forward and backward at batch 8 take {1e3 * median(passes):.0f} ms"
    )
    assert median(updates) < median(passes)
    assert peak < 0.10 * weights
