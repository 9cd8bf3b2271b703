"""A contraction as loop bounds: every conv, linear and matrix product, without a tensor library.

Letters used below: P positions (batch x rows x spatial), g groups, k kernel size.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache, cached_property
from math import prod
from typing import Any

from fxsparse.errors import CostError

from .gemm import Gemm, Pass
from .validate import closest, require_count, require_counts, require_member

OPERATORS = ("conv", "conv_transpose", "linear", "matmul", "einsum", "bilinear", "recurrent")


@dataclass(frozen=True, kw_only=True)
class Contraction:
    """One operator that multiplies an input with a weight, described by its loop bounds.

    batch: samples. rows: further positions of a sample (tokens of a linear, rows of a matmul).
    in_channels, out_channels: of all groups together. kernel, stride, dilation, padding, input_size, output_size:
    one entry per spatial axis, empty for operators without space. repeats: executions that follow one another with the same
    weight (time steps of a recurrent layer). shared_weight False: the second operand is an activation too, one per sample
    (attention's products), and "grad_weight" is the gradient of that second operand.
    """

    operator: str
    batch: int
    in_channels: int
    out_channels: int
    rows: int = 1
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    input_size: tuple[int, ...] = ()
    output_size: tuple[int, ...] = ()
    bias: bool = False
    input_needs_grad: bool = True
    weight_needs_grad: bool = True
    shared_weight: bool = True
    repeats: int = 1

    def __post_init__(self) -> None:
        where = f"Contraction({self.operator!r})"
        require_member("Contraction.operator", self.operator, OPERATORS)
        for name in ("batch", "rows"):
            require_count(f"{where}.{name}", getattr(self, name), at_least=0)
        for name in ("in_channels", "out_channels", "groups", "repeats"):
            require_count(f"{where}.{name}", getattr(self, name))
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise CostError(f"{where}.{name} is {getattr(self, name)}; expected a multiple of groups = {self.groups}")
        axes = len(self.kernel)
        for name, neutral, least in (("stride", 1, 1), ("dilation", 1, 1), ("padding", 0, 0)):
            if not getattr(self, name):
                object.__setattr__(self, name, (neutral,) * axes)
            require_counts(f"{where}.{name}", getattr(self, name), at_least=least)
        require_counts(f"{where}.kernel", self.kernel)
        for name in ("stride", "dilation", "padding", "input_size", "output_size"):
            value = getattr(self, name)
            if len(value) != axes:
                raise CostError(f"{where}.{name} is {value!r}; expected {axes} entries, one per axis of kernel {self.kernel!r}")
        for name in ("input_size", "output_size"):
            require_counts(f"{where}.{name}", getattr(self, name))

    @classmethod
    def conv(
        cls,
        *,
        batch: int,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        input_size: tuple[int, ...],
        stride: tuple[int, ...] = (),
        padding: tuple[int, ...] = (),
        dilation: tuple[int, ...] = (),
        groups: int = 1,
        bias: bool = False,
        input_needs_grad: bool = True,
    ) -> Contraction:
        """A convolution, its output size worked out from its input size."""
        axes = len(kernel)
        stride, padding, dilation = stride or (1,) * axes, padding or (0,) * axes, dilation or (1,) * axes
        output_size = tuple(
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(input_size, kernel, stride, padding, dilation, strict=True)
        )
        return cls(
            operator="conv",
            batch=batch,
            in_channels=in_channels,
            out_channels=out_channels,
            groups=groups,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=padding,
            input_size=input_size,
            output_size=output_size,
            bias=bias,
            input_needs_grad=input_needs_grad,
        )

    @classmethod
    def linear(
        cls, *, batch: int, in_features: int, out_features: int, rows: int = 1, bias: bool = True, input_needs_grad: bool = True
    ) -> Contraction:
        """A linear layer on batch x rows vectors."""
        return cls(
            operator="linear",
            batch=batch,
            rows=rows,
            in_channels=in_features,
            out_channels=out_features,
            bias=bias,
            input_needs_grad=input_needs_grad,
        )

    @classmethod
    def matmul(cls, *, batch: int, m: int, k: int, n: int, heads: int = 1) -> Contraction:
        """batch x heads independent products of two activations, (m, k) times (k, n)."""
        return cls(operator="matmul", batch=batch, rows=m, in_channels=heads * k, out_channels=heads * n, groups=heads, shared_weight=False)

    @property
    def transposed(self) -> bool:
        """True for a transposed convolution, whose loops run over input positions."""
        return self.operator == "conv_transpose"

    @cached_property
    def positions(self) -> int:
        """Positions of one execution that every weight meets: output positions, or input positions of a transposed conv."""
        return self.batch * self.rows * prod(self.input_size if self.transposed else self.output_size)

    @cached_property
    def weight_elements(self) -> int:
        """Elements of the weight; of the second operand of all samples when it is not shared."""
        single = self.in_channels * self.out_channels * prod(self.kernel) // self.groups
        return single if self.shared_weight else single * self.batch * self.repeats

    @property
    def bias_elements(self) -> int:
        """Elements of the bias, 0 without one."""
        return self.out_channels if self.bias else 0

    @cached_property
    def input_elements(self) -> int:
        """Elements of the input of all executions, as stored (not unfolded)."""
        return self.repeats * self.batch * self.rows * self.in_channels * prod(self.input_size)

    @cached_property
    def output_elements(self) -> int:
        """Elements of the output of all executions."""
        return self.repeats * self.batch * self.rows * self.out_channels * prod(self.output_size)

    @cached_property
    def forward_macs(self) -> int:
        """MACs of the forward pass, products with padding zeros counted. Source: counting argument."""
        return self.repeats * self.positions * self.in_channels * self.out_channels * prod(self.kernel) // self.groups

    def macs(self, which: Pass) -> int:
        """Dense MACs of one pass; 0 for a gradient that nobody needs."""
        if which == "grad_input" and not self.input_needs_grad:
            return 0
        if which == "grad_weight" and not self.weight_needs_grad:
            return 0
        return self.forward_macs

    @cached_property
    def unpadded_forward_macs(self) -> int:
        """MACs of the forward pass without the products with padding zeros (of a transposed conv: without cropped results)."""
        taps = 1
        for k, s, d, p, size_in, size_out in zip(
            self.kernel, self.stride, self.dilation, self.padding, self.input_size, self.output_size, strict=True
        ):
            steps, limit = (size_in, size_out) if self.transposed else (size_out, size_in)
            taps *= sum(_steps_inside(offset=tap * d - p, step=s, steps=steps, limit=limit) for tap in range(k))
        return self.repeats * self.batch * self.rows * taps * self.in_channels * self.out_channels // self.groups

    def gemm(self, which: Pass) -> Gemm:
        """The matrix product of one pass of one execution (multiply by `repeats` for all of them).

        A conv is unfolded: forward (P x k·Cin/g) times (k·Cin/g x Cout/g); its grad-input is the same product turned around,
        whose results are added into the input's positions, and has no inserted zeros. Its MACs equal `macs(which)`.
        """
        m, k, n, groups = self.positions, self.in_channels // self.groups, self.out_channels // self.groups, self.groups
        if self.transposed:
            n *= prod(self.kernel)
        else:
            k *= prod(self.kernel)
        if not self.shared_weight:
            m, groups = m // self.batch if self.batch else 0, groups * self.batch
        if which == "forward":
            return Gemm(m=m, k=k, n=n, groups=groups)
        if which == "grad_input":
            return Gemm(m=m, k=n, n=k, groups=groups)
        require_member("pass", which, ("forward", "grad_input", "grad_weight"))
        return Gemm(m=k, k=m, n=n, groups=groups)

    def with_batch(self, batch: int) -> Contraction:
        """The same contraction for another number of samples."""
        return replace(self, batch=batch)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary that `from_dict` turns back into an equal contraction."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": "contraction", **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Contraction:
        """The contraction that `to_dict` described.

        Raises: CostError naming an unknown or a missing key.
        """
        return cls(**known_fields(cls, values))


def known_fields(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The values as constructor arguments of a workload class: "kind" dropped, lists made tuples.

    Raises: CostError naming an unknown or a missing key.
    """
    declared, required = _declared(cls)
    given = {name: value for name, value in values.items() if name != "kind"}
    for name in given:
        if name not in declared:
            raise CostError(f"{cls.__name__} has no field {name!r}{closest(name, declared)}; fields: {', '.join(declared)}")
    missing = [name for name in required if name not in given]
    if missing:
        raise CostError(f"{cls.__name__} lacks {', '.join(missing)}; got {', '.join(given) or 'nothing'}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


@cache
def _declared(cls: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of a workload class's fields, and of those without a default."""
    known = fields(cls)
    required = (field.name for field in known if field.default is MISSING and field.default_factory is MISSING)
    return tuple(field.name for field in known), tuple(required)


def _steps_inside(*, offset: int, step: int, steps: int, limit: int) -> int:
    """How many i in 0..steps-1 have 0 <= offset + i·step < limit."""
    first = max(0, -(offset // step))
    last = min(steps - 1, (limit - 1 - offset) // step)
    return max(0, last - first + 1)
