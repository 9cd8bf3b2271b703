"""Models of one idea each that break tracers: bit for bit as in eager at the neutral policy, and one sparse step."""

from __future__ import annotations

import collections
import copy
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxsparse as fxs
from fxsparse.passes.capture.rebuild import tensors_in

from .neutral import compile_neutral

X = torch.randn(2, 6, 8)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {}


def case(*example: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Makes a model one of the cases."""

    def note(kind: type[nn.Module]) -> type[nn.Module]:
        CASES[kind.__name__] = kind, example or (X,)
        return kind

    return note


class Layers(nn.Module):
    """Two layers of the usual kind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)


class Output(collections.OrderedDict):  # type: ignore[type-arg]
    """A result that can be asked by key and by attribute, as libraries make them."""

    __getattr__ = collections.OrderedDict.__getitem__


@dataclass
class Result:
    hidden: Tensor
    extra: list[Tensor] = field(default_factory=list)


class Cache:
    """Grows with every layer, and is no container that anybody knows."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Tensor]] = []

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.layers.append({"key": key, "value": value})
        return key, value


@case()
class ReturnsCache(Layers):
    def forward(self, x: Tensor) -> Any:
        cache = Cache()
        for layer in (self.a, self.b):
            key, x = cache.update(layer(x), x.tanh())
            x = key * x
        return x, cache


@case()
class ReturnsDataclass(Layers):
    def forward(self, x: Tensor) -> Result:
        hidden = self.a(x)
        return Result(hidden, [self.b(hidden)])


@case()
class DataclassBetweenParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = ReturnsDataclass(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = self.first(x)
        return self.last(found.hidden + found.extra[0])


@case()
class Wrapped(Layers):
    """A decorator that looks at keyword arguments, and hands them on."""

    @staticmethod
    def with_defaults(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("scale", 2.0 if self.training else 3.0)
            return function(self, *args, **kwargs)

        wrapper.__wrapped__ = function  # type: ignore[attr-defined]
        return wrapper

    @with_defaults
    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.b(self.a(x).relu() * scale)


@case()
class ShapesEverywhere(Layers):
    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = max(1, min(width // 4, length))
        y = self.a(x).view(batch, length, heads, -1).transpose(1, 2)
        scores = (y @ y.mT) / math.sqrt(y.size(-1))
        mask = torch.full((length, length), float("-inf"), device=x.device).triu(1)
        y = torch.softmax(scores + mask, -1) @ y
        return self.b(y.transpose(1, 2).reshape(batch, length, width))


@case()
class BatchInPython(Layers):
    """Loops over samples, and decides by how many there are."""

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.a(x[i]) for i in range(len(x))]
        return self.b(torch.stack(rows)) if x.shape[0] > 2 else torch.stack(rows)


@case()
class Rotary(Layers):
    """A part without learning, in a region of its own."""

    class Angles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", 1.0 / 100 ** (torch.arange(0, 8, 2) / 8), persistent=False)
            self.steps: Tensor

        @torch.no_grad()
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            angle = torch.arange(x.shape[1], device=x.device)[:, None] * self.steps
            angle = torch.cat((angle, angle), -1)
            return angle.cos().to(x.dtype), angle.sin().to(x.dtype)

    def __init__(self) -> None:
        super().__init__()
        self.angles = self.Angles()

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.angles(x)
        q = self.a(x)
        half = torch.cat((-q[..., 4:], q[..., :4]), -1)
        return self.b(q * cos + half * sin)


@case()
class MixtureLoop(nn.Module):
    """Which expert runs on which token depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3))
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero(as_tuple=True)
            if rows[0].numel() > 0:
                out = out.index_put(rows, expert(x[rows]))
        return self.last(out + x)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -0.5 * grad


@case()
class CustomFunction(Layers):
    class Turn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Reverse.apply(x)

    def __init__(self) -> None:
        super().__init__()
        self.turn = self.Turn()

    def forward(self, x: Tensor) -> Tensor:
        items = {"x": self.a(x)}
        return self.b(self.turn(**items)) if len(items) else x


@case()
class CheckpointingLayer(nn.Module):
    """Its call, not its forward, decides to recompute."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.again = nn.Linear(8, 8), True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if self.again and self.training:
                return checkpoint(super().__call__, *args, use_reentrant=False, **kwargs)
            return super().__call__(*args, **kwargs)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).tanh()

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@case()
class DropsLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not self.training or torch.rand(()) > 0.5:
                x = layer(x)
        return x


@case()
class PythonDice(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * random.uniform(0.5, 1.0) + self.b(x) * float(np.random.rand())


@case()
class FunctionalDropout(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.a(x), 0.3, self.training)
        p = 0.0 if not self.training else 0.2
        return F.dropout(self.b(x), p=p)


@case()
class InPlace(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        view = y[:, 0]
        y += 1
        y[:, 1:].mul_(2)
        view.add_(y[:, 1])
        y[y > 1] = 0.5
        return self.b(y) + view[:, None]


@case()
class RunningState(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.mean: Tensor
        self.count: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.training:
            self.mean.lerp_(y.detach().mean((0, 1)), 0.1)
            self.count += 1
        return self.b(y - self.mean)


@case()
class RemembersLast(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.last is not None:
            y = y + self.last
        self.last = y.detach()
        return self.b(y)


@case()
class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.abs().sum(-1).long() % 9
        return self.head(self.body(self.words(tokens)))


@case()
class CalledTwice(Layers):
    def forward(self, x: Tensor) -> Tensor:
        steps: Iterator[nn.Module] = iter([self.a, self.b, self.a])
        while (step := next(steps, None)) is not None:
            x = step(x).sigmoid()
        return x


@case()
class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x).relu())


@case()
class Adapter(nn.Module):
    """A frozen layer and a learning one of low rank beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.adapters = nn.ModuleDict({"down": nn.Linear(8, 2, bias=False), "up": nn.Linear(2, 8, bias=False)})
        self.active = ["down", "up"]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base(x, *args, **kwargs)
        for name in self.active:
            x = self.adapters[name](x.to(self.adapters[name].weight.dtype))
        return result + x * 0.5


