"""Prices that are not recorded, against the recorder: calls that are alike, plain convolutions, and the meta device."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxsparse.passes.pricing import calls
from fxsparse.passes.pricing.calls import CallPricer
from fxsparse.passes.pricing.keys import Held
from fxsparse.passes.pricing.price import Price
from fxsparse.passes.pricing.recording import spec_of

BATCH = 1013


def held(shape: Sequence[int], learns: bool, dtype: torch.dtype, channels_last: bool, name: str = "x") -> Held:
    empty = torch.empty(shape, device="meta", dtype=dtype)
    if channels_last and len(shape) == 4:
        empty = empty.contiguous(memory_format=torch.channels_last)
    return Held(spec_of(empty)._replace(device=torch.device("cpu"), requires_grad=learns), (name, 0), node=name)


def recorded(monkeypatch: pytest.MonkeyPatch, target: Any, arguments: tuple[Any, ...]) -> Price:
    """The price by a recording on fake CPU tensors, with nothing known before."""
    with monkeypatch.context() as patch:
        patch.setattr(calls, "device_free", lambda _: False)
        pricer = CallPricer(BATCH, exclusive=True)
        patch.setattr(pricer, "_alike", Ignorant())
        return price(pricer, target, arguments)


def price(pricer: CallPricer, target: Any, arguments: tuple[Any, ...]) -> Price:
    if isinstance(target, nn.Module):
        return pricer.module(target, arguments, {}, {}).price
    return pricer.function(target, arguments, {}).price


class Ignorant:
    """Knows of no call that is like another."""

    def convolution(self, *_: Any) -> None:
        return None

    def key_of(self, *_: Any) -> None:
        return None


MODULES: dict[str, Callable[[int], nn.Module]] = {
    "ReLU": lambda _: nn.ReLU(),
    "ReLU in place": lambda _: nn.ReLU(inplace=True),
    "Hardswish": lambda _: nn.Hardswish(),
    "GELU": lambda _: nn.GELU(),
    "SiLU in place": lambda _: nn.SiLU(inplace=True),
    "Dropout": lambda _: nn.Dropout(0.3),
    "Dropout, eval": lambda _: nn.Dropout(0.3).eval(),
    "BatchNorm2d": nn.BatchNorm2d,
    "BatchNorm2d, eval": lambda channels: nn.BatchNorm2d(channels).eval(),
    "BatchNorm2d, frozen": lambda channels: nn.BatchNorm2d(channels).requires_grad_(False),
    "BatchNorm2d, no statistics": lambda channels: nn.BatchNorm2d(channels, track_running_stats=False),
    "BatchNorm2d, not affine": lambda channels: nn.BatchNorm2d(channels, affine=False),
}
SIZES = ((6, 5, 5), (9, 4, 4), (20, 3, 7), (6, 8, 2))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_modules_of_other_sizes_cost_what_is_recorded(
    make: Callable[[int], nn.Module], learns: bool, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pricer = CallPricer(BATCH, exclusive=True)
    for size in SIZES:
        module, x = make(size[0]), held((BATCH, *size), learns, torch.float32, channels_last)
        assert price(pricer, module, (x,)) == recorded(monkeypatch, module, (x,)), size


@pytest.mark.parametrize("function", [operator.add, operator.iadd, operator.mul, torch.add, F.relu, F.gelu])
@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_functions_of_other_sizes_cost_what_is_recorded(
    function: Callable[..., Any], first: bool, second: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pricer = CallPricer(BATCH, exclusive=True)
    for size in SIZES:
        shape = (BATCH, *size)
        arguments: tuple[Any, ...] = (held(shape, first, torch.float32, False),)
        if function not in (F.relu, F.gelu):
            arguments += (held(shape, second, torch.float32, False, "y"),)
        assert price(pricer, function, arguments) == recorded(monkeypatch, function, arguments), size


def test_other_arguments_are_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    pricer = CallPricer(BATCH, exclusive=True)
    for size in SIZES:
        x = held((BATCH, *size), True, torch.float32, False)
        y = held((BATCH, 1, 1, 1), True, torch.float32, False, "y")
        half = held((BATCH, *size), True, torch.bfloat16, False, "z")
        for arguments in ((x, x), (x, y), (x, 2.0), (x, half)):
            assert price(pricer, operator.mul, arguments) == recorded(monkeypatch, operator.mul, arguments), (size, arguments)


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (4, 9)),
    "2d": (lambda: nn.Conv2d(4, 6, (3, 1), padding=(1, 0), bias=False), (4, 7, 8)),
    "3d": (lambda: nn.Conv3d(2, 3, 2, dilation=2), (2, 5, 6, 7)),
    "groups": (lambda: nn.Conv2d(8, 4, 3, groups=4, stride=3), (8, 10, 7)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8, padding=1), (8, 5, 5)),
    "frozen": (lambda: nn.Conv2d(4, 6, 3).requires_grad_(False), (4, 5, 5)),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (4, 5, 5)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 5, 5)),
    "bfloat16": (lambda: nn.Conv2d(4, 6, 3).bfloat16(), (4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), (4, 5, 5)),
    "linear": (lambda: nn.Linear(4, 6), (5, 4)),
    "layer norm": (lambda: nn.LayerNorm(4), (5, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 5)),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), (4, 7, 7)),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d(1), (4, 7, 7)),
    "softmax": (lambda: nn.Softmax(-1), (4, 7)),
    "flatten": (lambda: nn.Flatten(), (4, 7)),
}


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize(("make", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_layers_cost_what_is_recorded(
    make: Callable[[], nn.Module], shape: tuple[int, ...], learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make()
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    for channels_last in (False, True):
        x = held((BATCH, *shape), learns, dtype, channels_last)
        assert price(CallPricer(BATCH, exclusive=True), module, (x,)) == recorded(monkeypatch, module, (x,)), channels_last


def test_resized_prices_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pricer = CallPricer(BATCH, exclusive=True)
    count = 0
    record = pricer._record

    def counting(*arguments: Any) -> Price:
        nonlocal count
        count += 1
        return record(*arguments)

    monkeypatch.setattr(pricer, "_record", counting)
    for size in SIZES:
        for target in (nn.ReLU(), nn.BatchNorm2d(size[0]), nn.Conv2d(size[0], 4, 2)):
            price(pricer, target, (held((BATCH, *size), True, torch.float32, False),))
    assert count == 3
