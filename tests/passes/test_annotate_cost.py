"""What the cost annotation says about each node: by hand on tiny nets, and what it must not do."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxsparse as fxs
from fxsparse.cost_report import CostReport, NodeCost
from fxsparse.passes import meta


class Tiny(nn.Module):
    """One of each of the commonest kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        return self.fc(y.flatten(1))


X = torch.zeros(2, 3, 8, 8)


class Function(nn.Module):
    """A function of the input and of one parameter."""

    def __init__(self, body: Callable[[Tensor, Tensor], Any], *shape: int) -> None:
        super().__init__()
        self.body = body
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Any:
        return self.body(x, self.weight)


def node(report: CostReport, name: str) -> NodeCost:
    [found] = [one for one in report.nodes if one.name == name]
    return found


def torch_counts(model: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """FLOPs of forward and backward as torch's own counter sees them."""
    with FlopCounterMode(display=False) as counter:
        out = model(*inputs)
        forward = counter.get_total_flops()
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.requires_grad]
        torch.autograd.backward([leaf.sum() for leaf in leaves])
    return forward, counter.get_total_flops() - forward


def counted(model: nn.Module, *inputs: Tensor) -> tuple[float, float]:
    total = fxs.estimate(model, inputs, convention="torch").total
    return 2 * total.forward.macs, 2 * (total.grad_input.macs + total.grad_weight.macs)


def test_tiny_net_by_hand() -> None:
    report = fxs.estimate(Tiny(), (X,))
    macs = {one.operator: (one.forward.macs, one.grad_input.macs, one.grad_weight.macs) for one in report.nodes if one.contractions}
    conv, linear = 2 * 16 * 8 * 27, 2 * 128 * 5
    assert macs == {"conv": (conv, 0, conv), "linear": (linear, linear, linear)}
    assert report.coverage == 1.0
    activations = 2 * 8 * 16 * 4
    relu = node(report, "relu")
    assert relu.forward.dram_bytes == 2 * activations
    assert relu.forward.flops == 2 * 8 * 16
    # Backward reads the output's gradient and the saved output, and writes the input's gradient.
    assert relu.grad_input.dram_bytes == 3 * activations
    norm = node(report, "norm")
    # Reads and writes the activation; reads weight, bias and both running means, and writes its two saved means and its counter.
    assert norm.forward.dram_bytes == 2 * activations + 4 * 8 * 4 + 2 * 8 * 4 + 2 * 8
    flatten = node(report, "flatten")
    assert (flatten.total.dram_bytes, flatten.total.flops, flatten.saved_bytes) == (0, 0, 0)


def test_saved_bytes_of_the_tiny_net_by_hand() -> None:
    report = fxs.estimate(Tiny(), (X,))
    activations = 2 * 8 * 16 * 4
    assert {one.name: one.saved_bytes for one in report.nodes if one.saved_bytes} == {
        "conv": X.numel() * 4,
        "norm": activations + 4 * 8 * 4,  # its input, the two running means, the two of this batch
        "relu": activations,  # its output, which is the linear layer's input as well
    }


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_batch_size_is_a_parameter(batch: int) -> None:
    scaled = fxs.estimate(Tiny(), (X,), "eyeriss", batch_size=batch)
    direct = fxs.estimate(Tiny(), (torch.zeros(batch, 3, 8, 8),), "eyeriss")
    assert scaled.to_dict() == direct.to_dict()


def test_every_node_carries_plain_data_that_survives_copies() -> None:
    compiled = fxs.compile(Tiny(), fxs.SWAT(weight_sparsity=0.5), (X,))
    for graph in compiled.graphs.values():
        for item in graph.graph.nodes:
            cost = meta.read(item)["cost"]
            assert json.loads(json.dumps(cost)) == cost
    expected = compiled.cost("eyeriss").to_dict()
    assert copy.deepcopy(compiled).cost("eyeriss").to_dict() == expected
    assert pickle.loads(pickle.dumps(compiled)).cost("eyeriss").to_dict() == expected


def test_pricing_leaves_model_and_random_states_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(inplace=True))
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    fxs.estimate(model, (X,))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("body", "shape", "weight"),
    [
        (lambda x, w: x @ w, (2, 3, 4), (4, 5)),
        (lambda x, w: w @ x, (2, 3, 4), (5, 3)),
        (lambda x, w: torch.einsum("bij,jk->bik", x, w), (2, 3, 4), (4, 5)),
        (lambda x, w: F.linear(x, w.t()), (2, 3, 4), (4, 5)),
        (lambda x, w: torch.bmm(x * w, (x * w).transpose(1, 2)), (2, 3, 4), (4,)),
        (lambda x, w: torch.softmax((x * w) @ (x * w).mT, -1) @ x, (2, 3, 4), (4,)),
        (lambda x, w: torch.baddbmm(x @ x.mT, x * w, x.mT), (2, 3, 4), (4,)),
        (lambda x, w: F.conv1d(x, w, groups=2, padding=1), (2, 4, 9), (6, 2, 3)),
        (lambda x, w: F.conv_transpose1d(x, w, stride=2, groups=2), (2, 4, 9), (4, 3, 3)),
        (lambda x, w: F.linear(x, w * 2), (2, 4), (3, 4)),
        (lambda x, w: F.scaled_dot_product_attention(x * w, x * w, x * w, dropout_p=0.5), (2, 3, 5, 4), (4,)),
        (lambda x, w: F.scaled_dot_product_attention(x * w, x * w, x * w, is_causal=True), (2, 3, 5, 4), (4,)),
    ],
)
def test_products_however_written_equal_torchs_counter(
    body: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    model = Function(body, *weight)
    x = torch.zeros(shape)
    assert counted(model, x) == torch_counts(model, x)


MODULES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True), (3, 5, 6)),
    (lambda: nn.LSTM(6, 8, proj_size=4), (5, 3, 6)),
    (lambda: nn.GRU(6, 8, 2, batch_first=True), (3, 5, 6)),
    (lambda: nn.RNN(6, 8, batch_first=True), (3, 5, 6)),
    (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (3, 5, 8)),
    (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), 2, enable_nested_tensor=False), (5, 3, 8)),
]