@case()
class AddedMatrixProduct(nn.Module):
    """A layer whose weight is stored the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 5) / 4), nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        size_out = (*x.size()[:-1], self.bias.shape[0])
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


@case()
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Parameter(torch.randn(8, 2, 4) / 4), nn.Parameter(torch.randn(2, 4, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.einsum("bld,dhk->bhlk", x, self.q)
        return torch.einsum("bhlk,hkd->bld", F.scaled_dot_product_attention(heads, heads, heads), self.out)


@case(X, None)
class OptionalInput(Layers):
    def forward(self, x: Tensor, mask: Tensor | None = None, flags: dict[str, bool] | None = None) -> Tensor:
        flags = dict(flags or {"twice": True})
        y = self.a(x)
        if mask is not None:
            y = y.masked_fill(mask, 0.0)
        return self.b(y) * (2 if flags["twice"] else 1)


@case({"x": X, "more": [X * 2, (X, None)]})
class NestedInput(Layers):
    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        first, (second, _nothing) = batch["more"]
        return Output(hidden=self.a(batch["x"]) + first, other=(self.b(second), 3))


@case()
class Generator(Layers):
    """Tensors that flow through generators, zips and sorted keys."""

    def forward(self, x: Tensor) -> Tensor:
        parts = dict(zip(("z", "y"), x.chunk(2, dim=1), strict=True))
        done = (layer(parts[name]) for layer, name in zip((self.a, self.b), sorted(parts), strict=True))
        return torch.cat(list(done), 1)


@case()
class Match(Layers):
    def forward(self, x: Tensor) -> Tensor:
        match x.shape, self.training:
            case (_, _, 8), True:
                return self.a(x)
            case _:
                return self.b(x)


@case()
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 5, batch_first=True, bidirectional=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, last = self.rnn(x)
        return self.head(out) + last.sum()


@case()
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return self.attend(y, x, x, need_weights=len(x.shape) == 3)


@case()
class Spectrum(Layers):
    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.a(x), dim=1)
        return self.b(torch.fft.irfft(spectrum * spectrum.abs().clamp(max=1), n=x.shape[1], dim=1))


@case()
class Autocast(Layers):
    class Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.layer(x).float()

    def __init__(self) -> None:
        super().__init__()
        self.low = self.Low()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.low(self.a(x)))


@case()
class Buffered(Layers):
    """Tensors in lists and attributes that nobody registered."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = [torch.ones(8) * 2, torch.ones(8) * 3]
        self.table = {"shift": torch.ones(8)}

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * self.scales[0] + self.table["shift"]) * self.scales[1]


def sizes_within(shifts: list[int], sizes: Any) -> list[int]:
    """Writes into the list that it is given, as a wrapped function may."""
    for index, size in enumerate(sizes):
        if size <= shifts[index]:
            shifts[index] = 0
    return shifts


def rolled(x: Tensor, weight: Tensor, shifts: list[int]) -> Tensor:
    return F.linear(torch.roll(x, shifts, (1, 2)) if sum(shifts) > 0 else x, weight)


torch.fx.wrap("sizes_within")
torch.fx.wrap("rolled")


@case()
class WrappedFunctions(Layers):
    """One of them gives the numbers that the other decides by."""

    def forward(self, x: Tensor) -> Tensor:
        return rolled(self.b(x), self.a.weight, sizes_within([1, 8], x.shape[1:]))


def test_weights_in_wrapped_functions_are_sites() -> None:
    compiled = fxs.compile(WrappedFunctions(), None, (X,))
    assert set(compiled.sites) == {"a.weight", "b.weight"}


@pytest.mark.parametrize("name", CASES)
def test_neutral_is_equal_bit_for_bit(name: str) -> None:
    kind, example = CASES[name]
    torch.manual_seed(1)
    compile_neutral(kind(), *example)


@pytest.mark.parametrize("name", CASES)
def test_sparse_step_is_finite_and_gives_every_gradient(name: str) -> None:
    kind, example = CASES[name]
    torch.manual_seed(1)
    model = kind()
    learning = {key for key, gradient in stepped(copy.deepcopy(model), example).items() if gradient is not None}
    left = {"WeightNorm": ("layer",), "MixtureLoop": ("gate",)}  # a sparse gate sends tokens to other experts
    swat = fxs.SWAT(weight_sparsity=0.8, dense_first=False, exclude=left.get(name, ()))
    try:
        compiled = fxs.compile(model, fxs.Policy(swat, fxs.SavedActivations(bits=4)), example)
    except fxs.PolicyError as error:  # a model of which nothing large is kept
        if "SavedActivations" not in str(error):
            raise
        compiled = fxs.compile(model, swat, example)
    gradients = stepped(compiled, example)
    for key in learning if name != "DropsLayers" else ():
        assert gradients[key] is not None, key
        assert bool(gradients[key].isfinite().all()), key


def stepped(model: nn.Module, example: tuple[Any, ...]) -> dict[str, Any]:
    """The gradient of each parameter after one step."""
    torch.manual_seed(2)
    model.train()
    outputs = tensors_in(model(*example))
    sum(out.float().pow(2).sum() for out in outputs if out.requires_grad).backward()  # type: ignore[union-attr]
    return {key: parameter.grad for key, parameter in model.named_parameters()}


def test_there_are_thirty_of_them() -> None:
    assert len(CASES) >= 30
