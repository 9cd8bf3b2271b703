"""Recorded graphs: entered only while what Python read is still so, open in the number of samples, and right for what they return."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsparse as fxs

from .neutral import assert_left, assert_whole, compile_neutral, operators

X = torch.randn(2, 6, 8)


class Cache:
    def __init__(self) -> None:
        self.tensors: list[Tensor] = []


class Layers(nn.Module):
    """Cannot be traced, since it returns an object."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(8, 8), nn.Linear(8, 8), nn.Dropout(0.5)

    def kept(self, x: Tensor) -> Cache:
        cache = Cache()
        cache.tensors += [x, x * 2]
        return cache

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(y).view(x.shape[0] * 2, -1), self.kept(y)


def facts(compiled: fxs.CompiledModel, index: int = 0) -> Any:
    return compiled._forwards[""].variants[index].facts


def test_number_of_samples_is_open() -> None:
    compiled = compile_neutral(Layers(), X)
    assert_whole(compiled)
    assert facts(compiled).sizes == ((None, 6, 8),)
    for samples in (2, 3, 7, 1000):
        compiled(torch.randn(samples, 6, 8))
    assert len(compiled._forwards[""].variants) == 1


class Threshold(Layers):
    """Decides by a number of samples that no probing would reach."""

    def forward(self, x: Tensor) -> Any:
        layer = self.a if x.shape[0] * 2 < 5000 else self.b
        return layer(x), self.kept(x)


def test_number_of_samples_that_python_compares_is_not_open() -> None:
    model = Threshold()
    compiled = fxs.compile(model, None, (X,))
    assert facts(compiled).sizes == ((2, 6, 8),)
    x = torch.randn(2600, 6, 8)
    assert torch.equal(compiled(x)[0], model(x)[0])


def test_another_length_is_recorded_anew() -> None:
    model = Layers()
    compiled = compile_neutral(model, X)
    fxs.check(compiled, model, (torch.randn(2, 4, 8),)).raise_if_different()
    compiled(torch.randn(2, 4, 8))
    assert len(compiled._forwards[""].variants) == 2


def test_other_dtype_of_the_parameters_is_recorded_anew() -> None:
    class Casts(Layers):
        def forward(self, x: Tensor) -> Any:
            return self.a(x.to(self.a.weight.dtype)).to(x.dtype), self.kept(x)

    model = Casts()
    compiled = compile_neutral(model, X)
    model.double()
    compiled.double()
    assert torch.equal(compiled(X)[0], model(X)[0])
    assert len(compiled._forwards[""].variants) == 2


def test_object_is_made_anew_on_every_call_and_survives_copies() -> None:
    compiled = compile_neutral(Layers(), X)
    first, second = compiled(X)[1], compiled(X)[1]
    assert type(first) is Cache
    assert first is not second
    assert first.tensors is not second.tensors
    for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert torch.equal(other(X)[1].tensors[1], first.tensors[1])


class Flags(Layers):
    def forward(self, x: Tensor) -> Any:
        x = nn.functional.dropout(self.a(x), 0.5, self.training)
        return (self.b(x) if self.drop.training else x), self.kept(x)


def test_training_flags_stay_live() -> None:
    model = Flags()
    compiled = compile_neutral(model, X)
    assert "training" in operators(compiled)
    assert {path for path, _ in facts(compiled).training} == {"drop"}
    for change in (lambda m: m.eval(), lambda m: m.drop.train(), lambda m: m.train(), lambda m: m.drop.eval()):
        change(model)
        change(compiled)
        torch.manual_seed(3)
        expected = model(X)[0]
        torch.manual_seed(3)
        assert torch.equal(compiled(X)[0], expected)


class NamedSelf(nn.Module):
    """Its children are called ``self`` and ``output``, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.self = nn.Linear(8, 8)
        self.output = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.self(x))


def test_child_called_self() -> None:
    assert_whole(compile_neutral(NamedSelf(), X))


class GivenObject(Layers):
    def forward(self, x: Tensor, cache: Cache | None = None) -> Any:
        y = self.a(x)
        if cache is not None:
            cache.tensors.append(y)
        return self.b(y), self.kept(y)


@pytest.mark.parametrize("policy", [None, fxs.SWAT(weight_sparsity=0.5, dense_first=False)], ids=["neutral", "sparse"])
def test_call_with_an_object_runs_in_parts(policy: Any) -> None:
    model = GivenObject()
    compiled = fxs.compile(model, policy, (X,))
    compiled(X)
    compiled.eval()
    cache = Cache()
    found = compiled(X, cache)[0]
    assert len(cache.tensors) == 1
    assert torch.equal(found, compiled(X)[0])
    assert torch.equal(found, model(X)[0]) == (policy is None)


def test_example_with_an_object_keeps_python() -> None:
    compiled = fxs.compile(GivenObject(), None, (X, Cache()))
    assert_left(compiled, "", "Cache", {"a", "b"})


class Grouped(nn.Module):
    """Experts of which each multiplies its own rows, as transformers computes them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 8, 8) / 4)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        rows = x.flatten(0, 1)
        ends = torch.tensor([3, 7, 12], dtype=torch.int32)
        return {"y": self.last(torch._grouped_mm(rows, self.experts.transpose(-2, -1), offs=ends).view(x.shape))}


def test_products_of_groups_are_sites_that_stay_dense() -> None:
    compiled = compile_neutral(Grouped(), X, batches=False)
    assert set(compiled.sites) == {"experts", "last.weight"}
    sparse = fxs.compile(Grouped(), fxs.SWAT(weight_sparsity=0.5, dense_first=False), (X,))
    assert any(skip.site == "experts" and "mixture of experts" in skip.reason for skip in sparse.report.skips)


def test_ordered_dictionary_whose_keys_are_no_names() -> None:
    """As feature pyramids return them."""

    class Pyramid(Layers):
        def forward(self, x: Tensor) -> Any:
            kept = self.kept(x)
            return OrderedDict([("0", self.a(x)), ("class", self.b(x)), (2, x)]), kept

    compiled = compile_neutral(Pyramid(), X)
    assert_whole(compiled)
    found = compiled(X)[0]
    assert type(found) is OrderedDict
    assert list(found) == ["0", "class", 2]
    assert list(copy.deepcopy(compiled)(X)[0]) == ["0", "class", 2]
