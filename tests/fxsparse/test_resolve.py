"""From a policy to a plan: what patterns select, what is refused and why, and that a refusal leaves everything as it was."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fxsparse as fxs
from fxsparse.passes.distributions import erdos_renyi
from fxsparse.passes.specs import SwatSpec


def net() -> nn.Module:
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(3, 8, 3))
    model.add_module("layer1", nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)))
    model.add_module("flat", nn.Flatten())
    model.add_module("fc", nn.Linear(4 * 4 * 4, 10))
    return model


X = torch.randn(2, 3, 8, 8)
ALL = ["stem.weight", "layer1.0.weight", "layer1.2.weight", "fc.weight"]


def planned(*techniques: fxs.SWAT, model: nn.Module | None = None, x: Tensor = X) -> list[str]:
    return list(fxs.compile(model or net(), fxs.Policy(*techniques), (x,)).plan)


@pytest.mark.parametrize(
    ("patterns", "selected"),
    [
        ({}, ALL),
        ({"include": ("layer1.*",)}, ALL[1:3]),
        ({"include": ("layer1",)}, None),
        ({"include": ("fc",)}, ["fc.weight"]),
        ({"include": ("fc.weight",)}, ["fc.weight"]),
        ({"include": ("type:Linear",)}, ["fc.weight"]),
        ({"include": ("type:Conv2d",), "exclude": ("stem",)}, ALL[1:3]),
        ({"include": ("type:_Conv*",)}, ALL[:3]),
        ({"exclude": ("type:Linear", "*.2")}, ALL[:2]),
        ({"include": ("fc", "stem")}, ["stem.weight", "fc.weight"]),
    ],
)
def test_patterns(patterns: dict[str, Any], selected: list[str] | None) -> None:
    technique = fxs.SWAT(weight_sparsity=0.5, dense_first=False, **patterns)
    if selected is None:
        with pytest.raises(fxs.PolicyError, match="matches no contraction"):
            planned(technique)
    else:
        assert planned(technique) == selected


def test_techniques_apart_join() -> None:
    a = fxs.SWAT(weight_sparsity=0.5, include=("stem",), dense_first=False)
    b = fxs.SWAT(weight_sparsity=0.9, structure="filter", include=("fc",))
    compiled = fxs.compile(net(), fxs.Policy(a, b), (X,))
    assert {name: spec.weight_density for name, spec in compiled.plan.items()} == {"stem.weight": 0.5, "fc.weight": 0.1}
    assert compiled.plan["fc.weight"].structure == "filter"


# What is refused


class Shared(nn.Module):
    """Two Parameters over one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = nn.Parameter(self.a.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    return model


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)))


def spectral_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), parametrizations.spectral_norm(nn.Linear(4, 4)))


def spectral_normed_by_hook() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.utils.spectral_norm(nn.Linear(4, 4)))


SMALL = torch.randn(3, 4)


def swat(**settings: Any) -> fxs.SWAT:
    return fxs.SWAT(**{"weight_sparsity": 0.5, "dense_first": False, **settings})


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, Tensor, list[str]]] = {
    "misspelt include": (
        net,
        swat(include=("layr1.*",)),
        X,
        ["SWAT: the pattern 'layr1.*' matches no contraction", "did you mean", "'layer1."],
    ),
    "exclude that matches nothing": (net, swat(exclude=("fcc",)), X, ["the pattern 'fcc' matches no contraction", "'fc'"]),
    "misspelt type": (net, swat(include=("type:Liner",)), X, ["'type:Liner'", "did you mean 'type:Linear'"]),
    "nothing near": (net, swat(include=("qqq",)), X, ["'qqq'", "sites are, for instance"]),
    "all excluded": (
        net,
        swat(include=("fc",), exclude=("type:Linear",)),
        X,
        ["selects nothing", "include=('fc',)", "exclude=('type:Linear',)"],
    ),
    "no contraction at all": (lambda: nn.Sequential(nn.ReLU()), swat(), SMALL, ["nothing to do: no contraction with a parameter"]),
    "two techniques": (
        net,
        fxs.Policy(swat(), swat(include=("fc",), period=3)),
        X,
        ["two techniques want the weight 'fc.weight'", "exclude"],
    ),
    "shared memory": (Shared, swat(), SMALL, ["'a.weight' and 'b.weight'", "share memory", "make them one Parameter"]),
    "shared memory, two techniques": (Shared, fxs.Policy(swat(include=("a",)), swat(include=("b",))), SMALL, ["share memory"]),
    "parametrized": (parametrized, swat(), SMALL, ["1.", "parametrized", "remove_parametrizations", "exclude=('1"]),
    "weight norm": (weight_normed, swat(), SMALL, ["parametrized", "remove_parametrizations"]),
    "spectral norm": (spectral_normed, swat(), SMALL, ["parametrized", "remove_parametrizations"]),
    "spectral norm by hook": (spectral_normed_by_hook, swat(), SMALL, ["computed by a hook", "exclude=('1"]),
    "too sparse": (net, swat(weight_sparsity=0.9999, distribution="er"), X, ["keeps 1 weights in 4 layers", "lower the sparsity"]),
    "unknown preset": (net, "swat-u-91", X, ["neither a preset nor a policy file", "did you mean"]),
}


