"""The face of a compiled model: names, state, graphs, report, sparsity, and what it hides."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import fxsparse as fxs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(16, 5)
        self.note = "of the user"

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(self.stem(x)).mean((2, 3))
        return self.fc(hidden) * self.scale + self.offset

    def describe(self) -> str:
        return f"net {self.note}"


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def compiled_net(policy: object = None) -> tuple[Net, fxs.CompiledModel]:
    torch.manual_seed(0)
    net = Net()
    return net, fxs.compile(net, policy, (X,))  # type: ignore[arg-type]


def test_parameters_and_buffers_are_the_originals_under_their_own_names() -> None:
    net, compiled = compiled_net("swat-u-50")
    assert [(name, id(p)) for name, p in compiled.named_parameters()] == [(name, id(p)) for name, p in net.named_parameters()]
    own = {name: id(b) for name, b in compiled.named_buffers() if not name.startswith("fxsparse.")}
    assert own == {name: id(b) for name, b in net.named_buffers()}
    assert set(compiled.state_dict()) - set(net.state_dict()) == {n for n in compiled.state_dict() if n.startswith("fxsparse.")}


def test_state_dict_of_the_compiled_model_holds_that_of_the_original() -> None:
    net, compiled = compiled_net("swat-u-50")
    state = compiled.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())


def test_modes_are_live_and_apart_from_the_original() -> None:
    net, compiled = compiled_net()
    compiled.eval()
    assert net.training
    assert net.body[0].training
    assert not compiled.get_submodule("body.0").training
    before = compiled.get_buffer("body.0.running_mean").clone()
    compiled(X)
    assert torch.equal(compiled.get_buffer("body.0.running_mean"), before)
    compiled.train()
    compiled(X)
    assert not torch.equal(compiled.get_buffer("body.0.running_mean"), before)


def test_attributes_of_the_original_are_reachable() -> None:
    _, compiled = compiled_net()
    assert compiled.note == "of the user"
    assert compiled.describe() == "net of the user"
    assert "describe" in dir(compiled)
    with pytest.raises(AttributeError, match="nowhere"):
        _ = compiled.nowhere


def test_graphs_plan_and_sites_cannot_be_written() -> None:
    _, compiled = compiled_net("swat-u-50")
    for mapping in (compiled.graphs, compiled.plan, compiled.sites):
        with pytest.raises(TypeError):
            mapping[""] = None  # type: ignore[index]
    with pytest.raises(AttributeError):
        compiled.plan["body.2.weight"].weight_kept = 1  # type: ignore[misc]


def test_the_graph_shows_what_was_inserted() -> None:
    _, compiled = compiled_net("swat-u-50")
    nodes = compiled.graphs[""].graph.nodes
    roles = [node.meta["custom"]["fxsparse"].get("role") for node in nodes if "custom" in node.meta]
    assert roles.count("sparse_weight") == roles.count("sparse_activation") == 2
    assert roles.count("contraction") == 3
    assert "torch.ops.fxsparse.swat_convolution.default" in compiled.code()
    json.dumps([node.meta.get("custom") for node in nodes])
    with pytest.raises(fxs.FxSparseError, match="no graph at 'nowhere'"):
        compiled.code("nowhere")


def test_report_names_every_site_and_reason() -> None:
    _, compiled = compiled_net("swat-u-50")
    report = compiled.report
    assert [row.site for row in report.sites] == ["stem.weight", "body.2.weight", "fc.weight"]
    assert [(skip.site, skip.reason) for skip in report.skips] == [
        ("stem.weight", "first contraction of the model, kept dense (dense_first)")
    ]
    assert {change.site for change in report.changes} == {"body.2.weight", "fc.weight", "body.1"}  # the ReLU's mask is in bits
    text = str(report)
    assert "stem.weight" in text
    assert "dense_first" in text
    assert json.loads(json.dumps(report.to_dict()))["sites"][1]["shape"] == [16, 8, 3, 3]


def test_sparsity_counts_what_is_there() -> None:
    _, compiled = compiled_net(fxs.SWAT(weight_sparsity=0.75, activation_sparsity=0.5))
    before = compiled.sparsity()["body.2.weight"]
    assert before["activation"]["actual"] is None
    compiled(X)
    row = compiled.sparsity()["body.2.weight"]
    weight = compiled.get_parameter("body.2.weight")
    assert row["weight"]["total"] == weight.numel() == 1152
    assert row["weight"]["kept"] == 288
    assert row["weight"]["actual"] == row["weight"]["target"] == 0.25
    assert row["activation"]["total"] == 4 * 8 * 8 * 8
    assert row["activation"]["target"] == 0.5
    assert 0 < row["activation"]["actual"] <= 0.5 + 1e-3
    assert compiled.sparsity()["stem.weight"]["weight"] == {"target": 1.0, "actual": 1.0, "kept": 216, "total": 216}


def test_neutral_policies_insert_nothing() -> None:
    for policy in (None, fxs.Policy(), fxs.SWAT(weight_sparsity=0), fxs.SWAT(weight_sparsity=0, activation_sparsity=0.0)):
        net, compiled = compiled_net(policy)
        assert not compiled.plan
        assert not any("fxsparse::" in str(node.target) for node in compiled.graphs[""].graph.nodes)
        for train in (True, False):
            fxs.check(compiled, net, (X,), train=train).raise_if_different()


def test_a_second_compilation_is_refused() -> None:
    _, compiled = compiled_net()
    with pytest.raises(fxs.FxSparseError, match="compiled already"):
        fxs.compile(compiled, None, (X,))


def test_a_model_that_uses_our_name_is_refused() -> None:
    net = Net()
    net.fxsparse = nn.Identity()
    with pytest.raises(fxs.FxSparseError, match="rename it"):
        fxs.compile(net, None, (X,))


def test_unknown_backend_names_the_closest() -> None:
    with pytest.raises(fxs.FxSparseError, match="did you mean 'cuda'"):
        fxs.compile(Net(), None, (X,), backend="cda")


def test_check_finds_a_difference_and_leaves_no_trace() -> None:
    net, compiled = compiled_net("swat-u-50")
    compiled.train()
    state = {name: tensor.clone() for name, tensor in compiled.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    report = fxs.check(compiled, net, (X,))
    assert torch.equal(torch.rand(3), expected)
    assert not report
    assert {"output 0", "grad fc.weight"} <= report.differences.keys()
    with pytest.raises(fxs.VerificationError, match="differ"):
        report.raise_if_different()
    assert all(torch.equal(state[name], tensor) or tensor.isnan().all() for name, tensor in compiled.state_dict().items())
    assert all(parameter.grad is None for parameter in compiled.parameters())


def test_costs_follow_batch_size_and_density() -> None:
    _, compiled = compiled_net(fxs.SWAT(weight_sparsity=0.5, period=1))
    one, three = compiled.cost(), compiled.cost(batch_size=12)
    assert three.total.forward.macs == 3 * one.total.forward.macs
    compiled(X)
    measured = compiled.cost(density="measured")
    assert measured.total.forward.macs == pytest.approx(one.total.forward.macs, rel=0.01)
    assert one.total.forward.dense_macs == 4 * (64 * 8 * 27 + 16 * 16 * 72 + 16 * 5)
    with pytest.raises(fxs.CostError, match="did you mean 'swat'"):
        compiled.cost(convention="swatt")
