"""Compiling leaves no trace on the model, its inputs or any random state, also when it fails."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxsparse as fxs

IMAGE = torch.randn(2, 3, 6, 6)


class Sensitive(nn.Module):
    """Batch norm, dropout, hooks, attributes of all kinds, and random draws of three generators."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.routed = Routed()
        self.head = nn.Linear(4, 2)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.log: list[float] = []
        self.cache: dict[str, list[Tensor]] = {"seen": []}
        self.meter = Meter()
        self.fails = fails
        self.conv.bias.requires_grad_(False)
        self.norm.register_forward_hook(lambda module, args, output: output)
        self.drop.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        x = self.drop(self.norm(self.conv(x))).mean((2, 3))
        if self.fails == "shape":
            x = x @ torch.ones(5, 5)
        return self.head(self.routed(x)) + torch.rand(1)


class Meter:
    def __init__(self) -> None:
        self.total = 0.0
        self.parts = [0.0]


class Routed(nn.Module):
    """Keeps its Python, and does everything that leaves traces."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.calls = 0
        self.meter = Meter()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.meter.total += 1.0
        self.meter.parts.append(random.random())
        torch.manual_seed(5)
        self.inner.eval()
        return self.inner(x) * float(np.random.rand()) * float(torch.rand(()) > 2 or 1.0)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that could change, as comparable values."""
    found: dict[str, Any] = {"numpy": pickle.dumps(np.random.get_state()), "python": random.getstate()}
    found["torch"] = torch.get_rng_state().tolist()
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if isinstance(value, Meter):
                value = (id(value), value.total, list(value.parts))
            if name in ("_parameters", "_buffers", "_modules"):
                value = {key: id(inner) for key, inner in value.items()}
            found[f"{path}.{name}"] = copy.copy(value) if isinstance(value, (list, set)) else repr(value)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[f"value {name}"] = (tensor.tolist(), tensor._version, tensor.requires_grad, tensor.grad is None, tensor.grad_fn)
    return found


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("policy", [None, fxs.SWAT(weight_sparsity=0.5, dense_first=False)], ids=["neutral", "sparse"])
def test_compile_leaves_no_trace(policy: Any, mode: bool) -> None:
    model = Sensitive().train(mode)
    model.drop.train(not mode)
    example = IMAGE.clone()
    before = state_of(model)
    compiled = fxs.compile(model, policy, (example,))
    assert state_of(model) == before
    assert torch.equal(example, IMAGE)
    assert example._version == 0
    assert not example.requires_grad
    assert compiled.drop.training is not mode


def test_recapture_at_run_time_draws_no_random_numbers() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + (torch.rand(4) if x.shape[1] > 3 else torch.randn(4))

    model = Sized()
    compiled = fxs.compile(model, None, (torch.randn(2, 5, 4),))
    torch.manual_seed(0)
    expected = [model(torch.ones(2, 2, 4)), torch.rand(3)]
    torch.manual_seed(0)
    found = [compiled(torch.ones(2, 2, 4)), torch.rand(3)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("model", "policy", "example"),
    [
        (Sensitive("shape"), None, (IMAGE,)),
        (Sensitive(), None, (torch.randn(2, 4, 6, 6),)),
        (Sensitive(), None, (IMAGE, IMAGE)),
        (Sensitive(), fxs.SWAT(weight_sparsity=0.5, include=("nothing.*",)), (IMAGE,)),
    ],
    ids=["bad model", "bad shape", "bad count", "bad policy"],
)
def test_failing_compile_leaves_no_trace(model: nn.Module, policy: Any, example: tuple[Tensor, ...]) -> None:
    before = state_of(model)
    with pytest.raises(fxs.FxSparseError):
        fxs.compile(model, policy, example)
    assert state_of(model) == before


def test_global_modes_are_as_before() -> None:
    functions = [torch.zeros, torch.is_grad_enabled, torch.manual_seed, torch.no_grad.__enter__, nn.Module.__call__, nn.Module.__getattr__]
    before = [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()]
    fxs.compile(Sensitive(), None, (IMAGE,))
    with pytest.raises(fxs.TraceError):
        fxs.compile(Sensitive("shape"), None, (IMAGE,))
    assert [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()] == before
    now = [torch.zeros, torch.is_grad_enabled, torch.manual_seed, torch.no_grad.__enter__, nn.Module.__call__, nn.Module.__getattr__]
    assert all(a is b for a, b in zip(functions, now, strict=True))


def test_model_and_compiled_share_tensors_and_nothing_else() -> None:
    model = Sensitive()
    compiled = fxs.compile(model, None, (IMAGE,))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        owner, _, last = name.rpartition(".")
        assert getattr(compiled.get_submodule(owner), last) is tensor
    compiled.conv.extra = 1
    compiled.log.append(2.0)
    compiled.head.weight = nn.Parameter(torch.zeros(2, 4))
    compiled.eval()
    assert not hasattr(model.conv, "extra")
    assert model.log == []
    assert model.head.weight.abs().sum() > 0
    assert model.training


def test_compile_under_no_grad_trains_as_any_other() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    with torch.no_grad():
        compiled = fxs.compile(model, None, (IMAGE,))
    fxs.check(compiled, model, (IMAGE,)).raise_if_different()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = fxs.compile(model, None, (IMAGE,))
    fxs.check(compiled, model, (IMAGE,)).raise_if_different()
