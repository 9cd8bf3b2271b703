"""Selection: exact on every layout, dtype and kind of ties, and counts that survive float error."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxsparse.passes.ops import kept_count, kth_largest, kth_largest_per_slice
from fxsparse.passes.ops.selection import (
    SAMPLED_FROM,
    SAMPLES,
    _at_bound_or_less,
    _at_bound_or_more,
    _by_sample,
    _by_topk,
    _count,
    _select,
    _stride,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LONG = 3 * SAMPLED_FROM + 5


def by_sorting(magnitude: Tensor, k: int) -> Tensor:
    return magnitude.flatten().sort(descending=True).values[k - 1]


@pytest.mark.parametrize(
    ("density", "n", "kept"),
    [
        (1 - 0.7, 10, 3),
        (0.3, 10, 3),
        (0.31, 10, 4),
        (1e-9, 10, 1),
        (0.0, 10, 0),
        (1.0, 10, 10),
        (1.5, 10, 10),
        (0.999, 10, 10),
        (1 - 0.8, 2_359_296, 471_860),
        (0.5, 0, 0),
        (0.5, 1, 1),
    ],
)
def test_kept_count_by_hand(density: float, n: int, kept: int) -> None:
    assert kept_count(density, n) == kept


@given(tenths=st.integers(1, 100), n=st.integers(1, 10**8))
def test_kept_count_is_the_ceiling_of_the_rational(tenths: int, n: int) -> None:
    assert kept_count(1 - (100 - tenths) / 100, n) == -(-tenths * n // 100)


@pytest.mark.parametrize("density", [-0.1, math.nan])
def test_kept_count_refuses(density: float) -> None:
    with pytest.raises(ValueError, match="density lies between 0 and 1"):
        kept_count(density, 10)


KINDS: dict[str, Callable[[int], Tensor]] = {
    "normal": lambda n: torch.randn(n).abs(),
    "relu": lambda n: torch.randn(n).relu(),
    "mostly zero": lambda n: torch.randn(n).relu() * (torch.rand(n) < 0.02),
    "equal": lambda n: torch.full((n,), 0.25),
    "zero": torch.zeros,
    "few levels": lambda n: torch.randint(0, 4, (n,)).float(),
    "one large": lambda n: torch.cat([torch.zeros(n - 1), torch.ones(1)]),
    "rising": lambda n: torch.arange(n).float() / n,
    "falling": lambda n: torch.arange(n).flip(0).float() / n,
    "heavy tail": lambda n: torch.randn(n).abs().pow(-4),
    "denormal": lambda n: torch.randn(n).abs() * 1e-42,
    "periodic": lambda n: (torch.arange(n) % 64).float(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_tensors_are_selected_exactly(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = KINDS[kind](LONG).clamp(max=6e4).to(dtype)
    ordered = values.sort(descending=True).values
    for k in {1, 2, 3, LONG // 1000, LONG // 10, LONG // 3, LONG // 2, LONG // 2 + 1, 7 * LONG // 10, LONG - 2, LONG - 1, LONG}:
        got = kth_largest(values, k)
        assert got.dtype == dtype
        assert got.shape == ()
        assert torch.equal(got, ordered[k - 1]), k


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.floats(0, 100, width=16), min_size=1, max_size=60),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_short_tensors_agree_with_sorting(values: list[float], dtype: torch.dtype, data: st.DataObject) -> None:
    magnitude = torch.tensor(values, dtype=dtype)
    k = data.draw(st.integers(1, len(values)))
    assert torch.equal(kth_largest(magnitude, k), by_sorting(magnitude, k))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(1, 200), extra=st.integers(0, 300), part=st.floats(0, 1))
def test_the_sampled_way_agrees_with_sorting(seed: int, levels: int, extra: int, part: float) -> None:
    n = 2000 + extra
    values = torch.randint(0, levels, (n,), generator=torch.Generator().manual_seed(seed)).float()
    k = max(1, math.ceil(part * n))
    assert torch.equal(_by_sample(values, k), by_sorting(values, k))


@pytest.mark.parametrize("k", [1, 10, 16000, 17000, 30000, 60000, 90000, LONG])
def test_a_misleading_sample_costs_time_only(k: int) -> None:
    torch.manual_seed(1)
    for levels, sampled, others in ((1, 0.0, 1.0), (1, 1.0, 0.0), (1, 5.0, 0.5), (50, 100.0, 0.0), (50, 0.0, 100.0), (50, 10.0, 35.0)):
        values = torch.randint(0, levels, (LONG,)).float() + others
        seen = values[:: _stride(LONG)]
        seen.copy_(torch.randint(0, levels, seen.shape) + sampled)
        assert torch.equal(_by_sample(values, k), by_sorting(values, k))


def test_either_side_of_a_bracket_is_searched_exactly() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 2.0, 5.0, 2.0, 0.0, 4.0, 1.0])
    for k in range(1, 7):
        assert _at_bound_or_more(values, 2.0, k) == by_sorting(values, k)
    for k in range(4, 10):
        assert _at_bound_or_less(values, 2.0, k - 3) == by_sorting(values, k)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(1, 3),
        lambda x: x[:, ::2],
        lambda x: x[:, :, 1:, :-1],
        lambda x: x[:, :1].expand(-1, 24, -1, -1),
        lambda x: x.flip(2),
    ],
)
def test_layouts_make_no_difference(layout: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(2)
    x = layout(torch.randn(8, 24, 20, 22).abs())
    assert x.numel() >= SAMPLED_FROM
    for k in (1, x.numel() // 5, x.numel() // 2, x.numel()):
        assert torch.equal(kth_largest(x, k), by_sorting(x, k))


def test_selection_takes_no_random_numbers() -> None:
    before = torch.get_rng_state()
    kth_largest(torch.rand(LONG, generator=torch.Generator().manual_seed(3)), LONG // 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("k", [0, 4, -1])
def test_a_rank_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=r"has 3 values; k lies between 1 and that number"):
        kth_largest(torch.rand(3), k)
    with pytest.raises(ValueError, match=r"a slice along dims \[0\] has 3 values"):
        kth_largest_per_slice(torch.rand(5, 3), k, [0])


@pytest.mark.parametrize("dims", [[], [0], [1], [0, 1], [-3], [3, 1]])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 2, 128, 160)])
def test_slices_agree_with_a_loop(dims: list[int], shape: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    x = torch.randn(shape).relu().contiguous(memory_format=torch.channels_last)
    kept = [dim % 4 for dim in dims]
    expected_shape = [size if dim in kept else 1 for dim, size in enumerate(shape)]
    n = x.numel() // math.prod(expected_shape)
    k = n // 3
    got = kth_largest_per_slice(x, k, dims)
    assert list(got.shape) == expected_shape
    for index in torch.cartesian_prod(*[torch.arange(size) for size in expected_shape]).tolist():
        part = x[tuple(index[dim] if dim in kept else slice(None) for dim in range(4))]
        assert torch.equal(got[tuple(index)], by_sorting(part, k))


@pytest.mark.parametrize("n", [2**20, 2**20 + 1, 2**25, 512 * 512 * 9, 64 * 3 * 49 * 101, SAMPLED_FROM])
def test_the_stride_is_odd_and_visits_every_index(n: int) -> None:
    stride = _stride(n)
    assert stride % 2 == 1
    assert math.gcd(stride, n) == 1
    assert SAMPLES / 2 < n / stride <= 2 * max(SAMPLES, n / 128)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 2039, 2040, 2041, 10_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_masks_are_counted_and_selected_exactly(n: int, share: float) -> None:
    generator = torch.Generator().manual_seed(n)
    values, mask = torch.rand(n, generator=generator), torch.rand(n, generator=generator) < share
    assert _count(mask) == int(mask.sum())
    assert torch.equal(_select(values, mask).sort().values, values[mask].sort().values)


@pytest.mark.parametrize("k", [1, 2, 25, 26, 49, 50])
def test_the_way_of_other_devices_agrees_with_sorting(k: int) -> None:
    rows = torch.randint(0, 20, (4, 50), generator=torch.Generator().manual_seed(k)).float()
    assert torch.equal(_by_topk(rows, k), rows.sort(dim=1, descending=True).values[:, k - 1])
