"""How a code is to be read, as text that an operator can take: "range:4:256", "positive:4:256", "norm:4:relu", "mask"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

EXACT = "exact"
MASK = "mask"


@dataclass(frozen=True)
class Scheme:
    """A code's kind ("range", "positive", "norm", "mask", "exact"), its bits, its group's size, and what followed a norm."""

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


@lru_cache(maxsize=256)
def parse(text: str) -> Scheme:
    """Return what the text says.

    Raises: ValueError for a text that is none of the four.
    """
    kind, *rest = text.split(":")
    if kind in (EXACT, MASK) and not rest:
        return Scheme(kind)
    if kind in ("range", "positive") and len(rest) == 2:
        return Scheme(kind, int(rest[0]), int(rest[1]))
    if kind == "norm" and len(rest) == 2:
        return Scheme(kind, int(rest[0]), activation=rest[1])
    raise ValueError(f"{text!r} names no code; expected 'range:4:256', 'positive:4:256', 'norm:4:relu', 'mask' or 'exact'")
