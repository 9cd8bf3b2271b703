"""Training steps that a calibrated machine predicts, against measured ones. Run with ``-m benchmark -s`` on a quiet machine."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torchvision.models import get_model

import fxsparse as fxs
from fxsparse.calibrate import calibrate

from .timing import interleaved

pytestmark = pytest.mark.benchmark

MODELS = (
    *("resnet50", "mobilenet_v3_large", "mobilenet_v2", "convnext_tiny", "swin_t"),
    *("vit_b_16", "resnext50_32x4d", "efficientnet_b0", "vgg16", "densenet121"),
)
BATCH, ROUNDS = 8, 7


def measured() -> dict[str, float]:
    """Median seconds of forward and backward of each model; they take turns, so that what drifts drifts for all."""
    x = torch.rand(BATCH, 3, 224, 224)
    networks = {name: get_model(name, weights=None).train() for name in MODELS}

    def step(model: torch.nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        y = model(x)
        y.backward(torch.ones_like(y))

    return interleaved({name: partial(step, model) for name, model in networks.items()}, rounds=ROUNDS, warmup=1)


@pytest.mark.timeout(1200)
def test_predicted_training_steps_are_within_a_fifth() -> None:
    machine = calibrate(batch=BATCH)
    x = torch.zeros(BATCH, 3, 224, 224)
    predicted = {name: fxs.estimate(get_model(name, weights=None).train(), (x,), machine).total.total.time_s or 0.0 for name in MODELS}
    found = measured()
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
