"""What a pass may claim, and what happens to one that claims what it did not do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

import fxsparse as fxs
from fxsparse.errors import PassError
from fxsparse.passes.base import Change, GraphPass, PassResult, Skip


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).neg()


def graph_module() -> fx.GraphModule:
    return fx.symbolic_trace(Net())


def node_named(gm: fx.GraphModule, name: str) -> fx.Node:
    return next(node for node in gm.graph.nodes if node.name == name)


class Edit(GraphPass):
    """Does one thing and says another."""

    def __init__(self, edit: Callable[[fx.GraphModule], None], *claims: Change | Skip) -> None:
        self.edit = edit
        self.claims = claims

    def rewrite(self, gm: fx.GraphModule) -> tuple[Change | Skip, ...]:
        self.edit(gm)
        return self.claims


def insert(gm: fx.GraphModule) -> None:
    neg = node_named(gm, "neg")
    with gm.graph.inserting_before(neg):
        neg.replace_input_with(node_named(gm, "relu"), gm.graph.call_function(torch.abs, (node_named(gm, "relu"),)))


def rewire(gm: fx.GraphModule) -> None:
    node_named(gm, "neg").replace_input_with(node_named(gm, "relu"), node_named(gm, "x"))


def remove(gm: fx.GraphModule) -> None:
    rewire(gm)
    gm.graph.erase_node(node_named(gm, "relu"))


def retarget(gm: fx.GraphModule) -> None:
    node_named(gm, "relu").target = torch.abs


def nothing(gm: fx.GraphModule) -> None:
    pass


def claim(**names: tuple[str, ...]) -> Change:
    return Change(site="", node="neg", what="test", why="test", **names)


TRUE = [
    (nothing, ()),
    (nothing, (Skip(site="a", reason="not today"),)),
    (insert, (claim(added=("abs_1",), rewired=("neg",)),)),
    (insert, (claim(added=("abs_1",)), claim(rewired=("neg",)))),
    (rewire, (claim(rewired=("neg",)),)),
    (remove, (claim(removed=("relu",), rewired=("neg",)),)),
    (retarget, (claim(rewired=("relu",)),)),
]
FALSE = [
    (insert, (), "added but not reported ['abs_1']"),
    (insert, (claim(added=("abs_1",)),), "rewired but not reported ['neg']"),
    (insert, (Skip(site="a", reason="left alone"),), "added but not reported ['abs_1']"),
    (nothing, (claim(added=("abs_1",)),), "reported but not added ['abs_1']"),
    (nothing, (claim(rewired=("neg",)),), "reported but not rewired ['neg']"),
    (rewire, (claim(removed=("relu",), rewired=("neg",)),), "reported but not removed ['relu']"),
    (remove, (claim(rewired=("neg",)),), "removed but not reported ['relu']"),
    (retarget, (), "rewired but not reported ['relu']"),
    (rewire, (), "rewired but not reported ['neg']"),
]


@pytest.mark.parametrize(("edit", "claims"), TRUE)
def test_true_claims_pass(edit: Callable[[fx.GraphModule], None], claims: tuple[Change | Skip, ...]) -> None:
    gm = graph_module()
    result = Edit(edit, *claims)(gm)
    assert result == PassResult(
        name="edit",
        changes=tuple(replace(c, made_by="edit") for c in claims if isinstance(c, Change)),
        skips=tuple(c for c in claims if isinstance(c, Skip)),
    )


@pytest.mark.parametrize(("edit", "claims", "text"), FALSE)
def test_false_claims_do_not(edit: Callable[[fx.GraphModule], None], claims: tuple[Change | Skip, ...], text: str) -> None:
    with pytest.raises(PassError) as caught:
        Edit(edit, *claims)(graph_module())
    assert "pass edit reports other changes than it made" in str(caught.value)
    assert text in str(caught.value)


def test_an_ill_formed_graph_is_an_error_of_the_pass() -> None:
    def use_before_definition(gm: fx.GraphModule) -> None:
        node_named(gm, "relu").args = (node_named(gm, "neg"),)

    with pytest.raises(PassError, match="pass edit left an ill-formed graph"):
        Edit(use_before_definition, claim(rewired=("relu",)))(graph_module())


def test_the_code_is_that_of_the_graph() -> None:
    gm, x = graph_module(), torch.tensor([-2.0, 3.0])
    Edit(rewire, claim(rewired=("neg",)))(gm)
    assert gm(x).tolist() == [2.0, -3.0]


def test_conditions_are_asked_before_and_after() -> None:
    seen: list[str] = []

    class InsertNothing(GraphPass):
        def requires(self, gm: fx.GraphModule) -> None:
            seen.append("requires")

        def rewrite(self, gm: fx.GraphModule) -> tuple[Change | Skip, ...]:
            seen.append("rewrite")
            return ()

        def ensures(self, gm: fx.GraphModule) -> None:
            seen.append("ensures")

    assert InsertNothing()(graph_module()).name == "insert_nothing"
    assert seen == ["requires", "rewrite", "ensures"]


# Passes of the user's, through compile


class AbsInsteadOfRelu(GraphPass):
    """A pass as a user would write one."""

    def rewrite(self, gm: fx.GraphModule) -> tuple[Change | Skip, ...]:
        found = [node for node in gm.graph.nodes if node.target is torch.relu]
        for node in found:
            node.target = torch.abs
        return tuple(Change(site="", node=node.name, what="abs", why="asked for", rewired=(node.name,)) for node in found)


class Lies(GraphPass):
    def rewrite(self, gm: fx.GraphModule) -> tuple[Change | Skip, ...]:
        AbsInsteadOfRelu().rewrite(gm)
        return ()


class Breaks(GraphPass):
    """Reports what it does, and leaves a graph that breaks a rule."""

    def rewrite(self, gm: fx.GraphModule) -> tuple[Change | Skip, ...]:
        node = next(node for node in gm.graph.nodes if node.target is torch.relu)
        node.op, node.target, node.args = "get_attr", "no_such_attribute", ()
        return (Change(site="", node=node.name, what="broken", why="a test", rewired=(node.name,)),)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def test_extra_passes_run_on_every_graph_after_the_others() -> None:
    torch.manual_seed(0)
    model, x = TwoLayers(), torch.randn(3, 4)
    compiled = fxs.compile(model, None, (x,), extra_passes=(AbsInsteadOfRelu(),))
    torch.testing.assert_close(compiled(x), model.b(model.a(x).abs()))
    assert [change.what for change in compiled.report.changes] == ["abs"]
    compiled = fxs.compile(model, fxs.SWAT(weight_sparsity=0.5, activation_sparsity=0.0), (x,), extra_passes=(AbsInsteadOfRelu(),))
    assert [change.site for change in compiled.report.changes] == ["b.weight", ""]
    torch.testing.assert_close(model(x), model.b(model.a(x).relu()))


def test_a_pass_that_lies_is_caught() -> None:
    model, x = TwoLayers(), torch.randn(3, 4)
    with pytest.raises(PassError, match="pass lies reports other changes than it made: rewired but not reported"):
        fxs.compile(model, None, (x,), extra_passes=(Lies(),))
    assert "forward" not in vars(model)
    torch.testing.assert_close(model(x), model.b(model.a(x).relu()))


def test_a_pass_that_breaks_the_graph_is_caught() -> None:
    model, x = TwoLayers(), torch.randn(3, 4)
    with pytest.raises(PassError, match="no_such_attribute"):
        fxs.compile(model, None, (x,), extra_passes=(Breaks(),))
    torch.testing.assert_close(model(x), model.b(model.a(x).relu()))


def test_what_is_no_pass_is_refused() -> None:
    with pytest.raises(fxs.FxSparseError, match="takes instances of"):
        fxs.compile(TwoLayers(), None, (torch.randn(3, 4),), extra_passes=(AbsInsteadOfRelu,))  # type: ignore[arg-type]
