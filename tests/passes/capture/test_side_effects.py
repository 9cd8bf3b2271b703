"""What a forward does beside computing: writes, random draws, changed modes. None of it may get lost or happen only once."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxsparse as fxs

from .neutral import assert_left, assert_whole, compile_neutral, operators

X = torch.randn(2, 4)


class Writer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls = 0
        self.history: list[int] = []
        self.cache: dict[str, Tensor] = {}
        self.last: Tensor | None = None
        self.child = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("ema", torch.zeros(4))
        self.steps: Tensor
        self.ema: Tensor


class Counts(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


class AppendsNumber(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.history.append(1)
        return self.layer(x) * len(self.history)


class KeepsActivation(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        return self.last * 2


class Caches(Writer):
    def forward(self, x: Tensor) -> Tensor:
        if "scale" not in self.cache:
            self.cache["scale"] = torch.ones(4) * 3
        return self.layer(x) * self.cache["scale"]


class AssignsBuffer(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.steps = self.steps + 1
        return self.layer(x) * self.steps


class WritesOfChild(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.child[1].p = 0.25
        return self.child(self.layer(x))


class WritesNested(Writer):
    """A list inside a dict: the outer dict stays the same."""

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, list[float]] = {"seen": []}

    def forward(self, x: Tensor) -> Tensor:
        self.store["seen"].append(1.0)
        return self.layer(x) * len(self.store["seen"])


@pytest.mark.parametrize("kind", [Counts, AppendsNumber, KeepsActivation, Caches, AssignsBuffer, WritesOfChild, WritesNested])
def test_writing_an_attribute_keeps_python(kind: type[Writer]) -> None:
    model = kind()
    compiled = compile_neutral(model, X)
    assert "write" in compiled.report.left[""]
    assert "layer" in compiled.graphs
    for _ in range(3):
        assert torch.equal(model.eval()(X), compiled.eval()(X))


def test_counter_of_model_and_compiled_are_apart() -> None:
    model = Counts()
    compiled = fxs.compile(model, None, (X,))
    assert model.calls == 0
    compiled(X)
    compiled(X)
    assert (model.calls, compiled.calls) == (0, 2)


class InPlaceCounter(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return self.layer(x) * self.steps


class AddsInPlace(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        return self.layer(x) * self.steps


class MovingAverage(Writer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.training:
            self.ema.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.ema


class CopiesInto(Writer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        self.ema.copy_(x.detach()[0])
        self.steps[...] = 3.0
        return x * self.steps


class DataWrite(Writer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        self.ema.data = self.ema.data + x.detach().mean(0)
        return x + self.ema


@pytest.mark.parametrize("kind", [InPlaceCounter, AddsInPlace, MovingAverage, CopiesInto, DataWrite])
def test_buffers_updated_in_place_advance_on_every_call(kind: type[Writer]) -> None:
    model = kind()
    compiled = compile_neutral(model, X)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    twin = kind()
    twin.load_state_dict(model.state_dict())
    for _ in range(3):
        expected = twin(X)
        assert torch.equal(compiled(X), expected)
    for name in before:
        buffer = compiled.get_buffer(name)
        assert torch.equal(buffer, twin.get_buffer(name)), name
    assert any(not torch.equal(before[name], buffer) for name, buffer in twin.named_buffers())


def test_in_place_updates_are_captured() -> None:
    for kind in (AddsInPlace, MovingAverage, CopiesInto):
        assert_whole(compile_neutral(kind(), X))


class EvalsChild(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.child.eval()
        return self.child(self.layer(x))


class TrainsChild(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.child[1].train(True)
        return self.child(self.layer(x))


class SetsTraining(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.child[1].training = False
        return self.child(self.layer(x))


class Freezes(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.child.requires_grad_(False)
        return self.child(self.layer(x))


class FreezesParameter(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight.requires_grad = False
        return self.child(self.layer(x))


@pytest.mark.parametrize("kind", [EvalsChild, TrainsChild, SetsTraining, Freezes, FreezesParameter])
def test_changing_a_mode_of_a_sub_module_keeps_python(kind: type[Writer]) -> None:
    model = kind()
    flags = [module.training for module in model.modules()]
    compiled = compile_neutral(model, X)
    assert "" in compiled.report.left
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.requires_grad for parameter in model.parameters())


class PythonRandom(Writer):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * random.random()


class PythonChoice(Writer):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if random.random() > 0.5 else self.child(x)


class NumpyRandom(Writer):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * float(np.random.rand())


@pytest.mark.parametrize("kind", [PythonRandom, PythonChoice])
def test_random_numbers_of_python_keep_python(kind: type[Writer]) -> None:
    state = random.getstate()
    compiled = compile_neutral(kind(), X)
    assert random.getstate() == state
    assert_left(compiled, "", "it draws random numbers in Python")


def test_random_numbers_of_numpy_keep_python() -> None:
    state = np.random.get_state()
    model = NumpyRandom()
    compiled = fxs.compile(model, None, (X,))
    assert np.array_equal(np.random.get_state()[1], state[1])
    assert_left(compiled, "", "it draws random numbers in Python")


MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "rand": lambda x: torch.rand(4),
    "rand of the batch": lambda x: torch.rand(x.shape[0], 1, device=x.device, dtype=x.dtype),
    "rand of a size": lambda x: torch.rand(x.shape),
    "randn": lambda x: torch.randn((x.size(0), 4)),
    "randn_like": lambda x: torch.randn_like(x),
    "rand_like": lambda x: torch.rand_like(x) if x is not None else x,
    "randint": lambda x: torch.randint(0, 5, (4,)).float(),
    "randperm": lambda x: torch.randperm(4).float(),
    "normal": lambda x: torch.normal(0.0, 1.0, (4,)),
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.5)),
    "empty and filled": lambda x: torch.empty(x.shape[0], 1).bernoulli_(0.5),
    "new_empty": lambda x: x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).normal_(),
    "multinomial": lambda x: torch.multinomial(torch.ones(4), 4).float(),
}


class Makes(nn.Module):
    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.make(x)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
def test_random_tensors_are_drawn_on_every_call_as_in_eager(make: Callable[[Tensor], Tensor]) -> None:
    model = Makes(make)
    fxs.check(compiled := fxs.compile(model, None, (X,)), model, (X,)).raise_if_different()
    assert_whole(compiled)
    x = torch.randn(5, 4)
    torch.manual_seed(3)
    expected = [model(x), model(x)]
    torch.manual_seed(3)
    found = [compiled(x), compiled(x)]
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[1], found[1])
    assert not torch.equal(found[0], found[1])


CONSTANT: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": lambda x: torch.zeros(x.shape[0], 1),
    "zeros of a size": lambda x: torch.zeros(x.size()),
    "ones": lambda x: torch.ones((x.shape[0], 4), dtype=x.dtype, device=x.device),
    "full": lambda x: torch.full((x.shape[0], 1), 2.0),
    "arange of the batch": lambda x: torch.arange(x.shape[0])[:, None].float(),
    "arange of the width": lambda x: torch.arange(x.shape[1], device=x.device),
    "eye": lambda x: x @ torch.eye(x.shape[-1]),
    "linspace": lambda x: torch.linspace(0, 1, x.shape[1]),
    "tensor": lambda x: torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "tensor of the batch": lambda x: torch.tensor(float(x.shape[1])),
    "as_tensor": lambda x: torch.as_tensor([1.0, 2.0, 3.0, 4.0]),
    "zeros_like": lambda x: torch.zeros_like(x) + 1,
    "new_zeros": lambda x: x.new_zeros(x.shape[0], 4) + 1,
    "triangle": lambda x: x @ torch.triu(torch.ones(4, 4), diagonal=1),
    "mask": lambda x: torch.zeros(4).masked_fill(torch.arange(4) > 2, 7.0),
    "cat": lambda x: torch.cat([x[:, :1], torch.zeros(x.shape[0], 3)], 1),
    "meshgrid": lambda x: torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten()[:4],
    "one hot": lambda x: torch.nn.functional.one_hot(torch.arange(4), 4).sum(0),
}


@pytest.mark.parametrize("make", CONSTANT.values(), ids=CONSTANT.keys())
def test_tensors_made_in_forward_stay_live(make: Callable[[Tensor], Tensor]) -> None:
    assert_whole(compile_neutral(Makes(make), X))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        return self.a(x) if self.training else self.b(x)


class Functional(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.a(x), 0.5, training=self.training)


class FunctionalNot(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.a(x), 0.5 if self.training else 0.0, True) + self.b(x) * (not self.training)


class OfChild(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if self.drop.training else self.b(x)


@pytest.mark.parametrize("kind", [Branches, Functional, FunctionalNot, OfChild])
@pytest.mark.parametrize("start", [True, False])
def test_training_flag_stays_live(kind: type[Branches], start: bool) -> None:
    model = kind().train(start)
    compiled = compile_neutral(model, X)
    assert_whole(compiled)
    assert compiled.training is start
    for change in ("train", "eval", "eval drop", "train drop", "train", "eval drop"):
        name, _, child = change.partition(" ")
        for each in (model, compiled):
            getattr(each.get_submodule(child), name)()
        torch.manual_seed(1)
        expected = model(X)
        torch.manual_seed(1)
        assert torch.equal(compiled(X), expected), change


def test_functional_dropout_reads_the_flag_at_run_time() -> None:
    compiled = compile_neutral(Functional(), X)
    assert "training" in operators(compiled)
    assert len(compiled.graphs) == 1


class Seeds(Writer):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return self.layer(x) + torch.rand(4)


class Forks(Writer):
    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            noise = torch.rand(4)
        return self.layer(x) + noise


@pytest.mark.parametrize("kind", [Seeds, Forks])
def test_seeding_in_forward_keeps_python(kind: type[Writer]) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    model = kind()
    torch.set_rng_state(state)
    compiled = fxs.compile(model, None, (X,))
    assert torch.equal(torch.get_rng_state(), state)
    assert_left(compiled, "", "random number generator")
    fxs.check(compiled, model, (X,)).raise_if_different()


def test_what_a_module_remembers_while_it_is_captured_is_forgotten() -> None:
    """A cache that is filled by the first call in eval mode is empty for the compiled model's first call."""

    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.cache = nn.Parameter(torch.randn(4)), {}

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return x + self.bias * 2
            key = str(x.device)
            if key not in self.cache:
                self.cache[key] = (self.bias * 2).detach()
            return x + self.cache[key]

    model = nn.Sequential(nn.Linear(4, 4), Biased(), nn.Linear(4, 4))
    for module in (model, model.eval()):
        compiled = fxs.compile(module, None, (X,))
        assert model[1].cache == {}
        for train in (False, True):
            fxs.check(compiled, model, (X,), train=train).raise_if_different()


def test_an_attribute_written_to_a_layer_of_torch_is_noticed() -> None:
    class Marks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.layer.seen = True  # type: ignore[assignment]
            return self.layer(x)

    model = nn.Sequential(nn.Linear(4, 4), Marks())
    compiled = compile_neutral(model, X)
    assert any("'seen'" in reason for reason in compiled.report.left.values())
    assert not hasattr(model[1].layer, "seen")
    compiled(X)
    assert compiled._root[1].layer.seen
