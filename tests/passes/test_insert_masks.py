"""Masks in the graph: what the pass makes, what it leaves, and that nothing else changes."""

from __future__ import annotations

import copy
import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxsparse as fxs
from fxsparse.errors import VerificationError
from fxsparse.passes import meta
from fxsparse.passes.insert_masks import InsertMasks
from fxsparse.passes.masks.apply import apply_mask
from fxsparse.passes.verify import RULES, verify

HALF = fxs.StaticMask(sparsity=0.5)


class Kinds(nn.Module):
    """Every form in which a contraction with a parameter is written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", groups=2, bias=False)
        self.one = nn.Conv1d(4, 4, 3, dilation=2)
        self.back = nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2)
        self.fc, self.pair = nn.Linear(6, 5), nn.Bilinear(5, 5, 4)
        self.kernel, self.table = nn.Parameter(torch.randn(4, 4, 2)), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.circular(self.conv(x))
        h = h + F.conv1d(self.one(h.flatten(2)), self.kernel).mean(-1)[:, :, None, None]
        v = self.fc(self.back(h).mean((2, 3)))
        return torch.einsum("bi,ij->bj", self.pair(v, v), self.table) + self.pair(v, v) @ self.table


def compiled_of(model: nn.Module, x: Tensor, technique: Any = HALF) -> fxs.CompiledModel:
    return fxs.compile(model, technique, (x,))


def test_every_form_is_masked_and_computes_the_same() -> None:
    torch.manual_seed(0)
    model, x = Kinds(), torch.randn(2, 3, 6, 6)
    compiled = compiled_of(model, x)
    assert len(compiled.masks) == 8
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for name in compiled.masks:
            plain.get_parameter(name).mul_(compiled.get_buffer(f"fxsparse.sites.{name}.mask"))
    out, expected = compiled(x), plain(x)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in plain.named_parameters():
        grad = parameter.grad
        assert grad is not None
        if name in compiled.masks:
            grad = grad * compiled.get_buffer(f"fxsparse.sites.{name}.mask")
        torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=1e-6, atol=1e-6, msg=name)


def test_dense_masks_change_no_bit() -> None:
    torch.manual_seed(0)
    model, x = Kinds(), torch.randn(2, 3, 6, 6)
    dense = fxs.GMP(final_sparsity=0.5, begin=0, end=10, interval=5)
    compiled = compiled_of(model, x, dense)
    assert fxs.check(compiled, model, x).equal
    assert fxs.check(compiled, model, x, train=False).equal


def test_a_weight_read_twice_is_masked_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x)) + F.linear(x, self.fc.weight.t())

    compiled = compiled_of(Twice(), torch.randn(2, 4))
    nodes = list(compiled.graphs[""].graph.nodes)
    assert sum(node.target is apply_mask for node in nodes) == 1
    assert sum(node.op == "get_attr" and node.target == "fc.weight" for node in nodes) == 1
    [change] = compiled.report.changes
    assert change.site == "fc.weight"
    assert change.why == "StaticMask selects fc.weight"
    assert change.what == "masked weight at density 0.5, by element"
    assert len(change.removed) == 3


def test_a_second_run_changes_nothing() -> None:
    compiled = compiled_of(Kinds(), torch.randn(2, 3, 6, 6))
    gm = compiled.graphs[""]
    before = str(gm.graph)
    names = {name: name for name in compiled.masks}
    result = InsertMasks("", dict(compiled.masks), names)(gm)
    assert not result.changes
    assert str(gm.graph) == before


def test_what_cannot_be_rewritten_is_left_with_its_reason() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.fc = nn.ConvTranspose2d(3, 4, 3, stride=2), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.up(x, output_size=[12, 12]).mean((2, 3)))

    compiled = compiled_of(Sized(), torch.randn(2, 3, 5, 5))
    assert list(compiled.masks) == ["fc.weight"]
    assert {skip.site: skip.reason for skip in compiled.report.skips} == {"up.weight": "it is called with output_size"}


@pytest.mark.parametrize("fuel", [0, 1, 3])
def test_fuel(fuel: int) -> None:
    compiled = fxs.compile(Kinds(), HALF, (torch.randn(2, 3, 6, 6),), fuel=fuel)
    assert len(compiled.masks) == fuel
    assert sum(skip.reason == "no fuel is left" for skip in compiled.report.skips) == 8 - fuel


def test_gradients_are_written_in_place_only_where_nobody_else_holds_them() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + self.other(x) + (self.other.weight + x).mean()

    torch.manual_seed(0)
    compiled = compiled_of(Added(), torch.randn(4, 4))
    writes = {meta.read(node)["site"]: node.args[-1] for node in compiled.graphs[""].graph.nodes if node.target is apply_mask}
    assert writes == {"fc.weight": True, "other.weight": False}


def test_a_part_that_keeps_its_python() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.sum() > 0 else self.b(x)

    compiled = compiled_of(Branching(), torch.randn(2, 4))
    assert set(compiled.masks) == {"a.weight", "b.weight"}
    assert compiled.report.left
    optimizer = torch.optim.SGD(compiled.parameters(), 0.1, momentum=0.9)
    compiled.attach(optimizer)
    for sign in (1.0, -1.0, 1.0):
        optimizer.zero_grad()
        compiled(sign * torch.rand(2, 4)).square().sum().backward()
        optimizer.step()
    for name in compiled.masks:
        assert not bool(compiled.get_parameter(name).detach()[~compiled.get_buffer(f"fxsparse.sites.{name}.mask")].any())


# The verifier's rules


def graph() -> fx.GraphModule:
    return compiled_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4)).graphs[""]


def masked(gm: fx.GraphModule) -> fx.Node:
    return next(node for node in gm.graph.nodes if node.target is apply_mask)


def anothers_mask(gm: fx.GraphModule) -> None:
    masked(gm).args[1].target = "fxsparse.sites.1.weight.mask"  # type: ignore[union-attr]


def no_mask(gm: fx.GraphModule) -> None:
    node = masked(gm)
    node.args = (node.args[0], True, *node.args[2:])


def a_buffer(gm: fx.GraphModule) -> None:
    masked(gm).args[0].target = "fxsparse.sites.0.weight.mask"  # type: ignore[union-attr]


def no_flag(gm: fx.GraphModule) -> None:
    masked(gm).args[2].target = "fxsparse.regimes.0.steps"  # type: ignore[union-attr]


def read_past_it(gm: fx.GraphModule) -> None:
    node = masked(gm)
    user = next(iter(node.users))
    user.replace_input_with(node, node.args[0])  # type: ignore[arg-type]
    other = next(item for item in gm.graph.nodes if item.target is F.linear and item is not user)
    with gm.graph.inserting_before(other):
        extra = gm.graph.call_function(operator.add, (other.args[0], node))
    other.replace_input_with(other.args[0], extra)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "break_it", "text"),
    [
        ("a weight is masked by its own mask", anothers_mask, "its mask is 'fxsparse.sites.1.weight.mask', not that of its site"),
        ("a weight is masked by its own mask", no_mask, "its mask is True, which is read from nowhere"),
        ("a weight is masked by its own mask", a_buffer, "is no parameter"),
        ("a weight is masked by its own mask", no_flag, "'fxsparse.regimes.0.steps' says nothing about growing"),
        ("a masked weight is read masked everywhere", read_past_it, "reads it without its mask"),
    ],
)
def test_broken_graphs_are_found(rule: str, break_it: Any, text: str) -> None:
    gm = graph()
    verify(gm)
    break_it(gm)
    with pytest.raises(VerificationError) as caught:
        verify(gm)
    assert f"rule {rule!r} is broken" in str(caught.value)
    assert text in str(caught.value)
    assert rule in {item.name for item in RULES}
