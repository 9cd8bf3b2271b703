"""Distributions of non-zeros in tiles, against exact fractions, enumeration and real masks."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxsparse.cost_model import MeasuredDensity, NMDensity, UniformDensity
from fxsparse.cost_model.density import binomial_pmf, hypergeometric_pmf
from fxsparse.errors import CostError


@given(size=st.integers(1, 60), data=st.data())
def test_uniform_tiles_are_hypergeometric(size: int, data: st.DataObject) -> None:
    nonzeros = data.draw(st.integers(0, size))
    tile = data.draw(st.integers(1, size))
    spread = UniformDensity(size=size, nonzeros=nonzeros)
    exact = [comb(nonzeros, k) * comb(size - nonzeros, tile - k) / comb(size, tile) for k in range(tile + 1)]
    np.testing.assert_allclose(spread.tile_pmf(tile), exact, rtol=1e-9, atol=1e-14)
    assert spread.empty_tile_probability(tile) == pytest.approx(comb(size - nonzeros, tile) / comb(size, tile), rel=1e-9)


def test_empty_tile_by_hand() -> None:
    # 3 of 10 kept, tiles of 2: 7/10 x 6/9
    assert UniformDensity(size=10, nonzeros=3).empty_tile_probability(2) == pytest.approx(42 / 90)


def test_a_large_tensor_keeps_its_digits() -> None:
    spread = UniformDensity.of(size=100_000_000, density=0.1)
    assert spread.empty_tile_probability(16) == pytest.approx(0.9**16, rel=1e-5)
    assert spread.expected_nonzeros(64) == pytest.approx(6.4, rel=1e-9)


@pytest.mark.parametrize(("density", "probability"), [(0.0, 1.0), (1.0, 0.0)])
def test_limits_of_the_empty_tile(density: float, probability: float) -> None:
    assert UniformDensity.of(size=64, density=density).empty_tile_probability(8) == probability


@given(size=st.integers(8, 200), low=st.floats(0, 1), high=st.floats(0, 1))
def test_denser_tensors_have_fewer_empty_tiles(size: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    sparse, dense = (UniformDensity.of(size=size, density=d).empty_tile_probability(8) for d in (low, high))
    assert sparse >= dense - 1e-12


@pytest.mark.parametrize(("kept", "group", "tile"), [(2, 4, 4), (2, 4, 6), (1, 4, 3), (2, 4, 9), (0, 4, 5), (4, 4, 5)])
def test_nm_tiles_equal_the_enumeration(kept: int, group: int, tile: int) -> None:
    groups = -(-tile // group)
    patterns = [p for p in itertools.product([0, 1], repeat=group) if sum(p) == kept]
    counts = [sum(sum(choice, start=())[:tile]) for choice in itertools.product(patterns, repeat=groups)]
    enumerated = np.bincount(counts, minlength=tile + 1) / len(counts)
    np.testing.assert_allclose(NMDensity(kept=kept, group=group).tile_pmf(tile), enumerated, atol=1e-12)


def test_whole_nm_groups_are_never_empty() -> None:
    assert NMDensity(kept=2, group=4).empty_tile_probability(4) == 0.0
    assert NMDensity(kept=2, group=4).density == 0.5


def test_a_measured_mask_is_counted() -> None:
    spread = MeasuredDensity([[1, 0, 0, 0], [0, 0, 3, -1]])
    assert spread.density == 0.375
    assert spread.tile_pmf(2).tolist() == [0.5, 0.25, 0.25]
    assert spread.empty_tile_probability(4) == 0.0
    assert spread.expected_nonzeros(4) == 1.5


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 60))
def test_a_measured_mask_equals_a_loop(mask: list[bool], tile: int) -> None:
    tile = min(tile, len(mask))
    counts = [sum(mask[start : start + tile]) for start in range(0, len(mask), tile)]
    expected = [counts.count(k) / len(counts) for k in range(tile + 1)]
    np.testing.assert_allclose(MeasuredDensity(mask).tile_pmf(tile), expected)


def test_the_uniform_model_is_near_a_random_mask() -> None:
    mask = np.random.default_rng(0).permutation(np.repeat([1, 0], [20_000, 180_000]))
    measured, uniform = MeasuredDensity(mask), UniformDensity(size=200_000, nonzeros=20_000)
    assert measured.empty_tile_probability(8) == pytest.approx(uniform.empty_tile_probability(8), rel=0.01)


@given(trials=st.integers(1, 80), density=st.floats(0, 1))
def test_binomial_probabilities_are_exact(trials: int, density: float) -> None:
    exact = [comb(trials, k) * density**k * (1 - density) ** (trials - k) for k in range(trials + 1)]
    np.testing.assert_allclose(binomial_pmf(trials=trials, density=density), exact, rtol=1e-8, atol=1e-13)


def test_an_empty_draw_is_certain() -> None:
    assert hypergeometric_pmf(size=4, nonzeros=2, tile=0).tolist() == [1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformDensity(size=4, nonzeros=5), "nonzeros is 5; expected at most size = 4"),
        (lambda: UniformDensity.of(size=4, density=1.5), r"density is 1\.5"),
        (lambda: NMDensity(kept=5, group=4), "keeps 5 of 4"),
        (lambda: MeasuredDensity([]), "mask is empty"),
        (lambda: UniformDensity(size=4, nonzeros=1).tile_pmf(5), "tile is 5; expected at most the tensor's 4"),
    ],
)
def test_bad_densities_are_refused(make: object, message: str) -> None:
    with pytest.raises(CostError, match=message):
        make()  # type: ignore[operator]
