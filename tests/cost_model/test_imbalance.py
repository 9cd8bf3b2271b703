"""The exact expected maximum against enumeration, simulation and the published examples."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxsparse.cost_model import expected_maximum, expected_maximum_binomial, expected_maximum_hypergeometric, imbalance_factor


@pytest.mark.parametrize(
    ("candidates", "density", "elements", "factor"), [(64, 0.1, 256, 2.187), (256, 0.2, 256, 1.366), (1024, 0.1, 256, 1.274)]
)
def test_reference_factors(candidates: int, density: float, elements: int, factor: float) -> None:
    assert imbalance_factor(candidates=candidates, density=density, elements=elements) == pytest.approx(factor, abs=5e-4)


@pytest.mark.parametrize(("candidates", "elements"), [(2, 2), (3, 3), (4, 2)])
def test_maximum_equals_the_enumeration(candidates: int, elements: int) -> None:
    density = 0.3
    pmf = [comb(candidates, k) * density**k * (1 - density) ** (candidates - k) for k in range(candidates + 1)]
    loads = range(candidates + 1)
    enumerated = sum(max(each) * np.prod([pmf[k] for k in each]) for each in itertools.product(loads, repeat=elements))
    assert expected_maximum_binomial(candidates=candidates, density=density, elements=elements) == pytest.approx(enumerated, rel=1e-12)


@pytest.mark.parametrize(("candidates", "density", "elements"), [(64, 0.1, 256), (256, 0.5, 64), (16, 0.01, 1024)])
def test_maximum_is_within_one_percent_of_a_simulation(candidates: int, density: float, elements: int) -> None:
    draws = np.random.default_rng(2).binomial(candidates, density, size=(4000, elements)).max(axis=1)
    found = expected_maximum_binomial(candidates=candidates, density=density, elements=elements)
    assert found == pytest.approx(draws.mean(), rel=0.01)


def test_hypergeometric_maximum_is_within_one_percent_of_a_simulation() -> None:
    draws = np.random.default_rng(3).hypergeometric(200, 800, 100, size=(4000, 64)).max(axis=1)
    found = expected_maximum_hypergeometric(candidates=100, size=1000, nonzeros=200, elements=64)
    assert found == pytest.approx(draws.mean(), rel=0.01)


@given(candidates=st.integers(1, 300), density=st.floats(0, 1), elements=st.integers(1, 2000))
def test_maximum_lies_between_the_mean_and_all(candidates: int, density: float, elements: int) -> None:
    found = expected_maximum_binomial(candidates=candidates, density=density, elements=elements)
    assert candidates * density * (1 - 1e-9) <= found <= candidates * (1 + 1e-9)


@given(candidates=st.integers(1, 200), density=st.floats(0, 1), elements=st.integers(1, 500))
def test_more_workers_wait_longer(candidates: int, density: float, elements: int) -> None:
    few, more = (expected_maximum_binomial(candidates=candidates, density=density, elements=e) for e in (elements, elements + 1))
    assert few <= more * (1 + 1e-9)


@given(candidates=st.integers(1, 200), low=st.floats(0, 1), high=st.floats(0, 1), elements=st.integers(1, 500))
def test_more_zeros_never_take_longer(candidates: int, low: float, high: float, elements: int) -> None:
    low, high = sorted((low, high))
    sparse, dense = (expected_maximum_binomial(candidates=candidates, density=d, elements=elements) for d in (low, high))
    assert sparse <= dense * (1 + 1e-9) + 1e-12


def test_limits() -> None:
    assert imbalance_factor(candidates=64, density=1.0, elements=256) == pytest.approx(1.0)
    assert imbalance_factor(candidates=64, density=0.0, elements=256) == 1.0
    assert imbalance_factor(candidates=64, density=0.3, elements=1) == pytest.approx(1.0)
    assert expected_maximum(np.array([0.5, 0.5]), 2) == pytest.approx(0.75)
