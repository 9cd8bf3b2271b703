"""What few-bit codes stand for: round trips, bounds, sizes, and values that no code can hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxsparse.passes.ops.codes import bits as packing
from fxsparse.passes.ops.codes import channels, groups, masks, noise, positions
from fxsparse.passes.ops.codes.groups import Groups, Rounding
from fxsparse.passes.ops.codes.layout import by_channel, dense_strides, in_memory_order, is_dense
from fxsparse.passes.ops.codes.scheme import of_divided, of_norm, of_positive, of_range, of_sparse, parse

WIDTHS = st.sampled_from([1, 2, 4, 8])
GROUP_SIZES = st.sampled_from([8, 16, 24, 40, 64, 72, 256, 1024])
SIZES = st.integers(1, 700)
SEEDS = st.integers(0, 10_000)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def numbers(seed: int, size: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def coded(x: Tensor, size: int, bits: int, *, positive: bool = False, rounding: Rounding | None = None) -> Tensor:
    """What the codes of a tensor stand for."""
    packed, stats = groups.encode(x, size, bits, positive, rounding or Rounding())
    out = torch.full_like(x, 777)
    groups.decode(packed, stats, x.numel(), size, bits, positive, out)
    return out


def by_group(x: Tensor, size: int) -> list[Tensor]:
    return list(x.float().split(size))


# Bits


@given(WIDTHS, st.integers(0, 50), st.integers(1, 3), SEEDS)
def test_packed_codes_come_back(bits: int, each: int, rows: int, seed: int) -> None:
    codes = torch.randint(1 << bits, (rows, 8 // bits, each), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed, back = torch.empty(rows, each, dtype=torch.uint8), torch.empty_like(codes)
    packing.pack(codes, bits, 1, packed)
    packing.unpack(packed, bits, 1, back)
    assert torch.equal(back, codes)
    shifted = sum(codes[:, part].int() << (bits * part) for part in range(8 // bits))
    assert torch.equal(packed.int(), torch.as_tensor(shifted))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_values_are_cut_to_their_whole_part(bits: int) -> None:
    values = torch.linspace(0, (1 << bits) - 1e-3, 4001)
    codes = torch.empty(4001, dtype=torch.uint8)
    packing.to_codes(values.clone(), bits, codes)
    assert torch.equal(codes.float(), values.floor())


@pytest.mark.parametrize("bits", [0, 3, 5, 16])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"1, 2, 4 or 8 bits, got {bits}"):
        packing.parts_of(bits)


# Groups


@given(WIDTHS, GROUP_SIZES, SIZES, SEEDS, st.sampled_from([1e-20, 1.0, 1e20]))
def test_the_nearest_code_is_at_most_half_a_step_away(bits: int, size: int, count: int, seed: int, scale: float) -> None:
    x = numbers(seed, count, scale)
    for original, found in zip(by_group(x, size), by_group(coded(x, size, bits), size), strict=True):
        step = (original.max() - original.min()) / ((1 << bits) - 1)
        assert (found - original).abs().max() <= 0.5001 * step + 1e-6 * original.abs().max()


@given(WIDTHS, GROUP_SIZES, SIZES, SEEDS, st.integers(0, 10_000))
def test_a_random_code_is_one_of_the_two_around(bits: int, size: int, count: int, seed: int, step_of_training: int) -> None:
    x = numbers(seed, count)
    decoded = coded(x, size, bits, rounding=Rounding(3, step_of_training))
    for original, found in zip(by_group(x, size), by_group(decoded, size), strict=True):
        step = (original.max() - original.min()) / ((1 << bits) - 1)
        assert (found - original).abs().max() <= 1.0001 * step + 1e-6


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_largest_value_never_becomes_the_smallest(bits: int) -> None:
    """Each of the table's numbers meets values at the top of their range."""
    x = torch.rand(noise.SIZE, generator=torch.Generator().manual_seed(0))
    x.view(-1, 16)[:, 1] += 3  # the largest of each group
    for step in range(20):
        decoded = coded(x, 16, bits, rounding=Rounding(1, step))
        span = (x.view(-1, 16).amax(1) - x.view(-1, 16).amin(1)) / ((1 << bits) - 1)
        assert ((decoded - x).abs().view(-1, 16) <= 1.0001 * span.unsqueeze(1)).all()
    for value in torch.linspace(0.1, 90, 200):  # the top of the grid beside every number of the table
        tall = value * torch.ones(noise.SIZE)
        tall[::8] = 0
        assert (coded(tall, 8, bits, rounding=Rounding(1, 0)).view(-1, 8)[:, 1:] > 0.9 * value).all()


