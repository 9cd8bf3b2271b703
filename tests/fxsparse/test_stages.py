"""trace=True keeps every stage, diff shows what one pass changed; without it nothing is kept."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import fx

import fxsparse as fxs
from fxsparse.passes.base import Change, GraphPass
from fxsparse.stages import readable

from .inspected_nets import Nested, Net, X

POLICY = fxs.Policy(fxs.SWAT(weight_sparsity=0.75, include=("body.*",)), fxs.SavedActivations(bits=4))


def traced(policy: fxs.Policy = POLICY, **more: object) -> fxs.CompiledModel:
    return fxs.compile(Net(), policy, (X,), trace=True, **more)  # type: ignore[arg-type]


class CountRelus(GraphPass):
    """Changes nothing."""

    def rewrite(self, gm: fx.GraphModule) -> tuple[Change, ...]:
        return ()


class DoubleOutput(GraphPass):
    """Doubles the graph's output."""

    def rewrite(self, gm: fx.GraphModule) -> tuple[Change, ...]:
        out = next(node for node in gm.graph.nodes if node.op == "output")
        with gm.graph.inserting_before(out):
            doubled = gm.graph.call_function(torch.mul, (out.args[0], 2))
        out.args = (doubled,)
        return (Change(site="", node=doubled.name, what="doubled", why="a test", added=(doubled.name,), rewired=(out.name,)),)


def test_a_stage_for_the_capture_and_each_pass() -> None:
    compiled = traced(extra_passes=(DoubleOutput(), DoubleOutput()))
    assert [stage.name for stage in compiled.stages] == ["capture", "insert_swat", "compress_saved", "double_output", "double_output#2"]
    assert compiled.stages[-1].code == readable(compiled.code())
    assert "swat_convolution" not in compiled.stages[0].code
    assert "swat_convolution" in compiled.stages[1].code


def test_code_is_readable_and_computes_what_the_graph_did() -> None:
    first = traced().stages[0]
    assert "= None" not in first.code
    graph = first.graph()
    graph.lint()
    model = Net().eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fx.GraphModule(model, graph)(x), model(x))


def test_diff_names_the_lines_and_nodes_of_one_pass_alone() -> None:
    compiled = traced()
    difference = compiled.diff("insert_swat")
    [graph] = difference.graphs
    reported = [change for change in compiled.report.changes if change.made_by == "insert_swat"]
    assert set(graph.added) == {name for change in reported for name in change.added} - {n for c in reported for n in c.removed}
    assert "body_0_conv1" in graph.removed
    text = str(difference)
    assert "--- (root) after capture" in text
    assert "+++ (root) after insert_swat" in text
    assert any(line.startswith("-") and "self.body" in line for line in text.splitlines())
    assert any(line.startswith("+") and "swat_convolution" in line for line in text.splitlines())
    assert difference.to_dict()["graphs"][0]["added"] == list(graph.added)
    assert repr(difference) == text
    assert "stem" not in {*graph.added, *graph.removed, *graph.rewired}


def test_a_pass_that_changed_nothing_says_so() -> None:
    compiled = traced(extra_passes=(CountRelus(),))
    assert str(compiled.diff("count_relus")) == "count_relus changed nothing\n"
    assert str(compiled.diff("insert_swat", "")) == str(compiled.diff("insert_swat"))


def test_diff_of_several_graphs_takes_one_by_its_path() -> None:
    model = fxs.compile(Nested(), fxs.SWAT(weight_sparsity=0.5), (torch.zeros(3, 4),), trace=True)
    paths = [graph.path for graph in model.diff("insert_swat").graphs]
    assert "decides.inner" in paths
    assert [graph.path for graph in model.diff("insert_swat", "decides.inner").graphs] == ["decides.inner"]
    with pytest.raises(fxs.FxSparseError, match=r"no graph at 'decide.inner'.*did you mean 'decides.inner'"):
        model.diff("insert_swat", "decide.inner")


@pytest.mark.parametrize(("name", "said"), [("insert_swap", r"did you mean 'insert_swat'\?.*ran: insert_swat"), ("capture", "no pass")])
def test_a_pass_that_did_not_run_is_refused_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(fxs.FxSparseError, match=said):
        traced().diff(name)


def test_without_trace_nothing_is_kept_and_diff_says_how() -> None:
    compiled = fxs.compile(Net(), POLICY, (X,))
    assert compiled.stages == ()
    with pytest.raises(fxs.FxSparseError, match="trace=True"):
        compiled.diff("insert_swat")


def test_trace_changes_nothing_else() -> None:
    plain, kept = fxs.compile(Net(), POLICY, (X,)), traced()
    assert plain.code() == kept.code()
    assert str(plain.report) == str(kept.report)
    assert list(plain.state_dict()) == list(kept.state_dict())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_copies_keep_the_stages(again: Callable[[fxs.CompiledModel], fxs.CompiledModel]) -> None:
    compiled = traced()
    other = again(compiled)
    assert str(other.diff("insert_swat")) == str(compiled.diff("insert_swat"))
    assert [node.name for node in other.stages[1].graph().nodes] == [node.name for node in compiled.stages[1].graph().nodes]


def test_a_graph_that_cannot_be_copied_is_still_shown() -> None:
    class CallsLambda(GraphPass):
        def rewrite(self, gm: fx.GraphModule) -> tuple[Change, ...]:
            out = next(node for node in gm.graph.nodes if node.op == "output")
            with gm.graph.inserting_before(out):
                made = gm.graph.call_function(lambda x: x, (out.args[0],))
            out.args = (made,)
            return (Change(site="", node=made.name, what="a lambda", why="a test", added=(made.name,), rewired=(out.name,)),)

    compiled = traced(extra_passes=(CallsLambda(),))
    assert compiled.diff("calls_lambda").graphs[0].rewired == ("output",)
    with pytest.raises(fxs.FxSparseError, match="imported by name"):
        compiled.stages[-1].graph()


def test_readable_drops_only_what_frees_names() -> None:
    assert readable("a = f(b);  b = None\nc = g(a = None);  x = y = None\n") == "a = f(b)\nc = g(a = None)\n"
