"""The forms in which a model can take and return its tensors."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fxsparse as fxs

from .neutral import assert_left, assert_whole, compile_neutral

X = torch.randn(2, 4)
Y = torch.randn(2, 4)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Batch:
    first: Tensor
    second: Tensor


Record = collections.namedtuple("Record", ["loss", "state"])


class TakesDict(Layers):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        return {"sum": self.a(batch["x"]) + self.b(batch["y"]), "parts": [batch["x"], (batch["y"], None)], "n": 3}


class TakesNested(Layers):
    def forward(self, batch: list[Any]) -> Any:
        (x, more), *rest = batch
        return Pair(self.a(x), self.b(more["y"] + rest[0]))


class TakesTuple(Layers):
    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        x, y = pair
        return self.a(x), self.b(y), x + y


class TakesNamed(Layers):
    def forward(self, pair: Pair) -> Record:
        return Record(loss=self.a(pair.first).sum(), state=[self.b(pair.second)])


class TakesMany(Layers):
    def forward(self, *xs: Tensor) -> Tensor:
        return self.a(sum(xs)) if len(xs) > 1 else self.b(xs[0])  # type: ignore[arg-type]


class TakesKeywords(Layers):
    def forward(self, x: Tensor, **more: Any) -> Tensor:
        y = self.a(x)
        for name in sorted(more):
            y = y + self.b(more[name])
        return y


class KeywordOnly(Layers):
    def forward(self, x: Tensor, /, *, y: Tensor, scale: float = 2.0) -> Tensor:
        return self.a(x) + self.b(y) * scale


class Mixed(Layers):
    def forward(self, x: Tensor, flag: bool, name: str = "a", *rest: Tensor, power: int = 1, **extra: Tensor) -> Tensor:
        layer = getattr(self, name)
        x = layer(x) ** power
        for tensor in (*rest, *extra.values()):
            x = x + tensor
        return x if flag else -x


CASES: dict[str, tuple[type[Layers], tuple[Any, ...], dict[str, Any]]] = {
    "dict": (TakesDict, ({"x": X, "y": Y},), {}),
    "nested": (TakesNested, ([(X, {"y": Y}), X + 1],), {}),
    "tuple": (TakesTuple, ((X, Y),), {}),
    "named tuple": (TakesNamed, (Pair(X, Y),), {}),
    "many": (TakesMany, (X, Y, X + 1), {}),
    "one of many": (TakesMany, (X,), {}),
    "keywords": (TakesKeywords, (X,), {"z": Y, "y": X + 1}),
    "no keywords": (TakesKeywords, (X,), {}),
    "keyword only": (KeywordOnly, (X,), {"y": Y}),
    "by keyword": (TakesTuple, (), {"pair": (X, Y)}),
    "mixed": (Mixed, (X, True, "b", Y), {"power": 2, "more": X + 1}),
    "same tensor twice": (TakesTuple, ((X, X),), {}),
}


@pytest.mark.parametrize(("kind", "args", "kwargs"), CASES.values(), ids=CASES.keys())
def test_form_is_captured(kind: type[Layers], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    model = kind()
    compiled = compile_neutral(model, *args, kwargs=kwargs)
    assert_whole(compiled)
    expected, found = model(*args, **kwargs), compiled(*args, **kwargs)
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        assert found["parts"][1][1] is None
        assert found["n"] == 3


def test_other_values_of_plain_arguments_get_graphs_of_their_own() -> None:
    model = Mixed()
    compiled = compile_neutral(model, X, True)
    for args, kwargs in [((X, False), {}), ((X, True, "b"), {"power": 3}), ((X, True), {"name": "b"}), ((X, 1), {}), ((X, True), {})]:
        fxs.check(compiled, model, args, example_kwargs=kwargs).raise_if_different()


def test_other_structure_gets_a_graph_of_its_own() -> None:
    model = TakesMany()
    compiled = compile_neutral(model, X)
    for count in (1, 2, 3):
        fxs.check(compiled, model, (X,) * count).raise_if_different()
        fxs.check(compiled, model, tuple(torch.randn(2, 4) for _ in range(count))).raise_if_different()


class Identity(Layers):
    """Asks whether two inputs are one object, as attention does."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) if x is y else self.b(x + y)


@pytest.mark.parametrize("first", [(X, X), (X, Y)])
def test_same_tensor_passed_twice_or_two_tensors(first: tuple[Tensor, Tensor]) -> None:
    model = Identity()
    compiled = compile_neutral(model, *first)
    for args in ((X, X), (X, Y), (Y, Y)):
        fxs.check(compiled, model, args).raise_if_different()


class MakesBatch(Layers):
    def forward(self, x: Tensor) -> Batch:
        return Batch(self.a(x), second=self.b(x))


class UsesBatchInside(Layers):
    def forward(self, x: Tensor) -> Tensor:
        batch = Batch(self.a(x), second=self.b(x))
        return batch.first * batch.second


