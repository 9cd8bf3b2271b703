"""FLOP reductions of the SWAT paper, and RigL's ERK densities, counted from the graphs that fxs.compile makes."""

from __future__ import annotations

import pytest
import torch
import torchvision

import fxsparse as fxs

X = torch.empty(1, 3, 224, 224)


@pytest.fixture(scope="module")
def resnet50() -> torch.nn.Module:
    return torchvision.models.resnet50()


@pytest.fixture(scope="module")
def wide_resnet50() -> torch.nn.Module:
    return torchvision.models.wide_resnet50_2()


def reduction(model: torch.nn.Module, **swat: object) -> tuple[str, str]:
    compiled = fxs.compile(model, fxs.SWAT(**swat), (X,))  # type: ignore[arg-type]
    saved = compiled.cost(convention="swat").reduction
    return f"{100 * saved['training']:.1f}", f"{100 * saved['inference']:.1f}"


@pytest.mark.parametrize(("sparsity", "training", "inference"), [(0.8, "76.1", "77.7"), (0.9, "85.6", "87.4")])
def test_resnet50_uniform(resnet50: torch.nn.Module, sparsity: float, training: str, inference: str) -> None:
    assert reduction(resnet50, weight_sparsity=sparsity) == (training, inference)


@pytest.mark.parametrize(("sparsity", "training", "inference"), [(0.5, "47.6", "48.6"), (0.6, "57.1", "58.3"), (0.7, "66.6", "68.0")])
def test_resnet50_structured(resnet50: torch.nn.Module, sparsity: float, training: str, inference: str) -> None:
    assert reduction(resnet50, weight_sparsity=sparsity, structure="kernel") == (training, inference)


@pytest.mark.parametrize(("sparsity", "training"), [(0.8, "78.6"), (0.9, "88.4")])
def test_wide_resnet50_uniform(wide_resnet50: torch.nn.Module, sparsity: float, training: str) -> None:
    assert reduction(wide_resnet50, weight_sparsity=sparsity)[0] == training


@pytest.mark.parametrize(("sparsity", "training"), [(0.5, "49.1"), (0.6, "58.9"), (0.7, "68.7")])
def test_wide_resnet50_structured(wide_resnet50: torch.nn.Module, sparsity: float, training: str) -> None:
    assert reduction(wide_resnet50, weight_sparsity=sparsity, structure="kernel")[0] == training


def test_erk_densities_of_resnet50_at_80_percent(resnet50: torch.nn.Module) -> None:
    compiled = fxs.compile(resnet50, fxs.SWAT(weight_sparsity=0.8, distribution="erk", dense_first=False), (X,))
    published = {
        "conv1": 0.8572,
        "layer1.0.conv1": 1.0,
        "layer1.0.conv2": 0.3619,
        "layer2.0.conv2": 0.1769,
        "layer2.0.conv3": 0.9753,
        "layer3.0.conv2": 0.0874,
        "layer4.0.conv2": 0.0435,
        "fc": 0.1482,
    }
    found = {name: round(compiled.plan[f"{name}.weight"].weight_density, 4) for name in published}
    assert found == published
    kept = sum(spec.weight_kept for spec in compiled.plan.values())
    total = sum(spec.weight_scores for spec in compiled.plan.values())
    assert kept == -(-total // 5)


def test_erk_test_flops_of_resnet50(resnet50: torch.nn.Module) -> None:
    for sparsity, multiplier in ((0.8, 0.4138), (0.9, 0.2418)):
        swat = fxs.SWAT(weight_sparsity=sparsity, distribution="erk", dense_first=False)
        forward = fxs.compile(resnet50, swat, (X,)).cost(convention="rigl").total.forward
        assert round(forward.macs / forward.dense_macs, 4) == multiplier
