"""When masks change, and how much in all. Steps are optimizer steps, the first one is number 1."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CubicPruning:
    """Sparsity that rises from ``initial`` to ``final``, fast at first.

    Attributes:
        begin, end: steps; with the interval as their unit they are u0 and uf, and pruning takes place at u0 <= u <= uf - 1.
        to_the_end: prune at uf too, where the sparsity is ``final`` exactly. The authors of GraNet stop one interval earlier.

    Source: Zhu & Gupta 2017, arXiv 1710.01878, equation 1; Liu et al. 2021, arXiv 2106.10404, equation 2, and its authors' code.
    """

    initial: float
    final: float
    begin: int
    end: int
    interval: int
    to_the_end: bool = False

    def sparsity(self, step: int) -> float | None:
        """The fraction of zeros to be reached after a step; None where nothing is pruned."""
        u, rest = divmod(step, self.interval)
        first, last = self.begin // self.interval, self.end // self.interval
        if rest or step < 1 or not first <= u <= last - (not self.to_the_end):
            return None
        return self.final + (self.initial - self.final) * (1.0 - (u - first) / (last - first)) ** 3


@dataclass(frozen=True, kw_only=True)
class CosineExchange:
    """The fraction of a layer's weights that is dropped and grown again, every ``interval`` steps up to ``end``.

    ``floor + (start - floor) * (1 + cos(pi * step / end)) / 2``. Source: Evci et al. 2020, section 3 (2); Liu et al. 2021.
    """

    start: float
    floor: float
    end: int
    interval: int

    def fraction(self, step: int) -> float:
        """The fraction at a step; 0 where nothing is exchanged."""
        if step < 1 or step > self.end or step % self.interval:
            return 0.0
        return self.floor + (self.start - self.floor) * 0.5 * (1.0 + math.cos(math.pi * step / self.end))

    def lasts_beyond(self, step: int) -> bool:
        """Whether there is an exchange after this step."""
        return step < self.end // self.interval * self.interval
