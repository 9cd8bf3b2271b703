"""Sizes that a recorded module reads: numbers of samples are followed, to notice when Python decides by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Reading = Callable[[Any, int, Callable[[], None]], Any]
_SIZES = frozenset({"shape", "size", "numel", "nelement", "__len__", "nbytes"})
GRADIENTS = frozenset(
    ["requires_grad", "grad", "grad_fn", "is_leaf", "_version", "data_ptr", "register_hook", "retain_grad", "backward", "output_nr"]
)
LAYOUT = frozenset({"is_contiguous", "stride", "storage_offset", "is_pinned", "is_shared", "untyped_storage", "storage"})
DTYPES = frozenset(["dtype", "device", "is_floating_point", "is_complex", "is_cuda", "is_nested", "is_sparse", "is_quantized", "layout"])


class BatchSize(int):
    """A number that depends on how many samples there are. Comparing it with a number that does not tells ``noted``."""

    _noted: Callable[[], None]

    def __hash__(self) -> int:
        self._noted()
        return int.__hash__(self)

    def __bool__(self) -> bool:
        self._noted()
        return int(self) != 0

    def __repr__(self) -> str:
        self._noted()
        return int.__repr__(self)

    def __format__(self, spec: str) -> str:
        self._noted()
        return int.__format__(self, spec)

    __str__ = __repr__


def _followed(name: str) -> Callable[..., Any]:
    original = getattr(int, name)

    def method(self: BatchSize, *others: Any) -> Any:
        return _wrapped(original(self, *others), self._noted)

    return method


def _compared(name: str) -> Callable[..., Any]:
    original = getattr(int, name)

    def method(self: BatchSize, other: Any) -> Any:
        if not isinstance(other, BatchSize):
            self._noted()
        return original(self, other)

    return method


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod", "rmod", "neg"):
    setattr(BatchSize, f"__{_name}__", _followed(f"__{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(BatchSize, f"__{_name}__", _compared(f"__{_name}__"))


def _wrapped(value: Any, noted: Callable[[], None]) -> Any:
    if type(value) is not int:
        return value
    made = BatchSize(value)
    made._noted = noted
    return made


def read_of(name: str) -> Reading | None:
    """What wraps the result of asking a tensor for its sizes; None if that is not what is asked."""
    return _read if name in _SIZES else None


def _read(result: Any, batch: int, noted: Callable[[], None]) -> Any:
    if not batch:
        return result

    def sized(number: Any) -> Any:
        return _wrapped(number, noted) if type(number) is int and number and number % batch == 0 else number

    if isinstance(result, torch.Size):
        return torch.Size([sized(number) for number in result])
    return sized(result)
