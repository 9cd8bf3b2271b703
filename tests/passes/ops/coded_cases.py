"""The operators that keep codes, one by one: how they are called, what torch's own operator is, and which gradients are exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fxsparse.passes.ops  # noqa: F401
from fxsparse.passes.ops.coded_unary import FUNCTIONS
from fxsparse.passes.ops.pack_sparse import NEAREST

ops = torch.ops.fxsparse
GROUP = 32
SEED = 11


@dataclass(frozen=True)
class Coder:
    """How operands are coded: width, rounding, and the step of training that it depends on."""

    bits: int = 8
    seed: int = NEAREST
    step: int = 0
    wanted: bool = True

    @property
    def settings(self) -> tuple[Any, ...]:
        return torch.tensor(self.step), self.bits, GROUP, self.seed, self.wanted

    def code(self, x: Tensor, salt: int = 0) -> tuple[Tensor, Tensor, str]:
        """Another ``salt`` gives other noise; operands of one operator need noise of their own."""
        clock, bits, size, seed, wanted = self.settings
        packed, stats = ops.quantize(x.detach(), clock, bits, size, seed if seed < 0 else seed + salt, wanted)
        return packed, stats, f"range:{bits}:{size}"


@dataclass(frozen=True)
class Case:
    """One operator.

    Attributes:
        shapes: of the operands, the first of which has the batch in its first dimension. exact: which operands' gradients are exact.
        call: from a coder and operands to the operator's overload and its arguments. plain: torch's own.
        bias: how far the mean of a stochastic gradient may be off, as a share of the largest gradient; see the operators' docstrings.
        positive: the first operand's numbers are.
    """

    shapes: Sequence[tuple[int, ...]]
    call: Callable[..., tuple[Any, tuple[Any, ...]]]
    plain: Callable[..., Tensor]
    exact: tuple[int, ...] = ()
    bias: float = 0.0
    positive: bool = False
    twice: bool = False  # whether it can be differentiated twice

    def operands(self, dtype: torch.dtype = torch.float32, layout: str = "contiguous", batch: int | None = None) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        made = []
        for index, shape in enumerate(self.shapes):
            x = torch.randn(shape, generator=generator)
            x = x.abs() + 0.5 if self.positive else x
            if index == 0 and batch is not None:
                x = x[:batch]
            x = x.to(dtype)
            made.append((LAYOUTS[layout](x) if index == 0 else x).requires_grad_())
        return made

    def run(self, coder: Coder, operands: Sequence[Tensor]) -> Tensor:
        torch.manual_seed(5)  # dropout
        op, arguments = self.call(coder, *operands)
        found = op(*arguments)
        return found if isinstance(found, Tensor) else found[0]

    def expected(self, operands: Sequence[Tensor]) -> Tensor:
        torch.manual_seed(5)
        return self.plain(*operands)


def _reversed(x: Tensor) -> Tensor:
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(),
    "channels_last": lambda x: (
        x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.transpose(0, 1).contiguous().transpose(0, 1)
    ),
    "reversed": _reversed,
    "with gaps": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "flipped": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
}


def _conv(geometry: tuple[Any, ...]) -> Callable[..., tuple[Any, tuple[Any, ...]]]:
    return lambda c, x, w, b: (ops.coded_convolution.default, (x, *c.code(x), w, b, *geometry))


def _aten_conv(geometry: tuple[Any, ...]) -> Callable[..., Tensor]:
    return lambda x, w, b: torch.ops.aten.convolution.default(x, w, b, *geometry)


GEOMETRIES: dict[str, tuple[tuple[Any, ...], tuple[int, ...], tuple[int, ...], int]] = {
    "convolution": (([1, 1], [1, 1], [1, 1], False, [0, 0], 1), (2, 4, 6, 6), (5, 4, 3, 3), 5),
    "convolution, strided, grouped": (([2, 2], [1, 0], [1, 1], False, [0, 0], 2), (2, 4, 7, 6), (6, 2, 3, 3), 6),
    "convolution, depthwise, dilated": (([1, 1], [2, 2], [2, 2], False, [0, 0], 4), (2, 4, 7, 6), (4, 1, 3, 3), 4),
    "convolution, transposed": (([2, 2], [1, 1], [1, 1], True, [1, 1], 1), (2, 4, 5, 5), (4, 3, 3, 3), 3),
    "convolution, 1d": (([1], [1], [1], False, [0], 1), (2, 4, 9), (5, 4, 3), 5),
}


def _pair(name: str) -> Callable[..., tuple[Any, tuple[Any, ...]]]:
    return lambda c, a, b: (getattr(ops, name).default, (a, *c.code(a), b, *c.code(b, 1)))


def _batch_norm(training: bool) -> Case:
    def call(c: Coder, x: Tensor, w: Tensor, b: Tensor) -> tuple[Any, tuple[Any, ...]]:
        running = torch.full((6,), 0.1, dtype=w.dtype), torch.full((6,), 1.3, dtype=w.dtype)
        return ops.coded_batch_norm.default, (x, *c.code(x), w, b, *running, training, 0.1, 1e-5)

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        running = torch.full((6,), 0.1, dtype=w.dtype), torch.full((6,), 1.3, dtype=w.dtype)
        return F.batch_norm(x, *running, w, b, training, 0.1, 1e-5)

    return Case([(4, 6, 5, 5), (6,), (6,)], call, plain, exact=(2,) if training else (0, 2), bias=0.05)


def _after_layer_norm(c: Coder, source: Tensor, nw: Tensor, nb: Tensor, w: Tensor, b: Tensor) -> tuple[Any, tuple[Any, ...]]:
    packed, stats, scheme = c.code(source)
    x, mean, rstd = ops.coded_layer_norm(source, packed, stats, scheme, [24], nw, nb, 1e-5)
    return ops.coded_linear.default, (x, packed, stats, scheme, source, mean, rstd, nw, nb, w, b)


def _function(name: str) -> Case:
    return Case(
        [(3, 5, 24)], lambda c, x: (ops.coded_function.default, (x, name, *c.settings)), FUNCTIONS[name][0],
        positive=name in ("sqrt", "rsqrt"),
    )  # fmt: skip


def _masked(name: str, low: float, high: float, plain: Callable[[Tensor], Tensor]) -> Case:
    return Case([(3, 5, 23)], lambda c, x: (ops.masked_function.default, (x, name, low, high, c.wanted)), plain, exact=(0,))


def _max_pool(shape: tuple[int, ...], *geometry: Any) -> Case:
    return Case(
        [shape],
        lambda c, x: (ops.coded_max_pool2d.default, (x, *geometry, c.wanted)),
        lambda x: F.max_pool2d(x, *geometry),
        exact=(0,),
    )


def _attention(p: float = 0.0, causal: bool = False, mask: Callable[[], Tensor] | None = None, learned: bool = False) -> Case:
    shapes = [(2, 2, 6, 8), (2, 2, 7, 8), (2, 2, 7, 8)]
    if learned:
        shapes.append((6, 7))

    def given(more: tuple[Tensor, ...]) -> Tensor | None:
        return more[0] if more else mask() if mask is not None else None

    return Case(
        shapes,
        lambda c, q, k, v, *more: (ops.coded_attention.default, (q, k, v, given(more), p, causal, 0.3, *c.settings)),
        lambda q, k, v, *more: F.scaled_dot_product_attention(q, k, v, given(more), p, causal, scale=0.3),
        bias=0.01,
    )


def _avg_pool(*geometry: Any) -> Case:
    return Case(
        [(2, 3, 7, 8)], lambda c, x: (ops.lean_avg_pool2d.default, (x, *geometry)), lambda x: F.avg_pool2d(x, *geometry), exact=(0,),
        twice=True,
    )  # fmt: skip


def _some() -> Tensor:
    return torch.arange(42).view(6, 7) % 3 != 1


CASES: dict[str, Case] = {
    **{
        name: Case([shape, w, (b,)], _conv(geometry), _aten_conv(geometry), exact=(0, 2))
        for name, (geometry, shape, w, b) in GEOMETRIES.items()
    },
    "linear": Case(
        [(3, 5, 24), (7, 24), (7,)],
        lambda c, x, w, b: (ops.coded_linear.default, (x, *c.code(x), *(None,) * 5, w, b)),
        F.linear,
        exact=(0, 2),
    ),
    "linear after layer norm": Case(
        [(3, 5, 24), (24,), (24,), (7, 24), (7,)],
        _after_layer_norm,
        lambda x, nw, nb, w, b: F.linear(F.layer_norm(x, [24], nw, nb), w, b),
        exact=(2, 4),
        bias=0.05,
    ),
    "matmul": Case([(2, 3, 5, 8), (2, 3, 8, 4)], _pair("coded_matmul"), torch.matmul),
    "matmul, broadcast": Case([(2, 3, 5, 8), (8, 4)], _pair("coded_matmul"), torch.matmul),
    "mul": Case([(3, 4, 9), (3, 4, 9)], _pair("coded_mul"), torch.mul),
    "mul, broadcast": Case([(3, 4, 9), (4, 1)], _pair("coded_mul"), torch.mul),
    "layer_norm": Case(
        [(3, 5, 24), (24,), (24,)],
        lambda c, x, w, b: (ops.coded_layer_norm.default, (x, *c.code(x), [24], w, b, 1e-5)),
        lambda x, w, b: F.layer_norm(x, [24], w, b),
        exact=(2,),
        bias=0.05,
    ),
    "group_norm": Case(
        [(2, 6, 5, 5), (6,), (6,)],
        lambda c, x, w, b: (ops.coded_group_norm.default, (x, *c.code(x), 3, w, b, 1e-5)),
        lambda x, w, b: F.group_norm(x, 3, w, b),
        exact=(2,),
        bias=0.05,
    ),
    "batch_norm": _batch_norm(True),
    "batch_norm, running statistics": _batch_norm(False),
    **{name: _function(name) for name in FUNCTIONS},
    "relu": _masked("relu", 0.0, 0.0, F.relu),
    "hardtanh": _masked("hardtanh", -0.5, 0.7, lambda x: F.hardtanh(x, -0.5, 0.7)),
    "leaky_relu": _masked("leaky_relu", 0.2, 0.0, lambda x: F.leaky_relu(x, 0.2)),
    "hardsigmoid": _masked("hardsigmoid", 0.0, 0.0, F.hardsigmoid),
    "positive_relu": Case([(3, 5, 23)], lambda c, x: (ops.positive_relu.default, (x, c.bits, GROUP, c.wanted)), F.relu, exact=(0,)),
    "dropout": Case([(3, 5, 23)], lambda c, x: (ops.masked_dropout.default, (x, 0.3, c.wanted)), lambda x: F.dropout(x, 0.3), exact=(0,)),
    "softmax": Case([(3, 5, 24)], lambda c, x: (ops.coded_softmax.default, (x, -1, *c.settings)), lambda x: x.softmax(-1), bias=0.02),
    "softmax, first": Case([(3, 5, 24)], lambda c, x: (ops.coded_softmax.default, (x, 1, *c.settings)), lambda x: x.softmax(1), bias=0.02),
    "attention": _attention(),
    "attention, causal": _attention(causal=True),
    "attention, masked": _attention(mask=_some),
    "attention, added": _attention(mask=lambda: _some().float()),
    "attention, learned": _attention(learned=True),
    "attention, dropout": _attention(p=0.4),
    "max_pool": _max_pool((2, 3, 7, 8), [2, 2], [2, 2], [0, 0], [1, 1], False),
    "max_pool, overlapping": _max_pool((2, 3, 7, 8), [3, 3], [2, 1], [1, 1], [1, 1], True),
    "max_pool, dilated": _max_pool((2, 3, 9, 9), [3, 2], [2, 2], [1, 1], [2, 3], False),
    "max_pool, large": _max_pool((2, 3, 18, 18), [5, 9], [3, 3], [0, 4], [1, 1], False),
    "avg_pool": _avg_pool([2, 2], [2, 2], [0, 0], False, True, None),
    "avg_pool, padded": _avg_pool([3, 2], [2, 1], [1, 1], True, False, None),
}
APPROXIMATE = [name for name, case in CASES.items() if len(case.exact) < len(case.shapes)]
CODED_INSIDE = [name for name in CASES if name in FUNCTIONS or name.startswith(("softmax", "attention", "positive"))]
