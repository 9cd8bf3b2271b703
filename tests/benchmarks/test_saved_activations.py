"""What few-bit saved activations save and cost, measured: peaks, batches that fit, time. Run with ``-m benchmark -s``."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxsparse as fxs

from ..saved_zoo import ZOO
from .step_peak import POLICIES
from .timing import interleaved, table

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

BATCHES = (8, 16, 32, 64)


def peak(name: str, how: str, batch: int) -> tuple[float, float]:
    """MiB above the state before the step, and its seconds, in a process of its own."""
    arguments = [sys.executable, "-m", "tests.benchmarks.step_peak", name, how, str(batch)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    mebibytes, seconds = done.stdout.split()
    return float(mebibytes), float(seconds)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(("name", "how", "batch", "ratio"), [("ResNet-50", "blpa-4", 32, 3.0), ("ViT-B/16", "saved-4", 16, 3.0)])
def test_peak_of_a_training_step(name: str, how: str, batch: int, ratio: float) -> None:
    print(f"\n{name}, batch {batch}, float32: peak above the state before the step")
    eager, _ = peak(name, "eager", batch)
    rows = [(other, *peak(name, other, batch)) for other in (how, "checkpoint", "budget-0.5", "budget-0.2")]
    for other, mebibytes, seconds in [("eager", eager, 0.0), *rows]:
        print(f"  {other:<16} {mebibytes:8.0f} MiB   {eager / mebibytes:5.2f}x" + (f"   {seconds:6.2f} s" if seconds else ""))
    assert eager / rows[0][1] >= ratio


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(("name", "how"), [("ResNet-50", "blpa-4"), ("ViT-B/16", "saved-4")])
def test_batches_that_fit(name: str, how: str) -> None:
    """The largest batch within a budget, between measured batches by a straight line."""
    found = {kind: [peak(name, kind, batch)[0] for batch in (BATCHES[:3] if kind == "eager" else BATCHES)] for kind in ("eager", how)}
    print(f"\n{name}: peak in MiB at batch {BATCHES}")
    for kind, peaks in found.items():
        print(f"  {kind:<16} " + " ".join(f"{mebibytes:8.0f}" for mebibytes in peaks))
    for budget in (1024, 2048, 4096):
        fits = {kind: largest(peaks, budget) for kind, peaks in found.items()}
        print(f"  {budget} MiB hold a batch of " + ", ".join(f"{count} ({kind})" for kind, count in fits.items()))


def largest(peaks: list[float], budget: float) -> int:
    slope = (peaks[-1] - peaks[0]) / (BATCHES[len(peaks) - 1] - BATCHES[0])
    return int(BATCHES[0] + (budget - peaks[0]) / slope)


@pytest.mark.parametrize(
    ("name", "how", "batch", "ratio"),
    [("ResNet-50", "blpa-4", 8, 1.35), ("ViT-B/16", "saved-4", 4, 1.5), ("ResNet-50", "swat-90-blpa-4", 8, None)],
)
def test_time_of_a_training_step(name: str, how: str, batch: int, ratio: float | None) -> None:
    make, inputs = ZOO[name]
    model, x = make().train(), inputs(batch)
    contenders: dict[str, Callable[[], object]] = {
        "eager": step_of(copy.deepcopy(model), x),
        how: step_of(fxs.compile(copy.deepcopy(model), POLICIES[how], (x,)), x),
        "torch.compile": step_of(torch.compile(copy.deepcopy(model)), x),
        f"torch.compile of {how}": step_of(torch.compile(fxs.compile(copy.deepcopy(model), POLICIES[how], (x,)), fullgraph=True), x),
    }
    medians = interleaved(contenders, rounds=9, warmup=2)
    print("\n" + table(f"{name}, batch {batch}, {torch.get_num_threads()} threads", medians, "eager"))
    assert ratio is None or medians[how] / medians["eager"] <= ratio


def step_of(model: nn.Module, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step