@given(WIDTHS, GROUP_SIZES, SIZES, SEEDS, st.booleans())
def test_codes_take_the_room_that_is_foretold(bits: int, size: int, count: int, seed: int, positive: bool) -> None:
    x = numbers(seed, count).abs()
    packed, stats = groups.encode(x, size, bits, positive, Rounding())
    division = Groups(count, size, bits)
    assert packed.numel() == division.packed_bytes
    assert stats.shape == (1 if positive else 2, math.ceil(count / size))
    assert 0 <= packed.numel() - count * bits / 8 < 1
    assert division.whole * size + division.rest == count


@given(WIDTHS, GROUP_SIZES, SIZES, st.floats(-1e6, 1e6, width=32))
def test_a_group_of_one_value_comes_back_as_it_was(bits: int, size: int, count: int, value: float) -> None:
    x = torch.full((count,), value)
    assert torch.equal(coded(x, size, bits), x)
    assert torch.equal(coded(x, size, bits, rounding=Rounding(1, 2)), x)


@given(WIDTHS, GROUP_SIZES, SIZES, SEEDS, st.sampled_from([1e-20, 1.0, 1e20]), st.sampled_from(DTYPES))
def test_a_positive_code_is_zero_where_the_value_is(bits: int, size: int, count: int, seed: int, scale: float, dtype: torch.dtype) -> None:
    scale = 1.0 if dtype == torch.float16 else scale
    x = (numbers(seed, count).relu() * scale).to(dtype)
    x[seed % count] = max(torch.finfo(dtype).tiny, 1e-15 * scale)
    decoded = coded(x.float(), size, bits, positive=True)
    assert torch.equal(decoded > 0, x > 0)
    for original, found in zip(by_group(x, size), by_group(decoded, size), strict=True):
        assert (found - original).abs().max() <= 0.51 * original.max() / ((1 << bits) - 1) + 1e-30


@given(WIDTHS, GROUP_SIZES, SIZES, SEEDS, st.sampled_from(DTYPES))
def test_a_gradient_passes_where_a_positive_code_is_not_zero(bits: int, size: int, count: int, seed: int, dtype: torch.dtype) -> None:
    x, grad = numbers(seed, count).relu().to(dtype), numbers(seed + 1, count).to(dtype)
    packed, stats = groups.encode(x, size, bits, True, Rounding())
    out = torch.full_like(grad, 777)
    groups.where_positive(packed, stats, size, bits, grad, out)
    assert torch.equal(out, grad * (x > 0))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [5, 70])
