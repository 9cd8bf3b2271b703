"""LSTM, GRU and plain recurrent layers as the matrix products of their steps and gates."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from .gemm import Pass
from .validate import require_count, require_member
from .workload import Contraction, known_fields

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
# Elementwise FLOPs per hidden unit and step, (forward, backward): activations, gate products and sums.
_FLOPS_PER_UNIT = {"lstm": (9, 16), "gru": (9, 16), "rnn": (2, 2)}


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """A stack of recurrent layers; projection_size > 0 is the LSTM whose hidden state is projected.

    state_needs_grad: the initial hidden state is learned or comes from another layer, so the first step's gradient is taken.
    """

    cell: str
    batch: int
    steps: int
    input_size: int
    hidden_size: int
    layers: int = 1
    bidirectional: bool = False
    projection_size: int = 0
    bias: bool = True
    input_needs_grad: bool = True
    state_needs_grad: bool = False

    def __post_init__(self) -> None:
        require_member("Recurrent.cell", self.cell, GATES)
        for name in ("steps", "input_size", "hidden_size", "layers"):
            require_count(f"Recurrent.{name}", getattr(self, name))
        for name in ("batch", "projection_size"):
            require_count(f"Recurrent.{name}", getattr(self, name), at_least=0)

    @property
    def operator(self) -> str:
        """The name under which reports group it."""
        return self.cell

    def contractions(self) -> tuple[Contraction, ...]:
        """Every product: per layer and direction the input's (all steps at once), the hidden state's and the projection's (step by step).

        The first layer's input product needs a gradient only if the input does, the first step's state only if the initial one does.
        """
        directions = 2 if self.bidirectional else 1
        state = self.projection_size or self.hidden_size
        gates = GATES[self.cell] * self.hidden_size
        found = []
        for layer in range(self.layers):
            features = self.input_size if layer == 0 else state * directions
            needs_grad = self.input_needs_grad or layer > 0
            for _ in range(directions):
                found.append(self._product(features, gates, rows=self.steps, repeats=1, bias=self.bias, needs_grad=needs_grad))
                found.append(self._product(state, gates, rows=1, repeats=1, bias=self.bias, needs_grad=self.state_needs_grad))
                if self.steps > 1:
                    found.append(self._product(state, gates, rows=1, repeats=self.steps - 1, bias=self.bias, needs_grad=True))
                if self.projection_size:
                    found.append(self._product(self.hidden_size, state, rows=1, repeats=self.steps, bias=False, needs_grad=True))
        return tuple(found)

    def _product(self, features: int, results: int, *, rows: int, repeats: int, bias: bool, needs_grad: bool) -> Contraction:
        return Contraction(
            operator="recurrent",
            batch=self.batch,
            rows=rows,
            repeats=repeats,
            in_channels=features,
            out_channels=results,
            bias=bias,
            input_needs_grad=needs_grad,
        )

    def macs(self, which: Pass) -> int:
        """MACs of one pass, all layers, directions, steps and gates."""
        return sum(product.macs(which) for product in self.contractions())

    def pass_flops(self, which: Pass) -> float:
        """Elementwise FLOPs of the gates; the whole backward stands under grad_input."""
        units = self.batch * self.steps * self.hidden_size * self.layers * (2 if self.bidirectional else 1)
        forward, backward = _FLOPS_PER_UNIT[self.cell]
        return {"forward": float(units * forward), "grad_input": float(units * backward)}.get(which, 0.0)

    def with_batch(self, batch: int) -> Recurrent:
        """The same layers for another number of samples."""
        return replace(self, batch=batch)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary that `from_dict` turns back."""
        return {"kind": "recurrent", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recurrent:
        """The layers that `to_dict` described. Raises: CostError on unknown or missing keys."""
        return cls(**known_fields(cls, values))
