"""Graphs as plain data: what is frozen and thawed computes the same, node by node."""

from __future__ import annotations

import math
import operator
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import fx

import fxsparse as fxs
from fxsparse.passes.capture.capture import capture
from fxsparse.passes.graph_state import FrozenGraph, freeze, thaw


def same(first: fx.Graph, second: fx.Graph) -> bool:
    """Whether two graphs are equal node by node; references are compared by position."""
    first.lint()
    return freeze(first) == freeze(second)


def round_trip(graph: fx.Graph) -> fx.Graph:
    frozen: FrozenGraph = pickle.loads(pickle.dumps(freeze(graph)))
    return thaw(frozen)


def test_every_kind_of_argument() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.add, (x, 1.5), {"alpha": 2})
    z = graph.call_function(operator.getitem, (y, (slice(None, None, 2), Ellipsis, None)))
    w = graph.call_function(torch.cat, ([z, z],), {"dim": -1})
    v = graph.call_function(torch.zeros, (3,), {"dtype": torch.float64, "device": torch.device("cpu")})
    s = graph.call_function(math.sqrt, (4.0,))
    t = graph.call_function(F.relu, (w,))
    u = graph.call_method("view", (t, -1))
    n = graph.call_function(getattr, (u, "shape"))
    o = graph.call_function(torch.ops.aten.add.Tensor, (u, u))
    i = graph.call_function(operator.iadd, (o, s))
    i.meta["custom"] = {"fxsparse": {"site": "a.weight"}}
    graph.output({"a": i, "b": [v, (n, None, "text", float("inf"))]})
    again = round_trip(graph)
    assert same(again, graph)
    assert [node.name for node in again.nodes] == [node.name for node in graph.nodes]
    assert [node.meta.get("custom") for node in again.nodes] == [node.meta.get("custom") for node in graph.nodes]
    root = torch.nn.Module()
    data = torch.arange(8.0).reshape(4, 2)
    found, expected = fx.GraphModule(root, again)(data), fx.GraphModule(root, graph)(data)
    assert torch.equal(found["a"], expected["a"])


def test_nodes_named_like_builtins_and_targets() -> None:
    graph = fx.Graph()
    x = graph.create_node("placeholder", "input", name="input_1")
    made = graph.create_node("call_function", torch.sum, (x,), name="sum_1")
    other = graph.create_node("call_function", torch.sum, (made,), name="sum_2")
    graph.output(other)
    assert [node.name for node in round_trip(graph).nodes] == [node.name for node in graph.nodes]


def test_new_nodes_get_new_names_after_thawing() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(torch.relu, (x,))
    graph.output(first)
    again = round_trip(graph)
    with again.inserting_after(next(iter(again.nodes))):
        again.call_function(torch.relu, (next(iter(again.nodes)),))
    assert len({node.name for node in again.nodes}) == len(again.nodes)


def test_function_that_cannot_be_imported_is_refused_by_name() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(lambda value: value, (x,)))
    with pytest.raises(fxs.FxSparseError, match=r"cannot be imported by name.*define that function at the top of a module"):
        freeze(graph)


def test_thawing_a_graph_gives_it_back() -> None:
    graph = fx.Graph()
    assert thaw(graph) is graph


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", "vgg16_bn", "densenet121", "mobilenet_v3_small", "convnext_tiny", "vit_b_16", "swin_t", "googlenet"],
)
def test_torchvision_graphs_round_trip(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    x = torch.randn(2, 3, 224, 224)
    captured = capture(model, ((x,), {}))
    assert captured.left == {}
    for forward in captured.forwards.values():
        for variant in forward.variants:
            graph = variant.graph_module.graph
            again = round_trip(graph)
            assert same(again, graph)
            assert fx.GraphModule(forward.owner, again).code == fx.GraphModule(forward.owner, graph).code
