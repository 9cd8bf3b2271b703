"""Where Python decides by values, a copy of the model runs once on the example's own, and tells how it calls its parts."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import fxsparse as fxs
from fxsparse.passes.capture import real_run

from .neutral import compile_neutral

X = torch.randn(2, 6, 8)


class Cache:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Encoder(nn.Module):
    """Can only be recorded by example, since it returns an object."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, *, is_padded: bool) -> tuple[Tensor, Cache]:
        y = self.b(self.a(x)) if not is_padded else self.a(x)
        return y, Cache(y)


class Model(nn.Module):
    """Decides by values before it calls its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Buffer(torch.zeros(()))
        self.first, self.encoder = nn.Linear(8, 8), Encoder()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        self.seen += 1
        is_padded = bool((x == 0).all())
        with torch.no_grad():
            self.first.bias.clamp_(-1.0, 1.0)
        return self.encoder(y, is_padded=is_padded)[0] + torch.rand(())


def test_parts_behind_a_branch_on_values_are_graphs() -> None:
    compiled = compile_neutral(Model(), X)
    assert set(compiled.report.left) == {""}
    assert "encoder" in compiled.graphs
    assert compiled._forwards["encoder"].variants[0].is_recorded
    assert list(compiled.sites) == ["first.weight", "encoder.a.weight", "encoder.b.weight"]


def test_another_answer_takes_another_graph() -> None:
    model = Model()
    compiled = fxs.compile(model, None, (X,))
    fxs.check(compiled, model, (torch.zeros_like(X),)).raise_if_different()
    compiled(X)
    compiled(torch.zeros_like(X))
    assert len(compiled._forwards["encoder"].variants) == 2


def test_compiling_leaves_model_example_and_randomness_as_they_were() -> None:
    model, example = Model(), X.clone()
    with torch.no_grad():
        model.first.bias.fill_(3.0)  # what the model's own Python would clamp
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fxs.compile(model, None, (example,))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(example, X)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_it_runs_only_where_fake_tensors_cannot_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr(real_run.RealRun, "__init__", refuse)
    fxs.compile(Encoder(), None, (X,), example_kwargs={"is_padded": False})
    with pytest.raises(AssertionError, match="it ran"):
        fxs.compile(Model(), None, (X,))


def test_a_model_that_fails_by_itself_shows_its_own_error_and_where() -> None:
    class Failing(Model):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if float(y.sum()) != float("inf"):
                raise LookupError("nothing found")
            return y

    with pytest.raises(fxs.TraceError) as caught:
        fxs.compile(Failing(), None, (X,))
    assert "the model (Failing) fails on the example inputs by itself: LookupError: nothing found" in str(caught.value)
    assert re.search(r'test_real_run\.py:\d+: raise LookupError\("nothing found"\)', str(caught.value))
    assert isinstance(caught.value.__cause__, LookupError)


def test_examples_without_values_are_not_run() -> None:
    with FakeTensorMode():
        example = torch.empty(2, 6, 8)
    compiled = fxs.compile(Model(), None, (example,))
    assert set(compiled.report.left) == {"", "encoder"}
    assert {"encoder.a.weight", "encoder.b.weight"} <= set(compiled.sites)
