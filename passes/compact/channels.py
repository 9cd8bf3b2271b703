"""The channels of a graph's tensors: which are one and the same, which must stay, and which are constant whatever the input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx, nn

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Channels:
    """The channels of one tensor.

    Attributes:
        axis: the dimension that they lie along. ids: a number for each position along it; equal ones are removed together.
        constant: float64, the value that a channel has at every place of every sample; NaN if it has none.
    """

    axis: int
    ids: Array
    constant: Array


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A convolution or linear layer, which sums over the channels that it reads, and makes new ones.

    Attributes:
        name, module: the layer; its weight is (out, in, ...).
        read: what it reads. made: the ids of what it makes.
        padded: zeros are put around what it reads, so that a constant is none at the border.
    """

    name: str
    module: Any
    read: Channels | None
    made: Array
    padded: bool


@dataclass
class ChannelMap:
    """All channels of a graph.

    Attributes:
        readers: the layers that sum over channels. per_channel: modules with one parameter per channel (batch norms, depthwise
            convolutions), with the ids. reasons: why layers were left as they are.
    """

    readers: list[Reader] = field(default_factory=list)
    per_channel: list[tuple[str, nn.Module, Array]] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    _parent: list[int] = field(default_factory=list)
    _fixed: set[int] = field(default_factory=set)

    def new(self, count: int) -> Array:
        """Ids of new channels."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, channel: int) -> int:
        """The number that stands for all channels joined with this one."""
        while self._parent[channel] != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel

    def roots(self, ids: Array) -> Array:
        """``root`` of each."""
        return np.array([self.root(int(one)) for one in ids], dtype=np.int64)

    def join(self, first: Array, second: Array) -> None:
        """These channels are added to or multiplied with each other, one by one."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            self._parent[self.root(one)] = self.root(other)

    def fix(self, channels: Iterable[Channels | None]) -> None:
        """These channels must stay: something depends on them that is not understood."""
        for found in channels:
            if found is not None:
                self._fixed.update(found.ids.tolist())

    def fixed(self) -> set[int]:
        """Roots of all channels that must stay."""
        return {self.root(one) for one in self._fixed}


def shape_of(node: Any) -> tuple[int, ...] | None:
    """The shape of a node's tensor, if it is known."""
    found = node.meta.get("val") if isinstance(node, fx.Node) else None
    shape = getattr(found, "shape", None)
    return None if shape is None else tuple(shape)
