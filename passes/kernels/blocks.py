"""Memory of large results, given out again where it was freed: pages that are new to a process take longer than what is written to them.

A block is lent to one tensor and comes back when that tensor's memory is freed. Few free blocks are held, the latest ones.
"""

from __future__ import annotations

import ctypes
import threading
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

SPARE = 8  # a block may be larger than what is asked for by this part of it
GRAIN = 1 << 18  # floats; sizes of blocks are multiples of it
HELD = 256 << 20  # bytes of free blocks that are kept at most


class Blocks:
    """Free blocks of memory, by their size; a tensor made of one gives it back when it dies."""

    def __init__(self, held: int = HELD) -> None:
        self.limit = held
        self.free: list[Tensor] = []
        self.lock = threading.RLock()  # a tensor may die, and give its block back, anywhere

    def tensor(self, elements: int) -> tuple[Tensor, bool]:
        """Return a 1-dim float32 tensor, not filled, and whether its memory is new."""
        with self.lock:
            found = self._fitting(elements)
        if found is not None:
            return self._lent(found, elements), False
        return self._lent(torch.empty(-(-elements // GRAIN) * GRAIN), elements), True

    def _fitting(self, elements: int) -> Tensor | None:
        """A free block of about that size, the latest; giving one back, which may happen anywhere, must not change what is found."""
        for block in reversed(tuple(self.free)):
            if elements <= block.numel() <= elements + elements // SPARE:
                kept = [item for item in self.free if item is not block]
                if len(kept) < len(self.free):
                    self.free = kept
                    return block
        return None

    def take_back(self, block: Tensor) -> None:
        """Holds a block that is free again, and lets the oldest go where these would be too many."""
        with self.lock:
            self.free.append(block)
            held = 4 * sum(item.numel() for item in self.free)
            while held > self.limit:
                held -= 4 * self.free.pop(0).numel()

    def _lent(self, block: Tensor, elements: int) -> Tensor:
        lease = _lease_type(4 * block.numel()).from_address(block.data_ptr())
        lease.block, lease.owner = block, self
        return torch.frombuffer(lease, dtype=torch.float32, count=elements)


@lru_cache(maxsize=1024)
def _lease_type(size: int) -> Any:
    return type("Lease", (ctypes.c_char * size,), {"__del__": _end})


def _end(lease: Any) -> None:
    lease.owner.take_back(lease.block)
