"""Compiled models survive deepcopy, pickle, torch.save in a fresh process, state_dict and torch.compile."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxsparse as fxs

from .survivors import SURVIVORS, Example

ROOT = Path(__file__).resolve().parents[3]
POLICIES = {"neutral": None, "sparse": fxs.SWAT(weight_sparsity=0.5, dense_first=False)}


def made(name: str, policy: Any) -> tuple[nn.Module, fxs.CompiledModel, list[Example]]:
    """A model, its compiled form after one call of each form, and the calls."""
    build, calls = SURVIVORS[name]
    torch.manual_seed(0)
    model = build()
    compiled = fxs.compile(model, policy, calls[0])
    for mode in (True, False):
        compiled.train(mode)
        for call in calls:
            compiled(*call)
    return model, compiled.train(), calls


def outputs(model: nn.Module, calls: list[Example]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    found = []
    for mode in (False, True):
        model.train(mode)
        found += [model(*call) for call in calls]
    return found


def by_pickle(compiled: fxs.CompiledModel) -> fxs.CompiledModel:
    restored: fxs.CompiledModel = pickle.loads(pickle.dumps(compiled))
    return restored


def by_pickled_copy(compiled: fxs.CompiledModel) -> fxs.CompiledModel:
    return by_pickle(copy.deepcopy(by_pickle(copy.deepcopy(compiled))))


WAYS: dict[str, Callable[[fxs.CompiledModel], fxs.CompiledModel]] = {
    "deepcopy": copy.deepcopy,
    "pickle": by_pickle,
    "several times": by_pickled_copy,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@pytest.mark.parametrize("name", SURVIVORS)
def test_copy_is_equal_and_apart(name: str, policy: Any, way: Callable[[fxs.CompiledModel], fxs.CompiledModel]) -> None:
    _, compiled, calls = made(name, policy)
    other = way(compiled)
    assert_same_graphs(compiled, other)
    twin = way(compiled)
    assert all(torch.equal(a, b) for a, b in zip(outputs(twin, calls), outputs(compiled, calls), strict=True))
    ours = {tensor.data_ptr() for tensor in compiled.state_dict().values() if tensor.numel()}
    assert ours.isdisjoint({tensor.data_ptr() for tensor in twin.state_dict().values() if tensor.numel()})
    for path, gm in twin.graphs.items():
        assert gm.graph.owning_module is gm
        own = {id(parameter) for parameter in twin.get_submodule(path).parameters()}
        assert {id(parameter) for parameter in gm.parameters()} <= own


def assert_same_graphs(compiled: fxs.CompiledModel, other: fxs.CompiledModel) -> None:
    """Node by node, in order: operation, target and metadata; names do not matter."""
    assert list(compiled.graphs) == list(other.graphs)
    for path, forward in compiled._forwards.items():
        variants = other._forwards[path].variants
        assert len(variants) == len(forward.variants)
        for mine, theirs in zip(forward.variants, variants, strict=True):
            theirs.graph_module.graph.lint()
            pairs = zip(mine.graph_module.graph.nodes, theirs.graph_module.graph.nodes, strict=True)
            for a, b in pairs:
                assert (a.op, a.target, a.meta.get("custom")) == (b.op, b.target, b.meta.get("custom"))


@pytest.mark.parametrize("name", SURVIVORS)
def test_contractions_carry_their_site_through_copies(name: str) -> None:
    _, compiled, _ = made(name, None)
    for other in (compiled, copy.deepcopy(compiled), by_pickle(compiled)):
        sites = [node.meta["custom"]["fxsparse"]["site"] for gm in other.graphs.values() for node in gm.graph.nodes if is_site(node)]
        assert sites
        assert set(sites) <= set(compiled.sites)


def is_site(node: torch.fx.Node) -> bool:
    return "site" in node.meta.get("custom", {}).get("fxsparse", {})


@pytest.mark.parametrize("name", SURVIVORS)
def test_copies_train_apart(name: str) -> None:
    _, compiled, calls = made(name, None)
    before = copy.deepcopy(compiled.state_dict())
    twin = copy.deepcopy(compiled)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for call in calls:
        twin(*call).square().sum().backward()
        optimizer.step()
    assert any(not torch.equal(before[key], value) for key, value in twin.state_dict().items())
    assert all(torch.equal(before[key], value) for key, value in compiled.state_dict().items())


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@pytest.mark.parametrize("name", SURVIVORS)
def test_state_dict_round_trips_strictly(name: str, policy: Any) -> None:
    model, compiled, calls = made(name, policy)
    other = fxs.compile(SURVIVORS[name][0](), policy, calls[0])
    assert other.load_state_dict(compiled.state_dict(), strict=True) == ([], [])
    assert all(torch.equal(a, b) for a, b in zip(outputs(other, calls), outputs(copy.deepcopy(compiled), calls), strict=True))
    own = [name for name in compiled.state_dict() if not name.startswith("fxsparse.")]
    assert own == list(model.state_dict())


SCRIPT = """
import sys, torch
torch.set_num_threads(1)  # as in these tests: sums over another number of threads round otherwise
for path in sys.argv[1:]:
    compiled, calls = torch.load(path, weights_only=False)
    torch.manual_seed(1)
    found = []
    for mode in (False, True):
        compiled.train(mode)
        found += [compiled(*call) for call in calls]
    facts = [node.meta.get("custom") for gm in compiled.graphs.values() for node in gm.graph.nodes]
    torch.save((found, facts), path + ".out")
"""


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_torch_save_and_load_in_a_fresh_process(policy: Any, tmp_path: Path) -> None:
    paths = []
    for name in SURVIVORS:
        _, compiled, calls = made(name, policy)
        paths.append(str(tmp_path / name))
        torch.save((compiled, calls), paths[-1])
    done = subprocess.run([sys.executable, "-c", SCRIPT, *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, path in zip(SURVIVORS, paths, strict=True):
        _, compiled, calls = made(name, policy)
        found, facts = torch.load(f"{path}.out")
        assert all(torch.equal(a, b) for a, b in zip(found, outputs(compiled, calls), strict=True)), name
        assert facts == [node.meta.get("custom") for gm in compiled.graphs.values() for node in gm.graph.nodes]


def test_recapture_works_on_a_restored_model() -> None:
    model, compiled, _ = made("in forms", None)
    x = torch.randn(2, 3, 9, 9)
    for other in (copy.deepcopy(compiled), by_pickle(compiled)):
        fxs.check(other, model, (x,)).raise_if_different()
        assert torch.equal(other.eval()(x), model.eval()(x))


def test_average_model() -> None:
    _, compiled, calls = made("whole", None)
    average = torch.optim.swa_utils.AveragedModel(compiled)
    average.update_parameters(compiled)
    assert torch.equal(average.eval()(*calls[0]), copy.deepcopy(compiled).eval()(*calls[0]))


def test_functional_call() -> None:
    _, compiled, calls = made("whole", None)
    compiled.eval()
    doubled = {name: parameter * 2 for name, parameter in compiled.named_parameters()}
    found = torch.func.functional_call(compiled, doubled, calls[0])
    other = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert torch.equal(found, other(*calls[0]))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.conv(x))
        out += x
        return self.relu(out)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_torch_compile_takes_the_whole_graph(policy: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Residual(), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    x = torch.randn(2, 3, 8, 8)
    compiled = fxs.compile(model, policy, (x,))
    twin = copy.deepcopy(compiled)
    fast = torch.compile(twin, fullgraph=True, backend="aot_eager")
    assert torch.equal(fast(x), compiled(x))
    assert torch.equal(fast(x), compiled(x))
