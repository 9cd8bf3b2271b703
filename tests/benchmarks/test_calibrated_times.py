"""Training steps that a calibrated machine predicts, against measured ones. Run with ``-m benchmark -s`` on a quiet machine.

Each model is measured in a process of its own: what an earlier one has left of the heap makes the steps of a small network up to 1.5
times faster or slower.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

import pytest
import torch
from torchvision.models import get_model

import fxsparse as fxs
from fxsparse.calibrate import calibrate

pytestmark = pytest.mark.benchmark

MODELS = (
    *("resnet50", "mobilenet_v3_large", "mobilenet_v2", "convnext_tiny", "swin_t"),
    *("vit_b_16", "resnext50_32x4d", "efficientnet_b0", "vgg16", "densenet121"),
)
BATCH, SECONDS = 8, 6.0


def measured(name: str) -> float:
    """Median seconds of forward and backward, after two steps that do not count."""
    model, x = get_model(name, weights=None).train(), torch.rand(BATCH, 3, 224, 224)
    times: list[float] = []
    while len(times) < 7 or sum(times) < SECONDS:
        model.zero_grad(set_to_none=True)
        began = time.perf_counter()
        y = model(x)
        y.backward(torch.ones_like(y))
        times.append(time.perf_counter() - began)
    return median(times[2:])


def measured_alone(name: str) -> float:
    """``measured`` in a process of its own."""
    found = subprocess.run([sys.executable, "-m", __name__, name], check=True, capture_output=True, text=True)
    return float(found.stdout)


@pytest.mark.timeout(1200)
def test_predicted_training_steps_are_within_a_fifth() -> None:
    machine = calibrate(batch=BATCH)
    x = torch.zeros(BATCH, 3, 224, 224)
    predicted = {name: fxs.estimate(get_model(name, weights=None).train(), (x,), machine).total.total.time_s or 0.0 for name in MODELS}
    found = {name: measured_alone(name) for name in MODELS}
    print(f"\nforward and backward, batch {BATCH}, 224x224, float32, {torch.get_num_threads()} threads: {machine.description}")
    for name in MODELS:
        ratio = predicted[name] / found[name]
        print(f"  {name:<20} measured {found[name]:6.3f} s   predicted {predicted[name]:6.3f} s   {ratio:6.3f}")
    ranks = [sorted(times, key=lambda name: times[name]) for times in (predicted, found)]
    off = sum((ranks[0].index(name) - ranks[1].index(name)) ** 2 for name in MODELS)
    correlation = 1 - 6 * off / (len(MODELS) * (len(MODELS) ** 2 - 1))
    print(f"  rank correlation (Spearman) {correlation:.3f}")
    assert correlation > 0.9
    assert all(0.8 <= predicted[name] / found[name] <= 1.2 for name in MODELS)


if __name__ == "__main__":
    print(measured(sys.argv[1]))
