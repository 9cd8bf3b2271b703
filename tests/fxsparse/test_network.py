"""The compiled model as a networkx graph: nothing is missing, the sums are those of the report, and networkx's algorithms do the rest."""

import copy
import json
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import networkx as nx
import pytest
import torch
from torch import nn

import fxsparse as fxs
from fxsparse.dot import _quoted
from fxsparse.network import FIGURES

from .inspected_nets import Nested, Net, X

SWAT = fxs.SWAT(weight_sparsity=0.75)


def compiled(policy: object = SWAT) -> fxs.CompiledModel:
    return fxs.compile(Net(), policy, (X,))  # type: ignore[arg-type]


def nested() -> fxs.CompiledModel:
    return fxs.compile(Nested(), fxs.SWAT(weight_sparsity=0.5), (torch.zeros(3, 4),))


MODELS = {
    "residual": compiled,
    "masked": lambda: compiled(fxs.StaticMask(sparsity=0.5)),
    "codes": lambda: compiled(fxs.Policy(SWAT, fxs.SavedActivations(bits=4))),
    "python inside": nested,
    "composite": lambda: fxs.compile(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), SWAT, (torch.zeros(2, 5, 8),)
    ),
    "recurrent": lambda: fxs.compile(nn.LSTM(4, 6), fxs.SWAT(weight_sparsity=0.5, dense_first=False), (torch.zeros(3, 2, 4),)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_acyclic_and_sums_up_to_the_report(name: str) -> None:
    model = MODELS[name]()
    network, report = model.to_networkx("eyeriss"), model.cost("eyeriss")
    assert nx.is_directed_acyclic_graph(network)
    assert {node.name for node in report.nodes} <= set(network)
    for figure in FIGURES:
        total = sum(number for _, number in network.nodes(data=figure, default=0))
        assert total == pytest.approx(getattr(report.total.total, figure)), figure
    assert sum(number for _, number in network.nodes(data="saved_bytes")) == report.saved_bytes
    assert sum(1 for end in network if network.nodes[end]["op"] == "output" and not list(network.successors(end))) == 1
    json.dumps(nx.node_link_data(network, edges="edges"))


def test_nodes_say_all_that_is_known() -> None:
    network = compiled().to_networkx("eyeriss")
    [node] = [facts for _, facts in network.nodes(data=True) if facts["site"] == "body.0.conv1.weight" and facts["role"] == "contraction"]
    assert node["techniques"] == ["SWAT (uniform, element)"]
    assert (node["shape"], node["dtype"], node["tensor_bytes"]) == ([4, 8, 8, 8], "float32", 4 * 8 * 8 * 8 * 4)
    assert (node["module"], node["graph"], node["made_by"]) == ("body.0.conv1", "", "insert_swat")
    assert re.search(r"inspected_nets\.py:\d+: y = torch\.relu\(self\.conv1\(x\)\)$", node["line"])
    assert node["weight_density"] == 0.25
    assert node["flops"] == node["forward"]["flops"] + node["grad_input"]["flops"] + node["grad_weight"]["flops"] > 0
    assert node["cycles"] > 0


def test_shapes_follow_the_batch_size_that_is_asked_for() -> None:
    network = compiled(None).to_networkx(batch_size=32)
    assert network.nodes["stem"]["shape"] == [32, 8, 8, 8]
    assert network.nodes["fc"]["shape"] == [32, 5]
    assert network.graph["batch_size"] == 32
    assert network.edges["stem", "body_0_conv1"]["shape"] == [32, 8, 8, 8]


def test_without_a_machine_there_are_no_cycles() -> None:
    network = compiled().to_networkx()
    assert all("cycles" not in facts for _, facts in network.nodes(data=True))
    assert nx.dag_longest_path_length(network, weight="flops") > 0


def test_the_critical_path_is_networkx_own() -> None:
    """A chain has all of its cost on the path; of two branches the dearer one is taken."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow, self.join = nn.Linear(8, 64), nn.Linear(8, 8), nn.Linear(64, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.join(self.wide(x)) + self.narrow(x)

    model = fxs.compile(Branches(), None, (torch.zeros(2, 8),))
    network = model.to_networkx()
    path = nx.dag_longest_path(network, weight="flops")
    assert path == ["x", "wide", "join", "add"]
    by_name = {node.name: node.total.flops for node in model.cost().nodes}
    assert nx.dag_longest_path_length(network, weight="flops") == sum(by_name.get(name, 0) for name in path)


def test_the_cost_of_a_sub_graph_is_that_of_its_nodes() -> None:
    model = compiled()
    network = model.to_networkx()
    inside = [name for name, module in network.nodes(data="module") if module.startswith("body.0")]
    part = network.subgraph(inside)
    wanted = sum(node.total.flops for node in model.cost().nodes if node.module.startswith("body.0"))
    assert sum(flops for _, flops in part.nodes(data="flops")) == pytest.approx(wanted)
    assert wanted > 0
    assert nx.descendants(network, "stem") >= set(inside) - {name for name in inside if network.nodes[name]["op"] == "get_attr"} - {
        name for name in inside if not nx.has_path(network, "stem", name)
    }
    modules = {name: module.partition(".")[0] for name, module in network.nodes(data="module")}
    classes = [{name for name in network if modules[name] == module} for module in dict.fromkeys(modules.values())]
    quotient = nx.quotient_graph(network, classes, node_data=lambda group: {"flops": sum(network.nodes[n]["flops"] for n in group)})
    assert sum(flops for _, flops in quotient.nodes(data="flops")) == pytest.approx(model.cost().total.total.flops)


def test_what_reads_the_result_of_an_inner_graph_follows_its_output() -> None:
    network = nested().to_networkx()
    inner = [name for name in network if name.startswith("decides/")]
    assert inner, "the graph inside the part that keeps its Python is there"
    assert nx.has_path(network, "first", inner[0]) or any(nx.has_path(network, "decides", name) for name in inner)
    last = next(name for name, facts in network.nodes(data=True) if facts["site"] == "last.weight" and facts["role"] == "contraction")
    assert all(nx.has_path(network, name, last) for name in inner if network.nodes[name]["op"] == "output")


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copy_has_the_same_graph(again: object) -> None:
    model = compiled()
    one, other = model.to_networkx("eyeriss"), again(model).to_networkx("eyeriss")  # type: ignore[operator]
    assert dict(one.nodes(data=True)) == dict(other.nodes(data=True))
    assert list(one.edges(data=True)) == list(other.edges(data=True))


def test_without_example_inputs_there_is_the_structure_alone() -> None:
    network = fxs.compile(Net(), None).to_networkx()
    assert nx.has_path(network, "x", "fc")
    assert network.nodes["fc"]["flops"] == 0


def test_a_wrong_argument_is_refused() -> None:
    with pytest.raises(fxs.CostError, match="'eyeriss'"):
        compiled().to_networkx("eyeris")
    with pytest.raises(fxs.CostError, match="example_inputs"):
        fxs.compile(Net(), None).to_networkx("eyeriss")


# Graphviz


class Strange(nn.Module):
    """Names that a careless writer would let out of their quotes."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"<script>": nn.Linear(4, 4), "} evil {": nn.Linear(4, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts.values():
            x = part(x)
        return x


def unquoted(text: str) -> str:
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)


