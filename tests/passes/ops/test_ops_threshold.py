"""refresh_threshold: when a threshold is selected, stored and reused, and what it is."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fxsparse.passes.ops  # noqa: F401
from fxsparse.errors import NumericalError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
refresh = torch.ops.fxsparse.refresh_threshold.default


def unset(*shape: int) -> Tensor:
    return torch.full(shape, math.nan)


def call(x: Tensor, stored: Tensor, t: int, density: float = 0.25, **changes: Any) -> Tensor:
    options: dict[str, Any] = {"period": 4, "reduce_dims": [], "groups": 1, "per_dims": [], "enabled": True, "site": "input:conv"}
    options.update(changes)
    threshold: Tensor = refresh(x, stored, torch.tensor(t), torch.tensor(density, dtype=torch.float64), *options.values())
    return threshold


def kept(scores: Tensor, threshold: Tensor) -> int:
    return int((scores >= threshold).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = torch.randn(4, 6, 5, 5).to(dtype).contiguous(memory_format=memory_format)
    density = torch.tensor(0.3, dtype=torch.float64)
    for stored, reduce_dims, groups, per_dims, enabled in [
        (unset(), [], 1, [], True),
        (unset(1, 6, 1, 1), [], 1, [1], True),
        (unset(), [], 1, [0, 1], True),
        (unset(), [2, 3], 1, [], True),
        (unset(), [1, 3, 4], 2, [], True),
        (unset(), [], 1, [], False),
    ]:
        for t in (0, 1, -1):
            arguments = (x, stored.clone(), torch.tensor(t), density, 2, reduce_dims, groups, per_dims, enabled, "input:conv")
            torch.library.opcheck(refresh, arguments)


def test_a_threshold_lasts_a_period() -> None:
    torch.manual_seed(0)
    stored = unset()
    xs = [torch.randn(20, 20) * (t + 1) for t in range(10)]
    fresh = [x.abs().flatten().sort(descending=True).values[99] for x in xs]
    for t, x in enumerate(xs):
        got = call(x, stored, t)
        assert torch.equal(got, fresh[t // 4 * 4])
        assert torch.equal(stored, got)
        assert got.data_ptr() != stored.data_ptr()


def test_evaluation_stores_nothing() -> None:
    x = torch.randn(20, 20)
    stored = unset()
    fresh = call(x, stored, -1)
    assert kept(x.abs(), fresh) == 100
    assert stored.isnan()
    stored.fill_(0.5)
    assert call(x, stored, -1).item() == 0.5
    assert stored.item() == 0.5


def test_an_unset_threshold_is_selected_between_refreshes() -> None:
    x, stored = torch.randn(20, 20), unset()
    assert kept(x.abs(), call(x, stored, 3)) == 100
    assert not stored.isnan()


def test_nothing_is_stored_when_not_enabled() -> None:
    stored = unset()
    got = call(torch.randn(4, 4, dtype=torch.float16), stored, 0, enabled=False)
    assert got.numel() == 0
    assert got.dtype == torch.float16
    assert stored.isnan()


@pytest.mark.parametrize("density", [1.0, 1.5])
def test_a_density_of_one_keeps_all_at_once(density: float) -> None:
    stored = torch.tensor(0.5)
    x = torch.full((3, 3), math.nan)
    assert call(x, stored, 2, density).item() == 0
    assert stored.item() == 0.5
    assert call(x, stored, 4, density, site="weight:conv").item() == 0
    assert stored.item() == 0


def test_a_density_of_zero_keeps_nothing() -> None:
    x, stored = torch.randn(8, 8), unset()
    assert kept(x.abs(), call(x, stored, 0, 0.0)) == 0


@pytest.mark.parametrize("density_dtype", [torch.float32, torch.float64])
def test_the_density_is_taken_as_written(density_dtype: torch.dtype) -> None:
    x = torch.arange(1_000_000, dtype=torch.float32)
    density = torch.tensor(0.1, dtype=density_dtype)
    got = refresh(x, unset(), torch.tensor(0), density, 1, [], 1, [], True, "")
    assert kept(x, got) == 100_000


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [0, 1])
def test_dtype_is_at_least_float32(dtype: torch.dtype, t: int) -> None:
    x = torch.randn(8, 8).to(dtype)
    got = call(x, torch.tensor(0.5), t)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if t == 0:
        assert got.item() == x.abs().flatten().sort(descending=True).values[15].item()


@pytest.mark.parametrize("per_dims", [[0], [1], [0, 1]])
def test_thresholds_per_slice(per_dims: list[int]) -> None:
    x = torch.randn(3, 4, 5, 5)
    shape = [size if dim in per_dims else 1 for dim, size in enumerate(x.shape)]
    got = call(x, unset(*shape) if 0 not in per_dims else unset(), 0, per_dims=per_dims)
    assert list(got.shape) == shape
    counts = (x.abs() >= got).sum([dim for dim in range(4) if dim not in per_dims])
    assert counts.eq(math.ceil(0.25 * x.numel() / math.prod(shape))).all()


def test_thresholds_per_channel_are_reused() -> None:
    stored = unset(1, 4, 1, 1)
    first = call(torch.randn(3, 4, 5, 5), stored, 0, per_dims=[1])
    assert torch.equal(call(torch.randn(3, 4, 5, 5), stored, 1, per_dims=[1]), first)
    assert torch.equal(stored, first)


def test_thresholds_per_sample_are_never_reused() -> None:
    stored = unset()
    for t, batch in ((0, 3), (1, 2), (2, 5)):
        x = torch.randn(batch, 4, 5, 5)
        got = call(x, stored, t, per_dims=[0])
        assert (x.abs() >= got).sum([1, 2, 3]).eq(25).all()
        assert stored.isnan()


def test_thresholds_per_filter_of_a_weight_are_reused() -> None:
    stored = unset(6, 1, 1, 1)
    first = call(torch.randn(6, 4, 3, 3), stored, 0, per_dims=[0])
    assert torch.equal(call(torch.randn(6, 4, 3, 3), stored, 1, per_dims=[0]), first)


@pytest.mark.parametrize("reduce_dims", [[2, 3], [1, 2, 3], [0, 2, 3]])
def test_structures_are_scored_by_their_l1_norm(reduce_dims: list[int]) -> None:
    torch.manual_seed(0)
    w = torch.randn(6, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    sizes = [1 if dim in reduce_dims else size for dim, size in enumerate(w.shape)]
    norms = []
    for index in torch.cartesian_prod(*[torch.arange(size) for size in sizes]).tolist():
        part = w[tuple(slice(None) if dim in reduce_dims else index[dim] for dim in range(4))]
        norms.append(sum(abs(value) for value in part.double().flatten().tolist()))
    got = call(w, unset(), 0, 0.5, reduce_dims=reduce_dims)
    assert got.shape == ()
    torch.testing.assert_close(got.item(), sorted(norms)[-math.ceil(len(norms) / 2)], rtol=1e-6, atol=0)


def test_groups_split_dimension_zero_before_the_reduction() -> None:
    w = torch.randn(6, 4, 3, 3)
    got = call(w, unset(), 0, 0.25, reduce_dims=[1, 3, 4], groups=2)
    norms = sorted(w[3 * group : 3 * group + 3, out].abs().sum().item() for group in range(2) for out in range(4))
    torch.testing.assert_close(got.item(), norms[-2], rtol=1e-6, atol=0)


def test_low_precision_norms_do_not_overflow() -> None:
    w = torch.full((4, 2, 64, 64), 100.0, dtype=torch.float16)
    assert call(w, unset(), 0, 0.5, reduce_dims=[2, 3], site="weight:conv").item() == 100 * 64 * 64


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reduce_dims", [[], [2, 3]])
def test_a_weight_that_is_not_finite_is_refused_on_a_refresh(bad: float, reduce_dims: list[int]) -> None:
    w, stored = torch.randn(4, 4, 3, 3), torch.tensor(0.5)
    w[0, 0, 0, 0] = w[2, 1, 1, 1] = bad
    assert call(w, stored, 1, reduce_dims=reduce_dims, site="weight:layer1.conv").item() == 0.5
    with pytest.raises(NumericalError, match=r"weight:layer1.conv: 2 of 144 values are NaN or inf.*lower the learning rate"):
        call(w, stored, 4, reduce_dims=reduce_dims, site="weight:layer1.conv")
    assert stored.item() == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("per_dims", [[], [0], [1], [0, 1]])
def test_an_activation_that_is_not_finite_is_left_out(bad: float, per_dims: list[int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 6)
    x[0, 0, :, :3] = bad
    x[1] = bad
    shape = [size if dim in per_dims else 1 for dim, size in enumerate(x.shape)] if per_dims else []
    got = call(x, unset(*shape), 0, per_dims=per_dims)
    assert got.isfinite().all()
    rows = (got + torch.zeros(3, 4, 1, 1)) if per_dims else got.expand(3, 4, 1, 1)
    finite = x.isfinite()
    over = finite & (x.abs() >= rows)
    reduced = [dim for dim in range(4) if dim not in per_dims]
    assert torch.equal(over.sum(reduced), (0.25 * finite.sum(reduced)).ceil().long())


def test_an_activation_without_any_finite_value_has_threshold_zero() -> None:
    assert call(torch.full((3, 3), math.nan), unset(), 0).item() == 0


def test_an_empty_activation_has_threshold_zero() -> None:
    assert call(torch.empty(0, 4), unset(), 0).item() == 0


def test_a_buffer_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"input:conv: thresholds per dims \[1\].*\[1, 4, 1, 1\], but the buffer.* has \[\]"):
        call(torch.randn(3, 4, 5, 5), unset(), 0, per_dims=[1])


def test_a_period_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="period is a number of steps from 1, got 0"):
        call(torch.randn(3), unset(), 0, period=0)


def test_the_input_is_left_untouched() -> None:
    x = torch.randn(64, 64)
    before, version = x.clone(), x._version
    call(x, unset(), 0)
    assert torch.equal(x, before)
    assert x._version == version
