"""Whole training steps and inference with the native sparse kernels, against the fastest dense PyTorch.

    python -m pytest -m benchmark -s tests/benchmarks/test_native_steps.py -k "resnet50 and swat90 and 1-thread and all"

Dense are eager with contiguous tensors, eager with channels last, and torch.compile of each; all contenders take turns in one run, and
medians are compared. The sparse model's steps are those of a whole period, the one that selects thresholds among them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import fxsparse as fxs
from fxsparse.passes.kernels.library import library

from .timing import interleaved, table

pytestmark = [pytest.mark.benchmark, pytest.mark.skipif(library() is None, reason="the native kernels were not built")]

PERIOD = 10
POLICIES: dict[str, Callable[[], Any]] = {
    "swat90": lambda: fxs.SWAT(weight_sparsity=0.9, period=PERIOD),
    "swat80": lambda: fxs.SWAT(weight_sparsity=0.8, period=PERIOD),
    "mask95": lambda: fxs.StaticMask(sparsity=0.95, distribution="uniform"),
    "mask90": lambda: fxs.StaticMask(sparsity=0.9, distribution="uniform"),
}


class WideResNet(nn.Module):
    """WRN-16-8 (Zagoruyko & Komodakis 2016), for images of 32 x 32."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        sizes = [16, 16 * width, 32 * width, 64 * width]
        self.stem = nn.Conv2d(3, sizes[0], 3, padding=1, bias=False)
        pairs = [(i, o, s) for i, o, s in zip(sizes, sizes[1:], (1, 2, 2), strict=False)]
        self.blocks = nn.Sequential(*(WideBlock(i if j == 0 else o, o, s if j == 0 else 1) for i, o, s in pairs for j in range(2)))
        self.norm, self.fc = nn.BatchNorm2d(sizes[-1]), nn.Linear(sizes[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.blocks(self.stem(x))))
        out: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(x))
        out: Tensor = self.conv2(torch.relu(self.norm2(self.conv1(y))))
        return out + (x if self.skip is None else self.skip(y))


def small_resnet18() -> nn.Module:
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def small_vgg16() -> nn.Module:
    model = torchvision.models.vgg16_bn(num_classes=10)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 10)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet50": (torchvision.models.resnet50, (16, 3, 224, 224)),
    "resnet18": (small_resnet18, (128, 3, 32, 32)),
    "vgg16": (small_vgg16, (128, 3, 32, 32)),
    "wrn16_8": (WideResNet, (128, 3, 32, 32)),
    "mobilenet_v3": (torchvision.models.mobilenet_v3_large, (16, 3, 224, 224)),
}


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def steps_of(model: nn.Module, call: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if isinstance(model, fxs.CompiledModel):
        model.attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(call(x), y).backward()
        optimizer.step()

    return step


def contenders(name: str, policy: str, rivals: str, made: Callable[..., Callable[[], object]]) -> dict[str, Callable[[], object]]:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = build(), torch.randn(*shape)
    last = x.to(memory_format=torch.channels_last)
    found: dict[str, Callable[[], object]] = {}
    for title, given in (("eager, contiguous", x), ("eager, channels last", last)):
        twin = copy.deepcopy(model)
        twin = twin.to(memory_format=torch.channels_last) if given is last else twin  # type: ignore[call-overload]
        found[title] = made(twin, twin, given)
        if rivals == "all":
            twin = copy.deepcopy(twin)
            found[title.replace("eager", "torch.compile")] = made(twin, torch.compile(twin), given)
    sparse = fxs.compile(model, POLICIES[policy](), (x,))
    found[f"fxsparse, {policy}"] = made(sparse, sparse, x)
    return found


def report(title: str, found: dict[str, Callable[[], object]], rounds: int, period: int = 1) -> float:
    """Prints a table. The own time is the mean over a period, whose first step selects thresholds."""
    own = next(name for name in found if name.startswith("fxsparse"))
    medians = interleaved(found, rounds=rounds, warmup=1)
    if period > 1:
        for _ in range(period - rounds - 1):
            found[own]()
        first = interleaved({own: found[own]}, rounds=1, warmup=0)[own]
        print(f"\n  {own}: a step that selects thresholds {1e3 * first:.0f} ms, others {1e3 * medians[own]:.0f} ms")
        medians[own] = (first + (period - 1) * medians[own]) / period
    fastest = min(seconds for name, seconds in medians.items() if name != own)
    print("\n" + table(title, medians, own))
    print(f"  against the fastest dense one: {fastest / medians[own]:.2f}x")
    return fastest / medians[own]


@pytest.mark.parametrize("rivals", ["eager", "all"])
@pytest.mark.parametrize("count", [1, 2], ids=["1-thread", "2-threads"])
@pytest.mark.parametrize(
    ("name", "policy"),
    [("resnet50", policy) for policy in POLICIES] + [(name, "swat90") for name in ("resnet18", "vgg16", "wrn16_8")],
)
def test_training_step(name: str, policy: str, count: int, rivals: str) -> None:
    with threads(count):
        samples = MODELS[name][1][0]
        y = torch.randint(10, (samples,))
        found = contenders(name, policy, rivals, lambda model, call, x: steps_of(model, call, x, y))
        ratio = report(
            f"training step of {name}, batch {samples}, {policy}, {count} thread(s)", found, 3, PERIOD if policy.startswith("swat") else 1
        )
    assert ratio > 1


@pytest.mark.parametrize("rivals", ["eager", "all"])
@pytest.mark.parametrize("count", [1, 2], ids=["1-thread", "2-threads"])
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3"])
def test_inference(name: str, count: int, rivals: str) -> None:
    def made(model: nn.Module, call: nn.Module, x: Tensor) -> Callable[[], object]:
        model.eval()

        @torch.no_grad()
        def run() -> object:
            return call(x)

        return run

    with threads(count):
        ratio = report(f"inference of {name}, batch 16, mask90, {count} thread(s)", contenders(name, "mask90", rivals, made), 5)
    assert ratio > 1
