"""Checks of arguments that raise CostError with what was refused, what was got and what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from fxsparse.errors import CostError


def require_count(where: str, value: int, *, at_least: int = 1) -> int:
    """The value itself, when it is an integer of at least `at_least`.

    Raises: CostError naming `where`, the value and the allowed range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise CostError(f"{where} is {value!r}; expected an integer >= {at_least}")
    return value


def require_counts(where: str, values: tuple[int, ...], *, at_least: int = 1) -> tuple[int, ...]:
    """The values themselves, when every one is an integer of at least `at_least`."""
    for index, value in enumerate(values):
        require_count(f"{where}[{index}]", value, at_least=at_least)
    return values


def require_density(where: str, value: float) -> float:
    """The value as a float, when it is a kept fraction between 0 and 1.

    Raises: CostError; NaN is refused as well.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise CostError(f"{where} is {value!r}; expected a density (the kept fraction) between 0 and 1")
    return float(value)


def require_positive(where: str, value: float) -> float:
    """The value as a float, when it is finite and above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise CostError(f"{where} is {value!r}; expected a finite number > 0")
    return float(value)


def require_member(where: str, value: str, allowed: Iterable[str]) -> str:
    """The value itself, when it is one of `allowed`; the error names the closest allowed word."""
    names = list(allowed)
    if value not in names:
        raise CostError(f"{where} is {value!r}; expected one of {', '.join(map(repr, names))}{closest(value, names)}")
    return value


def closest(value: object, names: Iterable[str]) -> str:
    """A clause '; did you mean X?' for the nearest name, or an empty string."""
    found = difflib.get_close_matches(str(value), list(names), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