def snapshot(model: nn.Module) -> Any:
    """Everything about a model that one could see: tensors, their identities, attributes and hooks of every module."""
    tensors = {name: (id(t), t._version, t.detach().clone()) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    attributes = {
        name: {key: (id(item) if not isinstance(item, dict) else {k: id(v) for k, v in item.items()}) for key, item in vars(module).items()}
        for name, module in model.named_modules()
    }
    return tensors, attributes, {name: type(module) for name, module in model.named_modules()}


def assert_untouched(before: Any, model: nn.Module) -> None:
    after = snapshot(model)
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for name, (identity, version, values) in before[0].items():
        assert after[0][name][:2] == (identity, version)
        assert torch.equal(after[0][name][2], values)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_thing_and_the_remedy_and_touch_nothing(name: str) -> None:
    make, policy, x, texts = REFUSED[name]
    torch.manual_seed(0)
    model = make()
    before, states = snapshot(model), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    with pytest.raises(fxs.PolicyError) as caught:
        fxs.compile(model, policy, (x,))
    for text in texts:
        assert text in str(caught.value)
    assert_untouched(before, model)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


@pytest.mark.parametrize("make", [parametrized, weight_normed, spectral_normed, spectral_normed_by_hook, Shared])
def test_models_in_a_strange_state_compile_unchanged(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    compiled = fxs.compile(model, None, (SMALL,))
    for train in (True, False):
        assert fxs.check(compiled, model, (SMALL,), train=train).equal


@pytest.mark.parametrize("make", [parametrized, weight_normed, spectral_normed_by_hook])
def test_the_remedy_works(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert list(fxs.compile(make(), swat(exclude=("1*",)), (SMALL,)).plan) == ["0.weight"]


def test_removing_a_parametrization_works_too() -> None:
    model = parametrized()
    parametrize.remove_parametrizations(model[1], "weight")
    assert list(fxs.compile(model, swat(), (SMALL,)).plan) == ["0.weight", "1.weight"]


def test_making_shared_memory_one_parameter_works() -> None:
    model = Shared()
    model.b.weight = model.a.weight
    assert list(fxs.compile(model, swat(), (SMALL,)).plan) == ["a.weight", "c.weight"]


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4)), fxs.FxSparseError),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to("meta"), fxs.FxSparseError),
    ],
    ids=["lazy", "meta"],
)
def test_models_without_weights_are_refused(make: Callable[[], nn.Module], kinds: Any) -> None:
    model = make()
    with pytest.raises(kinds):
        fxs.compile(model, swat(), (SMALL,))


# What is skipped, with its reason


def reasons(model: nn.Module, x: Tensor, **settings: Any) -> dict[str, str]:
    return {skip.site: skip.reason for skip in fxs.compile(model, swat(**settings), (x,)).report.skips}


def test_frozen_weights_are_left_alone() -> None:
    model = net()
    model.layer1.requires_grad_(False)
    assert reasons(model, X) == dict.fromkeys(ALL[1:3], "frozen: its weight needs no gradient")


def test_the_first_contraction_stays_dense_by_the_order_of_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    assert reasons(Backwards(), SMALL, dense_first=True) == {"first.weight": "first contraction of the model, kept dense (dense_first)"}


def test_complex_weights_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64))
    assert "torch.complex64" in reasons(model, SMALL.to(torch.complex64))["0.weight"]


def test_a_structure_needs_the_weight_as_it_is_stored() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.t())

    assert "needs the weight as it is stored" in reasons(Viewed(), SMALL, structure="filter")["weight"]
    assert reasons(Viewed(), SMALL) == {}


# NaN and inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("structure", ["element", "kernel", "filter"])
def test_a_weight_that_is_not_finite_is_named(structure: str, bad: float) -> None:
    torch.manual_seed(0)
    model = net()
    compiled = fxs.compile(model, swat(structure=structure), (X,))
    with torch.no_grad():
        model.layer1[0].weight[1, 2, 0, 1] = bad
    with pytest.raises(fxs.NumericalError, match=r"layer1\.0\.weight: 1 of 576 values are NaN or inf"):
        compiled(X)
    threshold = compiled.get_buffer("fxsparse.sites.layer1.0.weight.weight_threshold")
    assert threshold.isnan()
    with torch.no_grad():
        model.layer1[0].weight[1, 2, 0, 1] = 0.0
    assert compiled(X).isfinite().all()


