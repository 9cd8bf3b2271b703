"""Each rule of the verifier has a graph that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxsparse as fxs
from fxsparse.errors import VerificationError
from fxsparse.passes import meta
from fxsparse.passes.ops import OPS
from fxsparse.passes.verify import RULES, verify


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, padding="same")
        self.wrapped = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.fc, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.fc(self.wrapped(self.conv(x)).mean((2, 3))))


def graph_module(**settings: Any) -> fx.GraphModule:
    policy = fxs.SWAT(**{"weight_sparsity": 0.5, "dense_first": False, **settings})
    return fxs.compile(Net(), policy, (torch.randn(2, 3, 5, 5),)).graphs[""]


def nodes(gm: fx.GraphModule, target: Any) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if node.target is target]


def set_arg(node: fx.Node, index: int, argument: Any) -> None:
    node.args = (*node.args[:index], argument, *node.args[index + 1 :])


def packet(gm: fx.GraphModule) -> None:
    nodes(gm, OPS.swat_linear.default)[0].target = OPS.swat_linear


def too_few_arguments(gm: fx.GraphModule) -> None:
    node = nodes(gm, OPS.sparsify.default)[0]
    node.args = node.args[:3]


def too_many_arguments(gm: fx.GraphModule) -> None:
    node = nodes(gm, OPS.sparsify.default)[0]
    node.args = (*node.args, 1)


def missing_attribute(gm: fx.GraphModule) -> None:
    next(node for node in gm.graph.nodes if node.target == "fc.weight").target = "fc.wait"


def missing_state(gm: fx.GraphModule) -> None:
    next(node for node in gm.graph.nodes if "weight_threshold" in str(node.target)).target = "fxsparse.sites.no.weight"


def weight_is_an_activation(gm: fx.GraphModule) -> None:
    node = nodes(gm, OPS.swat_linear.default)[1]
    set_arg(node, 2, node.args[0])


def weight_is_a_constant(gm: fx.GraphModule) -> None:
    set_arg(nodes(gm, OPS.swat_linear.default)[0], 2, 3)


def weight_is_state(gm: fx.GraphModule) -> None:
    state = next(node for node in gm.graph.nodes if "weight_density" in str(node.target))
    set_arg(nodes(gm, OPS.swat_linear.default)[0], 2, state)


def keeps_another_activation(gm: fx.GraphModule) -> None:
    first, second = nodes(gm, OPS.swat_linear.default)
    for index in (1, 5, 6):
        set_arg(second, index, first.args[index])


def keeps_a_dense_tensor(gm: fx.GraphModule) -> None:
    first, second = nodes(gm, OPS.swat_linear.default)
    set_arg(second, 1, first.args[0])


def keeps_the_values_of_another(gm: fx.GraphModule) -> None:
    first, second = nodes(gm, OPS.swat_linear.default)
    set_arg(second, 5, first.args[5])


def reads_another_scheme(gm: fx.GraphModule) -> None:
    set_arg(nodes(gm, OPS.swat_linear.default)[0], 4, "bitmap:4:256")


def keeps_what_was_not_padded(gm: fx.GraphModule) -> None:
    pack = nodes(gm, OPS.pack_sparse.default)[0]
    detached: Any = pack.args[0]
    detached.args = (detached.args[0].args[0],)


def makes_its_weight_of_another(gm: fx.GraphModule) -> None:
    first, second = nodes(gm, OPS.swat_linear.default)
    set_arg(second, 7, first.args[7])


def threshold_of_another(gm: fx.GraphModule) -> None:
    thresholds = nodes(gm, OPS.refresh_threshold.default)
    set_arg(nodes(gm, OPS.pack_sparse.default)[-1], 1, thresholds[0])


def threshold_out_of_nowhere(gm: fx.GraphModule) -> None:
    set_arg(nodes(gm, OPS.sparsify.default)[0], 1, nodes(gm, OPS.refresh_threshold.default)[0].args[1])


def scores_otherwise(gm: fx.GraphModule) -> None:
    set_arg(nodes(gm, OPS.sparsify.default)[0], 2, [1])


def stores_in_the_model(gm: fx.GraphModule) -> None:
    weight = next(node for node in gm.graph.nodes if node.target == "conv.bias")
    node = nodes(gm, OPS.refresh_threshold.default)[-1]
    set_arg(node, 1, weight)


def measures_with_a_gradient(gm: fx.GraphModule) -> None:
    node = nodes(gm, OPS.refresh_threshold.default)[0]
    detached: Any = node.args[0]
    set_arg(node, 0, detached.args[0])


def metadata_not_plain(gm: fx.GraphModule) -> None:
    node = nodes(gm, OPS.swat_linear.default)[0]
    node.meta["custom"] = {meta.KEY: {"site": "fc.weight", "role": torch.Size}}


def metadata_missing(gm: fx.GraphModule) -> None:
    nodes(gm, OPS.swat_linear.default)[0].meta.pop("custom")


def unused(gm: fx.GraphModule) -> None:
    first, second = nodes(gm, OPS.swat_linear.default)
    second.replace_all_uses_with(first)


BROKEN: list[tuple[str, Callable[[fx.GraphModule], None], str]] = [
    ("operators are called by overload", packet, "not an overload such as fxsparse.swat_linear.default"),
    ("fxsparse operators get the arguments of their schema", too_few_arguments, "got 3 positional"),
    ("fxsparse operators get the arguments of their schema", too_many_arguments, "got 6 positional"),
    ("attributes and modules exist", missing_attribute, "'fc.wait' does not exist"),
    ("attributes and modules exist", missing_state, "does not exist"),
    ("a SWAT contraction multiplies with a parameter", weight_is_an_activation, "neither a parameter nor a sparsified parameter"),
    ("a SWAT contraction multiplies with a parameter", weight_is_a_constant, "its weight is not a node"),
    ("a SWAT contraction multiplies with a parameter", weight_is_state, "neither a parameter nor a sparsified parameter"),
    ("a SWAT contraction keeps its own activation", keeps_another_activation, "but keeps"),
    ("a SWAT contraction keeps its own activation", keeps_a_dense_tensor, "neither its activation nor a packed one"),
    ("a SWAT contraction keeps its own activation", keeps_the_values_of_another, "with the values of"),
    ("a SWAT contraction keeps its own activation", reads_another_scheme, "which is packed as"),
    ("a SWAT contraction keeps its own activation", keeps_what_was_not_padded, "but keeps"),
    ("a sparse weight is made anew as it was made", makes_its_weight_of_another, "would make it of"),
    ("a threshold is applied to what it was selected on", threshold_of_another, "its threshold was selected on"),
    ("a threshold is applied to what it was selected on", threshold_out_of_nowhere, "not a refresh_threshold"),
    ("a threshold is applied to what it was selected on", scores_otherwise, "it scores other dimensions"),
    ("thresholds are kept in fxsparse's buffers", stores_in_the_model, "not one of the buffers that fxsparse adds"),
    ("thresholds are kept in fxsparse's buffers", measures_with_a_gradient, "not detached"),
    ("metadata is plain and complete", metadata_not_plain, "not JSON-able"),
    ("metadata is plain and complete", metadata_missing, "lacks ['role', 'site']"),
    ("what fxsparse inserts is used", unused, "nothing uses it"),
]


@pytest.mark.parametrize(("rule", "damage", "text"), BROKEN, ids=[damage.__name__ for _, damage, _ in BROKEN])
def test_a_broken_rule_is_named(rule: str, damage: Callable[[fx.GraphModule], None], text: str) -> None:
    gm = graph_module()
    damage(gm)
    with pytest.raises(VerificationError) as caught:
        verify(gm, "encoder")
    assert f"rule {rule!r} is broken" in str(caught.value)
    assert text in str(caught.value)
    assert "graph encoder, node " in str(caught.value)


def test_each_rule_can_be_broken() -> None:
    of_masks = {"a weight is masked by its own mask", "a masked weight is read masked everywhere"}  # broken beside the pass
    assert {rule for rule, _, _ in BROKEN} | of_masks == {rule.name for rule in RULES}


@pytest.mark.parametrize(
    "settings", [{}, {"structure": "filter"}, {"granularity": "channel"}, {"activation_sparsity": 0.0}, {"weight_sparsity": 0.0}]
)
def test_what_the_pass_makes_breaks_none(settings: dict[str, Any]) -> None:
    settings = {"activation_sparsity": 0.5, **settings}
    verify(graph_module(**settings))