def test_dataclass_output() -> None:
    model = MakesBatch()
    compiled = fxs.compile(model, None, (X,))
    found, expected = compiled(X), model(X)
    assert type(found) is Batch
    assert torch.equal(found.first, expected.first)
    assert torch.equal(found.second, expected.second)


def test_dataclass_inside_forward() -> None:
    assert_whole(compile_neutral(UsesBatchInside(), X))


class TakesBatch(Layers):
    def forward(self, batch: Batch) -> Tensor:
        return self.a(batch.first) + self.b(batch.second)


def test_dataclass_input_is_right_for_every_batch() -> None:
    model = TakesBatch()
    compiled = fxs.compile(model, None, (Batch(X, Y),))
    for batch in (Batch(X, Y), Batch(Y, X), Batch(X[:1], Y[:1])):
        assert torch.equal(compiled(batch), model(batch))
    assert {"a", "b"} <= set(compiled.graphs)


class ReturnsInput(Layers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, int, None]:
        return x, self.a(x), 5, None


class ReturnsShape(Layers):
    def forward(self, x: Tensor) -> tuple[Tensor, Any, int]:
        return self.a(x), x.shape, x.shape[0]


def test_constants_and_inputs_as_outputs() -> None:
    assert_whole(compile_neutral(ReturnsInput(), X))


def test_shape_as_output_stays_live() -> None:
    model = ReturnsShape()
    compiled = compile_neutral(model, X)
    _, shape, count = compiled(torch.randn(7, 4))
    assert shape == torch.Size([7, 4])
    assert count == 7


class MutatesDict(Layers):
    """Writes its result into the caller's dictionary."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch["out"] = self.a(batch["x"])
        return batch


def test_dictionary_of_the_caller_is_written_as_in_eager() -> None:
    model = MutatesDict()
    compiled = fxs.compile(model, None, ({"x": X},))
    batch = {"x": X}
    compiled(batch)
    assert torch.equal(batch["out"], model({"x": X})["out"])


class PopsDict(Layers):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.a(batch.pop("x"))


def test_example_dictionary_is_not_changed() -> None:
    example = {"x": X, "y": Y}
    compiled = fxs.compile(PopsDict(), None, (example,))
    assert set(example) == {"x", "y"}
    compiled(example)
    assert set(example) == {"y"}


class InPlaceInput(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return self.a(x)


def test_input_written_in_place_as_in_eager() -> None:
    example = X.clone()
    compiled = fxs.compile(InPlaceInput(), None, (example,))
    assert torch.equal(example, X)
    compiled(example)
    assert torch.equal(example, X + 1)


class UserDict(dict):  # type: ignore[type-arg]
    pass


def test_foreign_container_is_not_frozen() -> None:
    model = TakesDict()
    compiled = fxs.compile(model, None, ({"x": X, "y": Y},))
    found = compiled(UserDict(x=Y, y=X))
    assert torch.equal(found["sum"], model({"x": Y, "y": X})["sum"])


class NumberArgument(Layers):
    def forward(self, x: Tensor, temperature: float) -> Tensor:
        return self.a(x) / temperature


def test_many_values_of_a_number() -> None:
    """Once there are too many forms, the model's own Python takes the call, as long as nothing was rewritten."""
    model = NumberArgument()
    compiled = fxs.compile(model, None, (X, 1.0))
    for step in range(20):
        assert torch.equal(compiled(X, 1.0 + step), model(X, 1.0 + step))


def test_many_values_of_a_number_in_a_rewritten_model() -> None:
    compiled = fxs.compile(NumberArgument(), fxs.SWAT(weight_sparsity=0.5, dense_first=False), (X, 1.0))
    for step in range(20):
        compiled(X, torch.tensor(1.0 + step))
    for step in range(7):
        compiled(X, 1.0 + step)
    compiled.eval()
    for number in (8.0, 9.0, 10.0):  # beyond the bound its own Python runs, and calls the graphs of its parts
        assert torch.equal(compiled(X, number), compiled(X, torch.tensor(number)))


class NoExample(Layers):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.a(x) if y is None else self.b(y)


def test_without_example_inputs() -> None:
    model = NoExample()
    compiled = fxs.compile(model)
    fxs.check(compiled, model, (X,)).raise_if_different()
    fxs.check(compiled, model, (X, Y)).raise_if_different()


class NestedUser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Mixed()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, False, "b", x, power=2, more=x * 2)


def test_sub_module_called_with_everything_is_inlined() -> None:
    compiled = compile_neutral(NestedUser(), X)
    assert_whole(compiled)
    assert list(compiled.graphs) == [""]


def test_left_reasons_are_sentences_of_one_line() -> None:
    compiled = fxs.compile(TakesBatch(), None, (Batch(X, Y),))
    for reason in compiled.report.left.values():
        assert "\n" not in reason
        assert len(reason) < 250


def test_left_helper_sees_the_reason() -> None:
    with pytest.raises(AssertionError):
        assert_left(compile_neutral(TakesMany(), X), "", "anything")
