"""What compiling costs, and what a training step costs against eager PyTorch and torch.compile. Run with ``-m benchmark -s``.

Ratios of medians of interleaved runs; they are printed, and compared with generous bounds only where a bound is promised.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

import fxsparse as fxs

from .timing import interleaved, table

pytestmark = pytest.mark.benchmark


class Step:
    """Training steps of a model: forward, backward, SGD with momentum.

    ``steps`` in one call: a whole period of a technique, so that the step that selects thresholds is counted in.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = 1) -> None:
        self.model, self.x, self.y, self.steps = model, x, y, steps
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.y).backward()
            self.optimizer.step()


def test_compiling_resnet50_is_cheaper_than_a_dense_step() -> None:
    model = torchvision.models.resnet50()
    x, y = torch.randn(8, 3, 224, 224), torch.randint(0, 1000, (8,))
    step = Step(copy.deepcopy(model), x, y)
    medians = interleaved(
        {
            "dense step, batch 8": step,
            "fxs.compile, no policy": lambda: fxs.compile(model, None, (x,)),
            "fxs.compile, swat-u-90": lambda: fxs.compile(model, "swat-u-90", (x,)),
        },
        rounds=7,
        warmup=1,
    )
    print("\n" + table("ResNet-50, 224x224", medians, "dense step, batch 8"))
    assert medians["fxs.compile, swat-u-90"] < min(1.5, medians["dense step, batch 8"])


def test_neutral_step_costs_as_much_as_eager() -> None:
    model = torchvision.models.resnet18(num_classes=10)
    x, y = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
    medians = interleaved(
        {
            "eager": Step(copy.deepcopy(model), x, y),
            "fxsparse, no policy": Step(fxs.compile(copy.deepcopy(model), None, (x,)), x, y),
            "torch.compile(eager)": Step(torch.compile(copy.deepcopy(model)), x, y),
            "torch.compile(fxsparse, no policy)": Step(torch.compile(fxs.compile(copy.deepcopy(model), None, (x,))), x, y),
        },
        rounds=60,
        warmup=5,
    )
    print("\n" + table("ResNet-18, 32x32, batch 64, neutral", medians, "eager"))
    assert medians["fxsparse, no policy"] < 1.02 * medians["eager"]


def test_swat_step_on_the_reference_backend() -> None:
    model = torchvision.models.resnet18(num_classes=10)
    x, y = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
    swat = fxs.Policy(fxs.SWAT(weight_sparsity=0.9, period=10))
    medians = interleaved(
        {
            "eager, dense": Step(copy.deepcopy(model), x, y, steps=10),
            "SWAT-U 90 %, P = 10": Step(fxs.compile(copy.deepcopy(model), swat, (x,), backend="reference"), x, y, steps=10),
            "torch.compile(eager, dense)": Step(torch.compile(copy.deepcopy(model)), x, y, steps=10),
            "torch.compile(SWAT-U 90 %)": Step(
                torch.compile(fxs.compile(copy.deepcopy(model), swat, (x,), backend="reference")), x, y, steps=10
            ),
        },
        rounds=9,
        warmup=1,
    )
    print("\n" + table("ResNet-18, 32x32, batch 64, ten steps", medians, "eager, dense"))
    assert medians["SWAT-U 90 %, P = 10"] < 1.25 * medians["eager, dense"]
