"""The native library: loaded through ctypes from beside this file, if it was built, and asked for a kernel by name and element type."""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .blocks import Blocks

FILE = Path(__file__).with_name("native.so")
VERSION = 2  # of the kernels' arguments; level.c says the same
LARGE = 4 << 20  # bytes from which a tensor is worth pages of its own
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

_POINTER, _LONG, _UNSIGNED, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64, ctypes.c_int, ctypes.c_double
_FLOAT = ctypes.c_float
_SIGNATURES: dict[str, list[Any]] = {
    "groups_encode": [_POINTER, _LONG, _LONG, _INT, _INT, _POINTER, _UNSIGNED, _UNSIGNED, _LONG, _LONG, _POINTER, _POINTER, _INT],
    "groups_decode": [_POINTER] * 2 + [_LONG] * 2 + [_INT] * 2 + [_POINTER, _INT],
    "groups_gradient": [_POINTER] * 3 + [_LONG] * 2 + [_INT, _POINTER, _INT],
    "norm_encode": [_POINTER] * 2 + [_LONG] * 3 + [_INT] * 3 + [_POINTER] * 2 + [_INT],
    "norm_decode": [_POINTER] * 2 + [_LONG] * 3 + [_INT] * 3 + [_POINTER, _INT],
    "norm_backward": [_POINTER] * 4 + [_LONG] * 4 + [_INT] * 3 + [_POINTER] * 4 + [_INT],
}
_SPARSE_SIGNATURES: dict[str, list[Any]] = {  # for float32 alone
    "sparse_count": [_POINTER] * 2 + [_LONG] * 2 + [_POINTER, _INT],
    "sparse_index": [_POINTER] * 2 + [_LONG] * 2 + [_POINTER] * 3 + [_INT],
    "sparse_values": [_POINTER] + [_LONG] * 2 + [_POINTER] * 3 + [_INT],
    "sparse_dense": [_POINTER] + [_LONG] * 2 + [_POINTER] * 3 + [_INT],
    "sparse_turn": [_POINTER] * 2 + [_LONG] * 4 + [_POINTER] * 3 + [_INT],
    "sparse_program": [_POINTER] * 3 + [_LONG, _POINTER] + [_LONG] * 2 + [_POINTER] * 3 + [_INT],
    "sparse_gather": [_POINTER] * 2 + [_LONG, _POINTER, _INT],
    "sparse_multiply": [_POINTER] * 10 + [_INT],
    "sparse_kept": [_POINTER] * 8 + [_LONG] + [_POINTER] * 3 + [_INT],
    "sparse_pack": [_POINTER, ctypes.c_float, _POINTER, _LONG] + [_POINTER] * 5 + [_LONG, _INT],
    "sparse_grad": [_POINTER] * 13 + [_INT],
}

_INNERMOST_SIGNATURES: dict[str, list[Any]] = {
    "channel_norm": [_POINTER] * 6 + [_LONG] * 2 + [_INT] * 2 + [_DOUBLE] * 2 + [_POINTER] * 4 + [_INT],
    "channel_norm_backward": [_POINTER] * 7 + [_LONG] * 2 + [_INT] * 2 + [_POINTER] * 4 + [_INT],
    "innermost_max_pool": [_POINTER] + [_LONG] * 6 + [_POINTER] * 3 + [_INT],
    "innermost_max_pool_backward": [_POINTER] * 2 + [_LONG] * 6 + [_POINTER] * 2 + [_INT],
    "between": [_POINTER, _LONG, _FLOAT, _FLOAT, _POINTER, _LONG, _POINTER, _INT],
    "swap_outer": [_POINTER] + [_LONG] * 3 + [_POINTER, _INT],
}
_OF_FLOAT32 = {**_SPARSE_SIGNATURES, **_INNERMOST_SIGNATURES}


class Library:
    """A loaded library.

    Attributes:
        level: "avx512", "avx2" or "portable", the vector instructions that it uses on this machine.
        blocks: memory of large results that is free again.
    """

    def __init__(self, file: Path, level: str | None = None) -> None:
        """``level``: another than the best one.

        Raises: OSError, AttributeError if the file is no library, or not this version's."""
        self._library = ctypes.CDLL(str(file))
        self._library.fxs_level.restype = ctypes.c_char_p
        version = self._library.fxs_version()
        if version != VERSION:
            raise OSError(f"it has version {version}, wanted is {VERSION}")
        self._library.fxs_large_pages.argtypes, self._library.fxs_large_pages.restype = [_POINTER, _LONG], None
        self.blocks = Blocks()
        self.level: str = level or self._library.fxs_level().decode()
        self._found = {(name, dtype): self._find(name, dtype, _SIGNATURES[name]) for name in _SIGNATURES for dtype in TYPES}
        self._found |= {(name, torch.float32): self._find(name, torch.float32, types) for name, types in _OF_FLOAT32.items()}

    def _find(self, name: str, dtype: torch.dtype, types: list[Any]) -> Callable[..., None]:
        function = getattr(self._library, f"fxs_{name}_{TYPES[dtype]}_{self.level}")
        function.argtypes, function.restype = types, None
        found: Callable[..., None] = function
        return found

    def empty(self, *shape: int) -> Tensor:
        """Return a new contiguous float32 tensor, not filled; a large one in memory that was in use before, or on large pages."""
        elements = math.prod(shape)
        if 4 * elements < LARGE:
            return torch.empty(shape)
        made, is_new = self.blocks.tensor(elements)
        if is_new:
            self.large_pages(made)
        return made.view(shape)

    def empty_innermost(self, shape: Sequence[int]) -> Tensor:
        """Return such a tensor (N, C, H, W) whose samples are innermost in memory."""
        n, *rest = shape
        made = self.empty(*rest, n).permute(3, 0, 1, 2)
        return torch.ops.aten._unsafe_view.default(made, made.shape)  # type: ignore[no-any-return]  # no view: autograd adds to it in place

    def call(self, name: str, dtype: torch.dtype, *arguments: Any) -> None:
        """Calls a kernel for elements of ``dtype``, on as many threads as torch uses; tensors are passed by address."""
        given = [item.data_ptr() if isinstance(item, Tensor) else item for item in arguments]
        self._found[name, dtype](*given, torch.get_num_threads())

    def large_pages(self, *tensors: Tensor) -> None:
        """Asks for large pages where new tensors are large: new small pages would take longer than what is written to them."""
        for tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            if size >= LARGE:
                self._library.fxs_large_pages(tensor.data_ptr(), size)


@lru_cache(maxsize=1)
def library(file: Path = FILE) -> Library | None:
    """Return the library; None, with a warning, if there is a file that cannot be used, and without one if it was not built."""
    if not file.exists():
        return None
    try:
        return Library(file)
    except (OSError, AttributeError) as error:
        warnings.warn(
            f"fxsparse's native kernels in {file} cannot be used ({error}); PyTorch computes instead. Install fxsparse again.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def kernels_for(*tensors: Tensor) -> Library | None:
    """Return the library if it has kernels for tensors of this kind, all of one type."""
    first = tensors[0]
    if first.dtype not in TYPES or any(item.device.type != "cpu" or item.dtype != first.dtype for item in tensors):
        return None
    return library()


def longs(numbers: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """Return 64-bit numbers as a kernel takes them."""
    return (ctypes.c_int64 * max(len(numbers), 1))(*numbers)


def ints(numbers: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    """Return 32-bit numbers as a kernel takes them."""
    return (ctypes.c_int32 * max(len(numbers), 1))(*numbers)
