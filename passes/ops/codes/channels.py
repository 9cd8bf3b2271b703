"""BLPA's grid: a code of a normalised value whose place follows from gamma and beta, so that no range is stored for it.

With n = 2**bits, a channel's grid covers about three standard deviations to each side of the mean in steps of 6/n. Before a ReLU
it is shifted so that z = gamma*xh + beta = 0 lies on the edge of a bin: code >= first if and only if z > 0, exactly. In terms of
xh' = sign(gamma)*xh and b = beta/|gamma|, so that z > 0 means xh' > -b:

    b about -3 to 3   first = shift = n/2 - floor(n*b/6), code = clip(ceil(n*(xh' + b)/6) - 1 + shift, 0, n-1), value |gamma|*(xh' + b)
    lower b           z is hardly ever positive: the last code stands for z > 0, the other n-1 divide +-3 sigma
    higher b          z is hardly ever 0: code 0 stands for z <= 0, the other n-1 divide +-3 sigma

The first row is the authors' quantiser for gamma > 0, with ceil(.) - 1 for floor(. - 1e-6), which makes the mask exact for every
positive number. The others, gamma < 0 and gamma = 0 are what theirs leaves out.

Source: Chakrabarti & Moseley, NeurIPS 2019, arXiv 1901.07988, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIGMAS = 6.0  # width of the grid in standard deviations
SMALLEST_GAMMA = 1e-30

# Rows of the statistics, (ROWS, C) float32.
CENTER = 0  # xh ~ (code - CENTER) * STEP
STEP = 1  # carries the sign of gamma
INVSTD = 2
FIRST = 3  # first - 1/2: codes above it mean z > 0
SLOPE = 4  # z ~ code * SLOPE + OFFSET, cut below 0 after a ReLU
OFFSET = 5
GAIN = 6  # gamma / sigma
NEEDS_MASK = 7  # 1 where code 0 must be put to 0 apart, since SLOPE and OFFSET do not lead there
ROWS = 8


@dataclass(frozen=True)
class Grid:
    """Where the bins of each channel lie; all tensors float32 of size C.

    Attributes:
        per_unit: bins for one standard deviation. origin: code of xh' = 0, as a real number. first: the first code of z > 0.
        is_regular: channels of the first row of the table above.
    """

    bits: int
    sign: Tensor
    per_unit: Tensor
    origin: Tensor
    first: Tensor
    slope: Tensor
    offset: Tensor
    is_regular: Tensor
    is_high: Tensor

    def stacked(self) -> Tensor:
        """The vectors that encoding needs, (5, C): 1/slope, first, bins for one sigma (with gamma's sign), origin, 1 if regular."""
        regular = self.is_regular.to(torch.float32)
        return torch.stack([1 / self.slope, self.first, self.per_unit * self.sign, self.origin, regular])


def make_grid(weight: Tensor | None, bias: Tensor | None, channels: int, bits: int, with_relu: bool, device: torch.device) -> Grid:
    """Return the grid of a normalisation's channels, for what follows it."""
    n = float(1 << bits)
    one = torch.ones(channels, device=device)
    gamma = one if weight is None else weight.detach().to(torch.float32)
    beta = one * 0 if bias is None else bias.detach().to(torch.float32)
    sign, size = torch.where(gamma < 0, -1.0, 1.0), gamma.abs()
    if not with_relu:
        per_unit, origin = one * (n / SIGMAS), one * (n / 2)
        slope = size / per_unit
        never = torch.zeros_like(one, dtype=torch.bool)
        return Grid(bits, sign, per_unit, origin, origin * 0, slope, beta - slope * (origin - 0.5), ~never, never)
    b = torch.where(size > SMALLEST_GAMMA, beta / size, torch.where(beta > 0, torch.inf, -torch.inf))
    shift = n / 2 - (b * (n / SIGMAS)).floor()
    is_high, is_low = shift < 1, shift > n - 1
    is_regular = ~(is_high | is_low)
    bins = torch.where(is_regular, n, n - 1)
    per_unit = bins / SIGMAS
    finite_b = torch.where(is_regular, b, 0.0)
    first = torch.where(is_regular, shift, torch.where(is_high, 1.0, n - 1))
    middle = torch.where(is_high, 1 + (n - 1) / 2, (n - 1) / 2)
    origin = torch.where(is_regular, shift + finite_b * (n / SIGMAS), middle)
    slope = size / per_unit
    offset = torch.where(is_high, beta - slope * (origin - 0.5), slope * (0.5 - first))
    return Grid(bits, sign, per_unit, origin, first, slope, offset, is_regular, is_high)


def statistics(grid: Grid, weight: Tensor | None, invstd: Tensor) -> Tensor:
    """Return the rows that decoding and the backward pass need, (ROWS, C) float32. A channel of NaN statistics decodes to NaN."""
    gamma = torch.ones_like(invstd) if weight is None else weight.detach().to(torch.float32)
    return torch.stack(
        [
            grid.origin - 0.5,
            grid.sign / grid.per_unit,
            invstd,
            grid.first - 0.5,
            grid.slope,
            grid.offset + invstd * 0,
            gamma * invstd,
            grid.is_high.to(torch.float32),
        ]
    )


def encode_regular(z: Tensor, grid: list[Tensor], bits: int, values: Tensor) -> None:
    """Store the codes of z (A, C, B), as float32, in `values`: for regular channels before a ReLU. The sign of z decides alone.

    `grid` is what Grid.stacked returns, each vector as a column.
    """
    torch.mul(z, grid[0], out=values)
    values.ceil_().add_(grid[1] - 1).clamp_(0, (1 << bits) - 1)


def encode_any(x: Tensor, z: Tensor, mean: Tensor, invstd: Tensor, grid: list[Tensor], bits: int, values: Tensor) -> None:
    """Store the codes of x (A, C, B), as float32, in `values`, before a ReLU: of each channel as its kind wants it."""
    encode(x, z, mean, invstd, grid, bits, values)
    regular = torch.empty_like(values)
    encode_regular(z, grid, bits, regular)
    torch.where(grid[4] != 0, regular, values, out=values)


def encode(x: Tensor, z: Tensor | None, mean: Tensor, invstd: Tensor, grid: list[Tensor], bits: int, values: Tensor) -> None:
    """Store the codes of the normalised x (A, C, B), as float32, in `values`; with z, codes say whether z > 0."""
    last = (1 << bits) - 1
    _, first, per_unit, origin, _ = grid
    scale = invstd * per_unit
    torch.mul(x, scale, out=values)
    values.add_(origin - mean * scale).clamp_(0, last).floor_()
    if z is not None:
        positive = (z > 0).to(torch.float32)
        torch.maximum(values, positive * first, out=values)
        torch.minimum(values, positive.mul_(last + 1 - first).add_(first - 1), out=values)
