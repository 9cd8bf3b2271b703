"""What the command line's arguments stand for: example inputs by shape."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import FxSparseError
from ..techniques import closest

if TYPE_CHECKING:
    import torch

INPUT_DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool")


@dataclass(frozen=True)
class InputForm:
    """The shape and dtype of one example input."""

    shape: tuple[int, ...]
    dtype: str = INPUT_DTYPES[0]

    @classmethod
    def of(cls, text: str) -> InputForm:
        """The form that a text such as "8x3x224x224" or "8x128:int64" says.

        Raises:
            FxSparseError: it says no shape, or an unknown dtype; the nearest one that does is named.
        """
        sides, _, dtype = text.partition(":")
        if not _is_shape(sides):
            near = "x".join(re.findall(r"[0-9]+", sides))
            hint = f" (did you mean {near!r}?)" if _is_shape(near) else ""
            raise FxSparseError(
                f"--input {text!r} is not a shape{hint}; expected positive numbers joined by x, such as 8x3x224x224 or 8x128:int64"
            )
        dtype = dtype or INPUT_DTYPES[0]
        if dtype not in INPUT_DTYPES:
            known = ", ".join(INPUT_DTYPES)
            raise FxSparseError(f"--input {text!r}: unknown dtype {dtype!r}{closest(dtype, INPUT_DTYPES)}; expected one of {known}")
        return cls(tuple(int(side) for side in sides.split("x")), dtype)

    def zeros(self) -> torch.Tensor:
        """Zeros of this form."""
        import torch

        return torch.zeros(self.shape, dtype=getattr(torch, self.dtype))


def example_input(text: str) -> torch.Tensor:
    """Zeros of the shape and dtype that a text such as "8x3x224x224" or "8x128:int64" says. Raises: FxSparseError."""
    return InputForm.of(text).zeros()


def _is_shape(sides: str) -> bool:
    return bool(sides) and all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides.split("x"))
