"""What cannot be compiled is refused with the thing, the place and the remedy."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsparse as fxs

X = torch.randn(2, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor, scale: Tensor, flag: bool = True) -> Tensor:
        return self.last(self.first(x)) * scale


def words(model: Any, *example: Any, **kwargs: Any) -> str:
    """The message of the TraceError that compiling raises."""
    with pytest.raises(fxs.TraceError) as caught:
        fxs.compile(model, None, example, example_kwargs=kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_not_a_module() -> None:
    assert "a torch.nn.Module is compiled, got function; wrap a function into a Module's forward" in words(lambda x: x, X)
    assert "got the class Net" in words(Net, X)


def test_lazy_module() -> None:
    message = words(nn.Sequential(nn.LazyLinear(4)), X)
    assert "'0.weight' is not initialised (a lazy module)" in message
    assert "run the model once" in message


def test_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    message = words(model, X)
    assert "'0.weight' is on the meta device" in message
    assert "to_empty" in message


def test_shape_that_does_not_fit() -> None:
    message = words(Net(), torch.randn(2, 5), torch.ones(3))
    assert "the example inputs [(2, 5), (3,)] do not fit the model (Net)" in message
    assert "at 'first.0'" in message
    assert "pass inputs of the shapes and dtypes that the model is trained with" in message


def test_shape_that_does_not_fit_an_operator() -> None:
    assert "at 'mul'" in words(Net(), X, torch.ones(5))


def test_dtype_that_does_not_fit() -> None:
    message = words(nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4)), torch.ones(2, 4))
    assert "do not fit the model (Sequential)" in message
    assert "at '0'" in message


def test_missing_argument() -> None:
    assert "do not fit the model (Net): the argument 'scale' is missing" in words(Net(), X)


def test_too_many_arguments() -> None:
    assert "4 positional arguments where at most 3 are taken" in words(Net(), X, X, True, X)


def test_unknown_keyword() -> None:
    message = words(Net(), X, torch.ones(3), scala=X)
    assert "'scala'" in message
    assert "do not fit the model (Net)" in message


def test_argument_given_twice() -> None:
    assert "'x'" in words(Net(), X, torch.ones(3), x=X)


def test_not_a_tuple() -> None:
    with pytest.raises(fxs.TraceError, match="example_inputs is a tuple of the model's positional arguments, got dict"):
        fxs.compile(Net(), None, {"x": X})  # type: ignore[arg-type]
    with pytest.raises(fxs.TraceError, match="example_kwargs is a mapping"):
        fxs.compile(Net(), None, (X,), example_kwargs=[X])  # type: ignore[arg-type]


def test_wrong_type() -> None:
    message = words(Net(), "text", torch.ones(3))
    assert "do not fit the model (Net)" in message


def test_model_in_which_something_does_not_fit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2))
    assert "at '2'" in words(model, torch.randn(2, 3, 6, 6))


def test_bad_shape_behind_python_that_is_kept() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return y if float(y.sum()) > 0 else -y

    assert "do not fit" in words(Routed(), torch.randn(2, 5))


def test_example_on_another_device() -> None:
    message = words(nn.Sequential(nn.Linear(4, 4)), torch.empty(2, 4, device="meta"))
    assert "do not fit" in message


def test_call_that_does_not_fit_at_run_time() -> None:
    """As in eager: whatever the operator says."""
    model = Net()
    compiled = fxs.compile(model, None, (X, torch.ones(3)))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        compiled(torch.randn(2, 5), torch.ones(3))
    with pytest.raises(TypeError, match="scale"):
        compiled(X)


class Short(Net):
    def forward(self, x: Tensor, scale: Tensor, flag: bool = True) -> Tensor:
        if x.shape[1] < 8:
            raise ValueError(f"8 features are needed, got {x.shape[1]}")
        return super().forward(x, scale)


def test_model_that_refuses_the_example_itself() -> None:
    message = words(Short(), X, torch.ones(3))
    assert "the model (Short) fails on the example inputs by itself: ValueError: 8 features are needed, got 4" in message
    assert re.search(r"test_bad_input\.py:\d+: raise ValueError", message)


def test_its_own_error_is_the_cause() -> None:
    with pytest.raises(fxs.TraceError) as caught:
        fxs.compile(Short(), None, (X, torch.ones(3)))
    assert isinstance(caught.value.__cause__, ValueError)


CALLS = [0]


class Counts(nn.Module):
    """Something else in every call, by a number that belongs to no module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        CALLS[0] += 1
        return self.layer(x) * CALLS[0]


class Alternates(Counts):
    """Another structure in every other call."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        CALLS[0] += 1
        return self.layer(x) if CALLS[0] % 2 else self.other(self.other(x))


class Unseeded(Counts):
    """Random numbers from a source that nobody can seed."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * random.SystemRandom().random()


@pytest.mark.parametrize("kind", [Counts, Alternates, Unseeded])
def test_what_is_another_thing_in_every_call_is_found_by_the_check(kind: type[nn.Module]) -> None:
    model = kind()
    compiled = fxs.compile(model, None, (X,))
    reports = [fxs.check(compiled, model, (X,)) for _ in range(2)]
    assert not all(reports)
    different = next(report for report in reports if not report)
    assert "output 0" in different.differences
    with pytest.raises(fxs.VerificationError, match="differs from its original"):
        different.raise_if_different()
