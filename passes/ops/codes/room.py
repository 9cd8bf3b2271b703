"""Memory for codes, and for what comes and goes between them, that leaves the process as small as what it holds.

A code lives from the forward to the backward pass, between large tensors that come and go within a layer. Taken from the heap, it
lands in the hole that one of them left, where the next one does not fit any more, and the heap grows by far more than the codes: on
ViT-B/16 at batch 8 the process held 385 MiB after the forward pass, for 138 MiB of codes. So codes get pages of their own, which go
back to the system when they are freed, and glibc is asked to give back the free pages of its heap (malloc_trim, about a
millisecond; it changes no setting) whenever a large code is made or read. On accelerators nothing of this is done.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

SMALLEST = 1 << 16  # bytes below which a page of its own would cost more than it saves
LARGE = 1 << 20
_FLAGS = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0) | getattr(mmap, "MAP_POPULATE", 0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no glibc
        return None


def give_back_free_pages() -> None:
    """Return the free pages of the process's heap to the system, where the C library can."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def room(size: int, like: Tensor) -> Tensor:
    """Return `size` bytes, a 1-dim uint8 tensor on the device of `like`, with undefined values."""
    if like.device.type != "cpu" or size < SMALLEST or not hasattr(mmap, "MAP_ANONYMOUS"):
        return like.new_empty(size, dtype=torch.uint8)
    if size >= LARGE >> 2:
        give_back_free_pages()
    return torch.frombuffer(mmap.mmap(-1, size, flags=_FLAGS), dtype=torch.uint8)


def large_like(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised dense tensor; a large one on the CPU has pages of its own."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty_strided(list(shape), list(strides), dtype=dtype, device=device)
    give_back_free_pages()
    memory = torch.frombuffer(mmap.mmap(-1, size, flags=_FLAGS), dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=dtype).set_(memory, 0, list(shape), list(strides))