def test_dot_has_every_operator_in_the_box_of_its_module(tmp_path: Path) -> None:
    model = compiled()
    text = model.to_dot(tmp_path / "net.dot")
    assert (tmp_path / "net.dot").read_text() == text
    assert text.count("{") == text.count("}")
    for words in ("cluster_body.0.conv1", "body.0.conv1.weight", "density 0.25", "FLOP", "4x8x8x8"):
        assert words in text
    operators = [name for name, op in model.to_networkx().nodes(data="op") if op != "get_attr"]
    assert len(re.findall(r"^ *n\d+ \[", text, flags=re.MULTILINE)) == len(operators)


def test_dot_quotes_every_name() -> None:
    text = fxs.compile(Strange(), None, (torch.zeros(2, 4),)).to_dot()
    assert _quoted('a"b', "c\\") == '"a\\"b\\nc\\\\"'
    assert "evil" not in unquoted(text)
    assert "script" not in unquoted(text)
    assert unquoted(text).count("[") == unquoted(text).count("]")


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_reads_it() -> None:
    done = subprocess.run(["dot", "-Tsvg"], input=compiled().to_dot(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unwritable_path_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(fxs.FxSparseError, match="folder that does not exist"):
        compiled().to_dot(tmp_path / "no" / "net.dot")
