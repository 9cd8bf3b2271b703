"""How a code is to be read, as text that an operator can take: "range:4:256", "norm:4:relu", "mask", "bitmap:0:256" and the like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

EXACT = "exact"
MASK = "mask"
SPARSE = ("bitmap", "gaps")


@dataclass(frozen=True)
class Scheme:
    """A code's kind, its bits, its group's size, and what followed a norm.

    The kinds: "range", "positive", "norm", "mask", "exact", and for sparse tensors "bitmap" and "gaps", with 0 bits where values are
    exact, and "divided", the elements of a norm's code that reach a threshold.
    """

    kind: str
    bits: int = 1
    group: int = 1
    activation: str = "none"


def of_range(bits: int, group: int) -> str:
    return f"range:{bits}:{group}"


def of_positive(bits: int, group: int) -> str:
    return f"positive:{bits}:{group}"


def of_norm(bits: int, activation: str) -> str:
    return f"norm:{bits}:{activation}"


def of_sparse(kind: str, bits: int = 0, group: int = 256) -> str:
    return f"{kind}:{bits}:{group}"


def of_divided(norm: str) -> str:
    """The scheme of those elements of a norm's code that fxsparse::divide_bins keeps."""
    return norm.replace("norm:", "divided:", 1)


@lru_cache(maxsize=256)
def parse(text: str) -> Scheme:
    """Return what the text says.

    Raises: ValueError for any other text.
    """
    kind, *rest = text.split(":")
    if kind in (EXACT, MASK) and not rest:
        return Scheme(kind)
    if kind in ("range", "positive", *SPARSE) and len(rest) == 2:
        return Scheme(kind, int(rest[0]), int(rest[1]))
    if kind in ("norm", "divided") and len(rest) == 2:
        return Scheme(kind, int(rest[0]), activation=rest[1])
    raise ValueError(
        f"{text!r} names no code; expected 'range:4:256', 'positive:4:256', 'norm:4:relu', 'bitmap:0:256', 'gaps:4:256', 'mask' or 'exact'"
    )
