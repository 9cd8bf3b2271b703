"""Memory for codes that leaves the heap whole.

A code lives from the forward to the backward pass, between large tensors that come and go within a layer. Taken from the heap, it
lands in the hole that one of them left, where the next one does not fit any more, and the process grows by far more than the codes.
So on the CPU codes get pages of their own, which go back to the system when they are freed.

What else lives that long is small and still divides the holes. ``give_back_free_pages`` asks glibc to return the free pages of its
heap; it changes no setting. The pages cost a fault each when they are used again, which matrix products hide and convolutional
networks do not: fxsparse::quantize does so at every large code, fxsparse::blpa_norm at every eighth.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

SMALLEST = 1 << 16  # bytes below which a page of its own would cost more than it saves
LARGE = 1 << 18
_FLAGS = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0) | getattr(mmap, "MAP_POPULATE", 0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no glibc
        return None


def give_back_free_pages(code: Tensor) -> None:
    """Return the free pages of the process's heap to the system, where the C library can, if a code on the CPU is large."""
    trim = _malloc_trim()
    if trim is not None and code.device.type == "cpu" and code.numel() >= LARGE:
        trim(0)


def room(size: int, like: Tensor) -> Tensor:
    """Return `size` bytes, a 1-dim uint8 tensor on the device of `like`, with undefined values."""
    if like.device.type != "cpu" or size < SMALLEST or not hasattr(mmap, "MAP_ANONYMOUS"):
        return like.new_empty(size, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, size, flags=_FLAGS), dtype=torch.uint8)
