"""How a convolution is cut into tiles for the sparse kernels, and where in a tile's buffer the taps of its kernel lie (sparse_tiles.h)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

LANES = {"avx512": 16, "avx2": 8, "portable": 4}  # floats in a vector
ROOM = {"avx512": 28, "avx2": 12, "portable": 12}  # sums that stay in registers
MOST_ROWS = 4
BUFFER = 36 << 10  # bytes of packed input: about a first-level cache
PIXELS = 16, 8  # of a tile, with several taps and with one: few let a buffer hold many channels, so that sums are seldom put down
SUMS = 256 << 10  # bytes of sums between blocks of channels: a share of a second-level cache


@dataclass(frozen=True)
class Axis:
    """One dimension of a tile: which lines its buffer has, counted from the first pixel's, and where each tap starts."""

    lines: tuple[int, ...]
    starts: tuple[int, ...]


@lru_cache(maxsize=4096)
def axis(taps: tuple[int, ...], stride: int, count: int) -> Axis:
    """Return the lines that `count` outputs need from taps at these displacements.

    A tap reads lines `stride` apart. Lines of one remainder by the stride lie together, so that those of a tap follow each other.
    """
    needed = sorted({(tap % stride, tap // stride + index) for tap in taps for index in range(count)})
    where = {line: index for index, line in enumerate(needed)}
    return Axis(tuple(position * stride + phase for phase, position in needed), tuple(where[tap % stride, tap // stride] for tap in taps))


@dataclass(frozen=True)
class Tiling:
    """Sizes of tiles, and what the offsets of a weight's entries follow from.

    Attributes:
        rows, columns: output pixels of a tile.
        channels: input channels of a group, of which `block` are packed at a time.
        part: output channels that are worked on at a time.
        taps: for each position of the kernel its row and column displacement; None for one that is left out.
    """

    lanes: int
    rows: int
    columns: int
    channels: int
    block: int
    part: int
    stride: tuple[int, int]
    taps: tuple[tuple[int, int] | None, ...]

    @property
    def blocks(self) -> int:
        return max(-(-self.channels // self.block), 1)

    @property
    def down(self) -> Axis:
        return axis(tuple(tap[0] for tap in self.taps if tap), self.stride[0], self.rows)

    @property
    def across(self) -> Axis:
        return axis(tuple(tap[1] for tap in self.taps if tap), self.stride[1], self.columns)

    @property
    def work(self) -> int:
        """Floats that a thread works on."""
        down, across = len(self.down.lines), len(self.across.lines)
        places = -(-(4 * (down + across) + 2 * self.block * down * across) // self.lanes)
        return self.lanes * (places + self.block * down * across + self.part * self.rows * self.columns)

    def offsets(self) -> list[int]:
        """Return where in the buffer each position of a weight's row, channels and taps, finds its first line; -1 for one left out."""
        down, across = self.down, self.across
        pitch, starts = len(across.lines), iter(zip(down.starts, across.starts, strict=True))
        found = [self.lanes * (pitch * tap[0] + tap[1]) if tap else -1 for tap in (next(starts) if tap else None for tap in self.taps)]
        size = self.lanes * len(down.lines) * pitch
        return [channel % self.block * size + offset if offset >= 0 else -1 for channel in range(self.channels) for offset in found]


@lru_cache(maxsize=1024)
def tiling(
    level: str, channels: int, outputs: int, size: tuple[int, int], stride: tuple[int, int], taps: tuple[tuple[int, int] | None, ...]
) -> Tiling:
    """Return the tiles for one group of a convolution with `size` output pixels."""
    lanes, room = LANES[level], ROOM[level]
    rows, columns = tile_size(size, min(room, PIXELS[len(taps) == 1]))
    lines = max(len(axis(tuple(tap[0] for tap in taps if tap), stride[0], rows).lines), 1)
    lines *= max(len(axis(tuple(tap[1] for tap in taps if tap), stride[1], columns).lines), 1)
    block = even(max(channels, 1), max(1, BUFFER // (4 * lanes * lines)))
    part = even(outputs, max(1, SUMS // (4 * lanes * rows * columns)))
    return Tiling(lanes, rows, columns, channels, block, part, stride, taps)


def tile_size(size: tuple[int, int], room: int) -> tuple[int, int]:
    """Return rows and columns of a tile: the most pixels for its sums, in tiles of about one size."""

    def pixels(rows: int) -> tuple[float, int, int]:
        columns = even(size[1], room // rows)
        whole = math.ceil(size[0] / rows) * math.ceil(size[1] / columns)
        return size[0] * size[1] / whole, rows, columns

    _, rows, columns = max(pixels(even(size[0], rows)) for rows in range(1, min(MOST_ROWS, room, size[0]) + 1))
    return rows, columns


def even(size: int, most: int) -> int:
    """The length of parts of at most `most`, of about one length."""
    return math.ceil(size / math.ceil(size / most))