@pytest.mark.parametrize(("make", "shape"), MODULES)
def test_composites_are_counted_once(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, x = make(), torch.zeros(shape)
    assert counted(model, x) == torch_counts(model, x)


def test_lstm_counts_every_step_and_gate() -> None:
    report = fxs.estimate(nn.LSTM(6, 8, batch_first=True), (torch.zeros(3, 5, 6),))
    assert report.total.forward.macs == 3 * 5 * 4 * 8 * (6 + 8)


def test_sparse_lstm_is_counted_weight_by_weight() -> None:
    compiled = fxs.compile(nn.LSTM(6, 8, batch_first=True), fxs.SWAT(weight_sparsity=0.5, dense_first=False), (torch.zeros(3, 5, 6),))
    total = compiled.cost().total
    assert total.forward.dense_macs == 3 * 5 * 4 * 8 * (6 + 8)
    assert total.forward.macs == total.forward.dense_macs / 2


def test_module_called_twice_is_counted_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.attention(x, x, x)
            z, _ = self.attention(y, y, y)
            return z

    x = torch.zeros(3, 5, 8)
    assert counted(Twice(), x) == torch_counts(Twice(), x)


class KeepsPython(nn.Module):
    """Its forward writes an attribute, so that it stays Python; its children are graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        self.outer = nn.Parameter(torch.zeros(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return torch.relu(self.inner(x)) @ self.outer


def test_module_that_keeps_its_python_is_priced_beside_its_children() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), KeepsPython()), torch.zeros(5, 4)
    assert counted(model, x) == torch_counts(model, x)
    report = fxs.estimate(model, (x,))
    assert report.coverage == 1.0
    assert fxs.estimate(KeepsPython(), (x,)).total.forward.macs == 5 * (4 * 6 + 6 * 4 + 4 * 3)


class DependsOnData(nn.Module):
    """Its own Python asks what the numbers are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x * 2
        return self.inner(x)


def test_python_that_asks_for_numbers_is_reported_with_its_bytes() -> None:
    report = fxs.estimate(nn.Sequential(nn.Linear(4, 4), DependsOnData(), nn.Linear(4, 2)), (torch.zeros(5, 4),))
    notes = {one.name: one for one in report.unknown}
    assert notes["_1"].unknown_bytes == 5 * 4 * 4  # what goes in; nobody knows what comes out
    assert notes["_2"].unknown_bytes == (4 * 2 + 2) * 4  # of what follows its parameters are known
    assert 0 < report.coverage < 1
    for name in ("_1", "_2"):
        assert f"{name} (" in str(report)


def test_unknown_operator_is_reported_with_its_bytes() -> None:
    report = fxs.estimate(Function(lambda x, w: torch.fft.fft(x * w).real, 4), (torch.zeros(2, 4),))
    [unknown] = report.unknown
    assert unknown.unknown_bytes > 0
    assert "_fft" in unknown.note
    assert report.coverage < 1


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_sequence_first_model_is_right_at_the_examples_size() -> None:
    """Its first size is no number of samples: attention grows with its square."""
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0)
    x, y = torch.zeros(5, 3, 8), torch.zeros(4, 3, 8)
    report = fxs.estimate(model, (x, y), convention="torch")
    macs = (2 * report.total.forward.macs, 2 * (report.total.grad_input.macs + report.total.grad_weight.macs))
    assert macs == torch_counts(model, x, y)


def test_selecting_a_threshold_is_spread_over_its_period() -> None:
    def selection(period: int) -> float:
        spec = fxs.SWAT(weight_sparsity=0.5, dense_first=False, period=period)
        report = fxs.compile(nn.Conv2d(3, 8, 3), spec, (X,)).cost()
        return sum(one.forward.flops for one in report.nodes if one.operator == "top_k")

    assert selection(1) > 0
    assert selection(10) == pytest.approx(selection(1) / 10)


def test_gradients_that_meet_are_added() -> None:
    once = fxs.estimate(Function(lambda x, w: (x * w).relu(), 4), (torch.zeros(2, 4),))
    twice = fxs.estimate(Function(lambda x, w: (lambda y: y.relu() + y.tanh())(x * w), 4), (torch.zeros(2, 4),))
    more = node(twice, "mul").grad_input.dram_bytes - node(once, "mul").grad_input.dram_bytes
    assert more == 3 * 2 * 4 * 4


def test_frozen_weights_get_no_gradient() -> None:
    model = Tiny()
    model.fc.weight.requires_grad_(False)
    linear = next(one for one in fxs.estimate(model, (X,)).nodes if one.operator == "linear")
    assert linear.grad_weight.macs == 0
    assert linear.grad_input.macs == linear.forward.macs


def test_model_without_example_inputs_is_told_so() -> None:
    with pytest.raises(fxs.CostError, match="example_inputs"):
        fxs.compile(Tiny()).cost()
