"""A tensor (A, C, B) worked through in pieces: all samples of some channels, or all channels of some samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .bits import pack, parts_of, to_codes, unpack
from .layout import block_elements, blocks

_SHORT_ROW = 16  # rows of pixels below this length are better worked through by sample than by channel
Piece = tuple[slice, slice]


class Pieces:
    """The division of a tensor (A, C, B) for codes of some bits, of which `parts` share a byte, C/parts channels apart.

    Where the channels do not divide evenly, the last ones share their bytes with nothing.

    Attributes:
        by_channel: a piece has all samples of the channels c, c + C/parts, c + 2C/parts, ...; else all channels of some samples.
    """

    def __init__(self, like: Tensor, sizes: Sequence[int], bits: int, *, all_samples: bool = False) -> None:
        self.samples, self.channels, self.pixels = sizes
        self.bits, self.parts = bits, parts_of(bits)
        self.each = (self.channels + self.parts - 1) // self.parts
        self.even = self.each * self.parts == self.channels
        self.by_channel = self.even and self.pixels >= _SHORT_ROW and like.device.type == "cpu"
        self.limit = like.numel() if all_samples and not self.by_channel else block_elements(like)
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def __iter__(self) -> Iterator[Piece]:
        if self.by_channel:
            for part in blocks(self.each, self.samples * self.parts * self.pixels, self.limit):
                yield slice(None), part
        else:
            for part in blocks(self.samples, self.channels * self.pixels, self.limit):
                yield part, slice(None)

    def split(self, tensor: Tensor) -> Tensor:
        """A tensor (A, C, B) or its bytes, as what ``of`` takes."""
        return tensor.view(self.samples, self.parts if self.even else 1, -1, self.pixels)

    def of(self, split: Tensor, piece: Piece) -> Tensor:
        """The piece of a split tensor, as (a, parts, c, B); (a, 1, C, B) where channels do not divide evenly."""
        return split[piece[0], :, piece[1]]

    def bytes_of(self, packed: Tensor, piece: Piece) -> Tensor:
        """The piece's bytes, (a, c, B)."""
        return packed.view(self.samples, self.each, self.pixels)[piece]

    def columns(self, vectors: Tensor, piece: Piece) -> list[Tensor]:
        """Each of some vectors over channels, (R, C), as a column over the channels of the piece."""
        if self.by_channel:
            vectors = vectors.view(-1, self.parts, self.each)[:, :, piece[1]].reshape(vectors.shape[0], -1)
        return list(vectors.unsqueeze(2).unbind(0))

    def joined(self, found: list[Tensor]) -> Tensor:
        """The vector over channels of which each piece gave its part."""
        if not self.by_channel:
            return found[0].reshape(-1)
        return torch.cat([part.view(self.parts, -1) for part in found], 1).reshape(-1)

    def buffers(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Room for the values (float32) and codes (uint8) of a piece (a, c, B)."""
        if like.shape[0] * like.shape[1] not in self._buffers:
            self._buffers = {like.shape[0] * like.shape[1]: (_empty(like, torch.float32), _empty(like, torch.uint8))}
        values, codes = self._buffers[like.shape[0] * like.shape[1]]
        return values.view(like.shape), codes.view(like.shape)

    def store(self, values: Tensor, codes: Tensor, packed: Tensor) -> None:
        """Packs values (a, c, B), which are overwritten; ``codes`` is room for them as uint8."""
        to_codes(values, self.bits, codes)
        if not self.even:
            missing = self.each * self.parts - self.channels
            codes = torch.cat([codes, codes.new_zeros((codes.shape[0], missing, codes.shape[2]))], 1)
        pack(codes.view(codes.shape[0], self.parts, -1, self.pixels), self.bits, 1, packed)

    def load(self, packed: Tensor) -> Tensor:
        """The codes of a piece, uint8 (a, c, B), given its bytes."""
        samples, each, pixels = packed.shape
        codes = packed.new_empty((samples, self.parts, each, pixels))
        unpack(packed, self.bits, 1, codes)
        flat = codes.view(samples, self.parts * each, pixels)
        return flat if self.even else flat[:, : self.channels]

    @property
    def packed_bytes(self) -> int:
        return self.samples * self.each * self.pixels


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(like.shape, dtype=dtype, device=like.device)
