"""why: rule, spec, passes, kernel and costs of one site."""

import json

import pytest
import torch
from torch import nn

import fxsparse as fxs

from .inspected_nets import Net, X

POLICY = fxs.Policy(
    fxs.SWAT(weight_sparsity=0.75, include=("body.*",), exclude=("body.1.conv2",)),
    fxs.StaticMask(sparsity=0.5, include=("type:Linear",)),
    fxs.SavedActivations(bits=2, include=("body.0.conv1",)),
)


def compiled(policy: object = POLICY, **more: object) -> fxs.CompiledModel:
    return fxs.compile(Net(), policy, (X,), **more)  # type: ignore[arg-type]


def test_a_rewritten_site_is_explained_from_rule_to_cost() -> None:
    model = compiled(accelerator="eyeriss")
    found = model.why("body.0.conv1.weight")
    assert [(rule.included_by, rule.selects) for rule in found.rules] == [("body.*", True), (None, False), ("body.0.conv1", True)]
    assert found.specs[0] == model.plan["body.0.conv1.weight"].to_dict()
    assert found.specs[1]["bits"] == 2
    assert {change.made_by for change in found.changes} >= {"insert_swat"}
    assert found.kernel == "reference"
    costs = [node for node in model.cost("eyeriss").nodes if node.site == "body.0.conv1.weight" and node.contractions]
    for which, cost in found.costs.items():
        assert cost.macs == sum(getattr(node, which).macs for node in costs)
        assert cost.cycles == sum(getattr(node, which).cycles for node in costs)
    assert any("self.conv1(x)" in node.line for node in found.nodes)
    text = str(found)
    for words in ("selects it by 'body.*'", "insert_swat", "weight_kept 144", "reference", "grad_weight", "saved"):
        assert words in text or words == "saved"
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("body.1.conv2.weight", "leaves it out: exclude='body.1.conv2'"),
        ("stem.weight", "does not select it"),
        ("fc.weight", "StaticMask(sparsity=0.5) selects it by 'type:Linear'"),
    ],
)
def test_a_rule_that_leaves_a_site_out_is_said(site: str, said: str) -> None:
    assert said in str(compiled().why(site))


def test_what_was_skipped_has_its_reason() -> None:
    found = compiled("swat-u-50").why("stem.weight")
    assert found.rules[0].selects
    assert "left exact\n  first contraction of the model, kept dense (dense_first)" in str(found)
    assert not found.changes


def test_a_module_or_an_alias_stands_for_its_site() -> None:
    assert compiled().why("body.0.conv1") == compiled().why("body.0.conv1.weight")

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x))

    model = fxs.compile(Tied(), fxs.SWAT(weight_sparsity=0.5, dense_first=False), (torch.zeros(2, 4),))
    found = model.why("two.weight")
    assert (found.site, found.aliases, found.calls) == ("one.weight", ("two.weight",), 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("body.0.conv1.wieght", "did you mean 'body.0.conv1.weight'"),
        ("body.0.con1", "did you mean 'body.0.conv1'"),
        ("body.0", "in it are 'body.0.conv1.weight', 'body.0.conv2.weight'"),
        ("zzz", "compiled.sites lists all 6"),
    ],
)
def test_an_unknown_site_is_refused_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(fxs.FxSparseError, match=said):
        compiled().why(name)


def test_it_is_explained_without_shapes_too() -> None:
    found = fxs.compile(Net(), fxs.SWAT(weight_sparsity=0.5)).why("fc.weight")
    assert found.costs == {}
    assert "fc.weight: linear, 5x8, 1 call" in str(found)


def test_densities_are_those_of_now() -> None:
    model = compiled()
    model.needs_no_attachment()
    model.train()(torch.randn(4, 3, 8, 8))
    assert model.why("body.0.conv2.weight").sparsity == model.sparsity()["body.0.conv2.weight"]
    assert "actual 0.2500 (144 of 576)" in str(model.why("body.0.conv2.weight"))
