"""Modules whose buffers stay where they are when the model moves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class HostBuffers(nn.Module):
    """A module whose buffers named in ``on_host`` stay on the CPU with their dtype, and whose others stay at least float32."""

    on_host: frozenset[str] = frozenset()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> HostBuffers:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is None or new is None:
                continue
            if name in self.on_host:
                self._buffers[name] = old
            elif new.dtype != old.dtype and torch.finfo(new.dtype).bits < 32:
                self._buffers[name] = old.to(new.device)
        return self
