"""Numbers for people to read."""

from __future__ import annotations


def quantity(number: float, unit: str = "") -> str:
    """A number with an SI prefix (1024 for bytes), to four digits."""
    if unit == "B":
        for prefix, size in (("Gi", 2.0**30), ("Mi", 2.0**20), ("Ki", 2.0**10)):
            if abs(number) >= size:
                return f"{number / size:.4g} {prefix}B"
        return f"{number:.0f} B"
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.4g} {prefix}{unit}"
    if unit and 0 < abs(number) < 1:
        for prefix, size in (("m", 1e-3), ("µ", 1e-6), ("n", 1e-9), ("p", 1e-12)):
            if abs(number) >= size:
                return f"{number / size:.4g} {prefix}{unit}"
    return f"{number:.4g} {unit}".rstrip()
