"""Masks are those of an independent reference, bit for bit, update by update."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsparse as fxs

from .mask_reference import Reference

INTERVAL, UPDATES = 2, 32
STEPS = INTERVAL * UPDATES


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )


WEIGHTS = ("0.weight", "3.weight", "7.weight", "9.weight")
OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "Adam": lambda p: torch.optim.Adam(p, lr=3e-3, weight_decay=1e-4, amsgrad=True),
}
GRADUAL: dict[str, Any] = {"begin": 4, "end": 40, "interval": INTERVAL}
EXCHANGE: dict[str, Any] = {"sparsity": 0.8, "end": STEPS - 4, "interval": INTERVAL}
METHODS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "granet, sparse start": (
        fxs.GraNet(initial_sparsity=0.5, final_sparsity=0.9, total_steps=STEPS, **GRADUAL),
        "granet",
        {"initial": 0.5, "final": 0.9, "total": STEPS, "rate": 0.5, "scope": "global", **GRADUAL},
    ),
    "granet, dense start": (
        fxs.GraNet(initial_sparsity=0.0, final_sparsity=0.95, total_steps=STEPS, prune_rate=0.3, **GRADUAL),
        "granet",
        {"initial": 0.0, "final": 0.95, "total": STEPS, "rate": 0.3, "scope": "global", **GRADUAL},
    ),
    "granet, by layer": (
        fxs.GraNet(initial_sparsity=0.0, final_sparsity=0.9, total_steps=STEPS, scope="layer", **GRADUAL),
        "granet",
        {"initial": 0.0, "final": 0.9, "total": STEPS, "rate": 0.5, "scope": "layer", **GRADUAL},
    ),
    "gmp": (
        fxs.GMP(final_sparsity=0.9, scope="global", begin=0, end=STEPS, interval=INTERVAL),
        "gmp",
        {"initial": 0.0, "final": 0.9, "scope": "global", "begin": 0, "end": STEPS, "interval": INTERVAL},
    ),
    "gmp, by layer": (
        fxs.GMP(final_sparsity=0.9, scope="layer", begin=0, end=STEPS, interval=INTERVAL),
        "gmp",
        {"initial": 0.0, "final": 0.9, "scope": "layer", "begin": 0, "end": STEPS, "interval": INTERVAL},
    ),
    "rigl": (fxs.RigL(**EXCHANGE), "rigl", {"fraction": 0.3, "end": STEPS - 4, "interval": INTERVAL}),
    "set": (fxs.SET(**EXCHANGE, seed=3), "set", {"fraction": 0.3, "end": STEPS - 4, "interval": INTERVAL, "seed": 3}),
    "static": (fxs.StaticMask(sparsity=0.8), "static", {}),
}


def masks_of(compiled: fxs.CompiledModel) -> dict[str, Tensor]:
    return {name: compiled.get_buffer(f"fxsparse.sites.{name}.mask") for name in compiled.masks}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_masks_weights_and_state_are_those_of_the_reference(method: str, optimizer: str) -> None:
    technique, name, settings = METHODS[method]
    model = network()
    compiled = fxs.compile(copy.deepcopy(model), technique, (torch.randn(8, 3, 8, 8),))
    assert tuple(compiled.masks) == WEIGHTS
    own = OPTIMIZERS[optimizer](compiled.parameters())
    compiled.attach(own)
    weights = {key: model.get_parameter(key) for key in WEIGHTS}
    theirs = OPTIMIZERS[optimizer](model.parameters())
    reference = Reference(model, weights, theirs, masks_of(compiled), name, **settings)
    with torch.no_grad():
        for key in WEIGHTS:  # the reference starts masked; a compiled model masks its weights at the first step
            compiled.get_parameter(key).mul_(reference.masks[key])

    generator = torch.Generator().manual_seed(1)
    updates = moved = 0
    for step in range(STEPS):
        x, y = torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator)
        own.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        own.step()
        before = {key: mask.clone() for key, mask in reference.masks.items()}
        updates += reference.step(F.cross_entropy(model(x), y))
        for key, mask in masks_of(compiled).items():
            assert torch.equal(mask, reference.masks[key]), f"the mask of {key} after step {step + 1}"
            assert torch.equal(compiled.get_parameter(key), weights[key]), f"{key} after step {step + 1}"
            for entry, value in theirs.state[weights[key]].items():
                if isinstance(value, Tensor):
                    assert torch.equal(own.state[compiled.get_parameter(key)][entry], value), f"{entry} of {key} after step {step + 1}"
            moved += not torch.equal(mask, before[key])
    if name != "static":
        assert updates >= 30
        assert moved >= 30, "updates that change nothing show nothing"


def test_the_first_masks_are_random_with_erk_densities() -> None:
    compiled = fxs.compile(network(), fxs.RigL(sparsity=0.8, end=100), (torch.randn(8, 3, 8, 8),))
    again = fxs.compile(network(), fxs.RigL(sparsity=0.8, end=100), (torch.randn(8, 3, 8, 8),))
    other = fxs.compile(network(), fxs.RigL(sparsity=0.8, end=100, seed=1), (torch.randn(8, 3, 8, 8),))
    for key, mask in masks_of(compiled).items():
        assert torch.equal(mask, masks_of(again)[key])
        assert bool(mask.all()) or not torch.equal(mask, masks_of(other)[key])
        assert int(mask.sum()) == int(masks_of(other)[key].sum()) == compiled.masks[key].kept
    sizes = [compiled.get_parameter(key).numel() for key in WEIGHTS]
    assert sum(spec.kept for spec in compiled.masks.values()) == -(-sum(sizes) * 2 // 10)
    density = {key: compiled.masks[key].weight_density for key in WEIGHTS}
    assert density["9.weight"] > density["7.weight"]
    assert 0 < density["7.weight"] < 1
