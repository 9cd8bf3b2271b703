"""Operators that move data and compute per element, without a contraction: norms, activations, pooling, embeddings, copies."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from fxsparse.errors import CostError

from .gemm import Pass
from .validate import require_count
from .workload import known_fields

# Elementwise FLOPs per element: (forward per output element, backward per input element). Transcendentals count as one.
FLOPS_PER_ELEMENT: dict[str, tuple[float, float]] = {
    "add": (1, 0),
    "mul": (1, 2),
    "relu": (1, 1),
    "activation": (4, 6),
    "dropout": (2, 1),
    "batch_norm": (7, 11),
    "layer_norm": (8, 13),
    "softmax": (4, 3),
    "max_pool": (1, 1),
    "avg_pool": (1, 1),
    "embedding": (0, 1),
    "copy": (0, 0),
    "reshape": (0, 0),
    "top_k": (2, 0),
    "mask": (1, 1),
    "pack": (4, 3),
    "loss": (5, 2),
    "sgd": (4, 0),
    "adam": (12, 0),
    "other": (1, 1),
}


@dataclass(frozen=True, kw_only=True)
class Pointwise:
    """One operator without MACs; bytes and FLOPs are per sample, so that the batch scales them.

    fixed_bytes and fixed_backward_bytes do not grow with the batch (parameters read, parameter gradients written), nor do
    fixed_flops and fixed_backward_flops (of operators on parameters).
    made_bytes, backward_made_bytes: of the largest tensor that is made anew, which an operator in place does not.
    free: a view that neither reads nor writes; all its bytes must be 0.
    """

    operator: str
    batch: int
    read_bytes: int = 0
    write_bytes: int = 0
    fixed_bytes: int = 0
    flops: float = 0
    backward_read_bytes: int = 0
    backward_write_bytes: int = 0
    fixed_backward_bytes: int = 0
    backward_flops: float = 0
    fixed_flops: float = 0
    fixed_backward_flops: float = 0
    made_bytes: int = 0
    backward_made_bytes: int = 0
    free: bool = False

    def __post_init__(self) -> None:
        where = f"Pointwise({self.operator!r})"
        sizes = ("read_bytes", "write_bytes", "fixed_bytes", "backward_read_bytes", "backward_write_bytes", "fixed_backward_bytes")
        for name in ("batch", "made_bytes", "backward_made_bytes", *sizes):
            require_count(f"{where}.{name}", getattr(self, name), at_least=0)
        for name in ("flops", "backward_flops", "fixed_flops", "fixed_backward_flops"):
            if not getattr(self, name) >= 0:
                raise CostError(f"{where}.{name} is {getattr(self, name)!r}; expected a number >= 0")
        if self.free and any(getattr(self, name) for name in sizes):
            raise CostError(f"{where} is declared free but moves bytes; expected every byte count to be 0, or free=False")

    @classmethod
    def of(
        cls,
        operator: str,
        *,
        batch: int,
        input_elements: int,
        output_elements: int,
        parameter_elements: int = 0,
        saved_elements: int = 0,
        element_bytes: int = 4,
        backward: bool = True,
    ) -> Pointwise:
        """An operator by element counts per sample, its FLOPs from `FLOPS_PER_ELEMENT` ("other" for unknown names).

        saved_elements: what backward reads again beside the output's gradient.
        """
        per_output, per_input = FLOPS_PER_ELEMENT.get(operator, FLOPS_PER_ELEMENT["other"])
        if operator == "reshape":
            return cls(operator=operator, batch=batch, free=True)
        return cls(
            operator=operator,
            batch=batch,
            read_bytes=input_elements * element_bytes,
            write_bytes=output_elements * element_bytes,
            fixed_bytes=parameter_elements * element_bytes,
            flops=per_output * output_elements,
            backward_read_bytes=(output_elements + saved_elements) * element_bytes if backward else 0,
            backward_write_bytes=input_elements * element_bytes if backward else 0,
            fixed_backward_bytes=2 * parameter_elements * element_bytes if backward else 0,
            backward_flops=per_input * input_elements if backward else 0,
            made_bytes=output_elements * element_bytes,
            backward_made_bytes=input_elements * element_bytes if backward else 0,
        )

    def macs(self, which: Pass) -> int:
        """0: an operator of this kind contracts nothing."""
        return 0

    def pass_bytes(self, which: Pass) -> int:
        """Bytes read and written by one pass; grad_weight carries only what does not grow with the batch."""
        if which == "forward":
            return self.batch * (self.read_bytes + self.write_bytes) + self.fixed_bytes
        if which == "grad_input":
            return self.batch * (self.backward_read_bytes + self.backward_write_bytes)
        return self.fixed_backward_bytes

    def pass_flops(self, which: Pass) -> float:
        """Elementwise FLOPs of one pass; grad_weight carries only what does not grow with the batch."""
        if which == "forward":
            return self.batch * self.flops + self.fixed_flops
        return self.batch * self.backward_flops if which == "grad_input" else self.fixed_backward_flops

    def with_batch(self, batch: int) -> Pointwise:
        """The same operator for another number of samples."""
        return replace(self, batch=batch)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary that `from_dict` turns back."""
        return {"kind": "pointwise", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Pointwise:
        """The operator that `to_dict` described. Raises: CostError on unknown or missing keys."""
        return cls(**known_fields(cls, values))