@pytest.mark.parametrize("granularity", ["tensor", "sample", "channel", "sample_channel"])
def test_activations_that_are_not_finite_do_not_poison_a_threshold(granularity: str) -> None:
    torch.manual_seed(0)
    compiled = fxs.compile(nn.Sequential(nn.Conv2d(3, 4, 3)), swat(granularity=granularity), (X,))
    x = X.clone()
    x[0, 0, 0, 0], x[1, 2, 3, 3] = math.nan, math.inf
    compiled(x)
    threshold = compiled.get_buffer("fxsparse.sites.0.weight.activation_threshold_0")
    if "sample" not in granularity:
        finite = [x[:, c][x[:, c].isfinite()] for c in range(3)] if granularity == "channel" else [x[x.isfinite()]]
        expected = [float(part.abs().sort(descending=True).values[math.ceil(part.numel() / 2) - 1]) for part in finite]
        assert threshold.flatten().tolist() == pytest.approx(expected)
    (grad,) = torch.autograd.grad(compiled(X).sum(), compiled.get_parameter("0.weight"))
    assert grad.isfinite().all()


# Numbers of the plan


def test_erk_of_resnet50_is_the_published_one() -> None:
    """RigL's ERK at 80 %, through fxs.compile and through the function: the densities of its definition, to four digits."""
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet50()
    policy = fxs.SWAT(weight_sparsity=0.8, distribution="erk", dense_first=False)
    plan = fxs.compile(model, policy, (torch.empty(2, 3, 224, 224),)).plan
    expected = {
        "conv1": 0.8572, "layer1.0.conv1": 1.0, "layer1.0.conv2": 0.3619, "layer2.0.conv2": 0.1769, "layer2.0.conv3": 0.9753,
        "layer3.0.conv2": 0.0874, "layer4.0.conv2": 0.0435, "fc": 0.1482,
    }  # fmt: skip
    assert {name: round(plan[f"{name}.weight"].weight_density, 4) for name in expected} == expected
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    counts = erdos_renyi(shapes, 0.8, kernel=True)
    assert {name: spec.weight_kept for name, spec in plan.items()} == counts
    total = sum(math.prod(shape) for shape in shapes.values())
    assert total == 25_502_912
    assert sum(counts.values()) == math.ceil(total / 5)
    saturated = [name for name in counts if counts[name] == math.prod(shapes[name])]
    assert "layer1.0.conv1.weight" in saturated
    assert "layer2.0.conv3.weight" not in saturated


@settings(max_examples=40)
@given(st.floats(0.0, 0.99), st.sampled_from(["element", "kernel", "filter"]), st.sampled_from(["uniform", "er", "erk"]))
def test_densities_are_at_least_what_was_asked(sparsity: float, structure: str, distribution: str) -> None:
    compiled = fxs.compile(net(), swat(weight_sparsity=sparsity, structure=structure, distribution=distribution), (X,))
    for name, spec in compiled.plan.items():
        assert 0 < spec.weight_kept <= spec.weight_scores, name
        if distribution == "uniform":
            assert spec.weight_density >= 1 - sparsity - 1e-6
            assert spec.weight_density < 1 - sparsity + 1 / spec.weight_scores + 1e-6
            assert spec.activation_sparsity == sparsity
        else:
            assert spec.activation_sparsity == pytest.approx(1 - spec.weight_density, abs=1 / spec.weight_scores)


def test_the_plan_cannot_be_changed() -> None:
    compiled = fxs.compile(net(), swat(), (X,))
    with pytest.raises(TypeError):
        compiled.plan["fc.weight"] = None  # type: ignore[index]
    with pytest.raises(AttributeError):
        compiled.plan["fc.weight"].groups = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_kept": 11}, {"weight_kept": -1}, {"weight_scores": 0, "weight_kept": 0}, {"activation_sparsity": 1.0},
        {"structure": "block"}, {"granularity": "row"}, {"distribution": "lamp"}, {"weight_period": 0}, {"activation_period": -3},
    ],
)  # fmt: skip
def test_specs_check_themselves(settings: dict[str, Any]) -> None:
    good: dict[str, Any] = {"site": "a.weight", "weight_kept": 3, "weight_scores": 10, "activation_sparsity": 0.5}
    spec = SwatSpec(**good)
    assert (spec.weight_density, spec.activation_density, spec.sparsifies_weight, spec.sparsifies_activation) == (0.3, 0.5, True, True)
    assert spec.to_dict()["technique"] == "SWAT"
    with pytest.raises(ValueError, match=r"a\.weight: "):
        SwatSpec(**{**good, **settings})


def test_a_compiled_model_is_not_compiled_again() -> None:
    compiled = fxs.compile(net(), swat(), (X,))
    before = copy.deepcopy(compiled.state_dict())
    with pytest.raises(fxs.FxSparseError, match="compiled already"):
        fxs.compile(compiled, swat(), (X,))
    assert all(
        torch.equal(a.nan_to_num(3.0), b.nan_to_num(3.0)) for a, b in zip(before.values(), compiled.state_dict().values(), strict=True)
    )
