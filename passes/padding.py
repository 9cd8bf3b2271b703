"""Padding of a convolution's input that its operator does not do itself."""

from __future__ import annotations

from typing import Any

from .sites import each_axis


def split_padding(geometry: dict[str, Any], kernel: tuple[int, ...]) -> dict[str, Any]:
    """Padding as integers; what "same" adds on one side only becomes a pad node."""
    axes, padding = geometry["axes"], geometry["padding"]
    if padding == "valid":
        return {**geometry, "padding": [0] * axes}
    if padding != "same":
        return {**geometry, "padding": list(each_axis(padding, axes))}
    totals = [dilation * (size - 1) for dilation, size in zip(geometry["dilation"], kernel, strict=True)]
    extra = [total % 2 for total in totals]
    amounts = [amount for odd in reversed(extra) for amount in (0, odd)]
    return {**geometry, "padding": [total // 2 for total in totals], "pad": (amounts, "constant") if any(extra) else None}
