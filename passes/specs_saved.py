"""Resolved wishes about what is kept for backward."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

BITS = (1, 2, 4, 8)
ROUNDINGS = ("stochastic", "nearest")


@dataclass(frozen=True, kw_only=True)
class BlpaSpec:
    """BLPA on the chain that ends in one contraction.

    Attributes:
        site: qualified name of the contraction's weight. bits: of the codes that are kept. group_size: elements that share a step
            where a code has no norm's grid to lie on.
    """

    site: str
    bits: int
    group_size: int = 256

    def __post_init__(self) -> None:
        check(self.site, self.bits, self.group_size)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able data."""
        return {"technique": "BLPA", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class SavedSpec:
    """Few-bit codes of what the operators of one module keep.

    Attributes:
        site: path of the module that is called, or whose forward calls the operators. bits, group_size: of the codes.
        rounding: "stochastic" or "nearest".
    """

    site: str
    bits: int
    group_size: int
    rounding: str

    def __post_init__(self) -> None:
        check(self.site, self.bits, self.group_size)
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"{self.site}: rounding {self.rounding!r} is none of {ROUNDINGS}")

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able data."""
        return {"technique": "SavedActivations", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class BitsSpec:
    """One bit for each element of what a ReLU or the like keeps, where SWAT keeps the rest sparse: exact.

    Attributes:
        site: path of the module that is called, or whose forward calls the operator.
    """

    site: str
    bits: int = 1
    group_size: int = 256


Spec = BlpaSpec | SavedSpec | BitsSpec


def check(site: str, bits: int, group_size: int) -> None:
    """Raises ValueError for bits or a group's size that no code has."""
    if bits not in BITS:
        raise ValueError(f"{site}: {bits} bits are none of {BITS}")
    if group_size < 8 or group_size & (group_size - 1):
        raise ValueError(f"{site}: a group of {group_size} elements; it is a power of two from 8")