@pytest.mark.parametrize("positive", [False, True])
def test_a_group_that_holds_no_number_decodes_to_none(bits: int, value: float, place: int, positive: bool) -> None:
    if positive and value < 0:
        return
    x = numbers(0, 75).abs()
    x[place] = value
    found, other = coded(x, 32, bits, positive=positive), [0, 1, 2]
    other.remove(place // 32)
    pieces = found.split(32)
    assert not pieces[place // 32].isfinite().any()
    assert all(pieces[index].isfinite().all() for index in other)
    if positive:
        packed, stats = groups.encode(x, 32, bits, True, Rounding())
        out = torch.empty_like(x)
        groups.where_positive(packed, stats, 32, bits, torch.ones_like(x), out)
        assert out.split(32)[place // 32].isnan().all()
        assert all((out.split(32)[index] == 1).all() for index in other)


@pytest.mark.parametrize("positive", [False, True])
def test_nothing_has_no_codes(positive: bool) -> None:
    packed, stats = groups.encode(torch.empty(0), 64, 4, positive, Rounding())
    assert (packed.numel(), stats.shape[1]) == (0, 0)
    groups.decode(packed, stats, 0, 64, 4, positive, torch.empty(0))


def test_a_function_is_coded_in_place_of_its_argument() -> None:
    x = numbers(0, 300)
    packed, stats = groups.encode(x, 64, 4, False, Rounding(1, 1), torch.sin)
    wanted = groups.encode(x.sin(), 64, 4, False, Rounding(1, 1))
    assert torch.equal(packed, wanted[0])
    assert torch.equal(stats, wanted[1])


def test_codes_do_not_depend_on_how_a_tensor_is_divided_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = numbers(0, 5000)
    whole = coded(x, 64, 4)
    monkeypatch.setattr(groups, "block_elements", lambda tensor: 640)
    assert torch.equal(coded(x, 64, 4), whole)


# Noise


def test_the_table_holds_every_number_once() -> None:
    values = torch.zeros(noise.SIZE)
    noise.add_noise(values, 12345)
    assert torch.equal(values.sort().values, (torch.arange(noise.SIZE) + 0.5) / noise.SIZE)


@given(st.integers(0, 3 * noise.SIZE), st.integers(0, noise.SIZE - 1))
@settings(max_examples=20)
def test_a_number_follows_from_place_and_offset(count: int, offset: int) -> None:
    values, table = torch.zeros(count), torch.zeros(noise.SIZE)
    noise.add_noise(values, offset)
    noise.add_noise(table, 0)
    assert torch.equal(values, table[(torch.arange(count) + offset) % noise.SIZE])


def test_offsets_are_spread_over_the_table() -> None:
    """Chi-squared over 256 bins for steps, seeds and blocks: 255 degrees of freedom, 5 deviations are 368."""
    for offsets in (
        [noise.offset_of(7, step, 1) for step in range(8192)],
        [noise.offset_of(seed, 3, 1) for seed in range(8192)],
        [noise.offset_of(7, 3, block) for block in range(8192)],
    ):
        counts = torch.bincount(torch.tensor(offsets) // 256, minlength=256).double()
        assert float(((counts - 32).square() / 32).sum()) < 368
        assert len(set(offsets)) > 7000


# Masks and positions


@given(st.integers(0, 300), SEEDS, st.floats(0, 1))
def test_masks_come_back(count: int, seed: int, density: float) -> None:
    mask = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < density
    packed = masks.encode(mask)
    assert packed.numel() == masks.packed_size(count) == math.ceil(count / 8)
    assert torch.equal(masks.decode(packed, count).bool(), mask)


@given(st.integers(0, 500), SEEDS, st.one_of(st.sampled_from([0.0, 0.002, 0.05, 1.0]), st.floats(0, 1)))
def test_positions_come_back_at_any_density(count: int, seed: int, density: float) -> None:
    mask = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < density
    where = mask.nonzero().view(-1)
    assert torch.equal(positions.indices(mask), where)
    assert torch.equal(positions.decode_bitmap(positions.encode_bitmap(mask), count), mask)
    assert torch.equal(positions.decode_gaps(positions.encode_gaps(where)), where)


@pytest.mark.parametrize("gap", [0, 1, 14, 15, 16, 29, 30, 31, 45, 1000])
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_gaps_of_every_kind_come_back(gap: int, kept: int) -> None:
    where = torch.arange(1, kept + 1) * (gap + 1) - 1
    packed = positions.encode_gaps(where)
    assert torch.equal(positions.decode_gaps(packed), where)
    assert packed.numel() == math.ceil(kept * (gap // 15 + 1) / 2)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.18])
def test_the_digits_that_are_foretold_are_about_those_needed(density: float) -> None:
    mask = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) < density
    where = positions.indices(mask)
    expected = positions.digits_expected(mask.numel(), where.numel())
    assert positions.encode_gaps(where).numel() * 2 == pytest.approx(expected, rel=0.02)
    assert (expected / 2 < masks.packed_size(mask.numel())) == (density <= positions.DENSEST_GAPS)


# Channels


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.floats(-2, 2, width=32),
    st.one_of(st.sampled_from([-50.0, 0.0, 50.0]), st.floats(-8, 8, width=32)),
    SEEDS,
)
def test_a_norms_code_tells_the_sign_and_lies_in_the_bin(bits: int, gamma: float, beta: float, seed: int) -> None:
    weight, bias = torch.tensor([gamma]), torch.tensor([beta])
    xh = numbers(seed, 400).clamp(-2.9, 2.9)
    z = weight * xh + bias
    grid = channels.make_grid(weight, bias, 1, bits, True, torch.device("cpu"))
    values, columns = torch.empty(1, 1, 400), [row.view(1, 1) for row in grid.stacked()]
    channels.encode(xh.view(1, 1, -1), z.view(1, 1, -1), torch.zeros(1, 1), torch.ones(1, 1), columns, bits, values)
    stats = channels.statistics(grid, weight, torch.ones(1))[:, 0]
    codes = values.flatten()
    assert torch.equal(codes, codes.round())
    assert 0 <= codes.min() <= codes.max() <= (1 << bits) - 1
    assert torch.equal(codes > stats[channels.FIRST], z > 0)
    decoded = (codes * stats[channels.SLOPE] + stats[channels.OFFSET]) * (codes > stats[channels.FIRST])
    step = 6 / max((1 << bits) - 1, 1)
    inside = bool(grid.is_regular) and abs(beta) < 1e20
    if inside and abs(gamma) > 1e-6 and bits > 2 and -2 < beta / abs(gamma) < 2:
        assert ((decoded - z.relu()).abs() <= 1.01 * abs(gamma) * step + 1e-5).all()


@pytest.mark.parametrize("gamma", [0.7, -0.7])
@pytest.mark.parametrize("beta", [-1.5, 0.0, 1.2])
@pytest.mark.parametrize("bits", [4, 8])
def test_both_ways_of_encoding_before_a_relu_agree(gamma: float, beta: float, bits: int) -> None:
    weight, bias, xh = torch.tensor([gamma]), torch.tensor([beta]), numbers(0, 2000)
    z = weight * xh + bias
    grid = channels.make_grid(weight, bias, 1, bits, True, torch.device("cpu"))
    columns = [row.view(1, 1) for row in grid.stacked()]
    first, second = torch.empty(1, 1, 2000), torch.empty(1, 1, 2000)
    channels.encode(xh.view(1, 1, -1), z.view(1, 1, -1), torch.zeros(1, 1), torch.ones(1, 1), columns, bits, first)
    channels.encode_regular(z.view(1, 1, -1), columns, bits, second)
    assert (first - second).abs().max() <= 1  # an element on an edge
    assert (first != second).float().mean() < 0.01


# Layout and schemes


@given(st.permutations([0, 1, 2, 3]), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_any_order_in_memory_is_known_as_dense(order: list[int], sizes: list[int]) -> None:
    x = torch.arange(math.prod(sizes)).view([sizes[dim] for dim in order]).permute([order.index(dim) for dim in range(4)])
    assert is_dense(x)
    assert torch.equal(in_memory_order(x), torch.arange(x.numel()))
    made = torch.empty_strided(x.shape, dense_strides(x.shape, x.stride()), dtype=x.dtype)
    assert is_dense(made)
    channels_apart = by_channel(x)
    assert channels_apart.shape[1] == sizes[1]
    for channel in range(sizes[1]):
        assert torch.equal(channels_apart[:, channel].flatten().sort().values, x[:, channel].flatten().sort().values)


def test_gaps_and_repeats_are_not_dense() -> None:
    x = torch.empty(4, 6)
    assert not is_dense(x[:, ::2])
    assert not is_dense(x[:, :3])
    assert not is_dense(torch.empty(1).expand(4, 4))
    assert is_dense(x.t())


@pytest.mark.parametrize(
    "text",
    [of_range(4, 256), of_positive(2, 64), of_norm(8, "relu"), of_sparse("gaps", 4, 128), of_divided(of_norm(4, "relu")), "mask", "exact"],
)
def test_a_scheme_is_read_as_it_was_written(text: str) -> None:
    read = parse(text)
    assert text.startswith(read.kind)
    assert all(part in (str(read.bits), str(read.group), read.activation) for part in text.split(":")[1:])


@pytest.mark.parametrize("text", ["range:4", "exact:1", "norm:4", "tensor:4:256", ""])
def test_other_schemes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no code"):
        parse(text)
