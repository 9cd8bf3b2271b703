"""How a sparsity is shared among layers: exact budgets, saturation, and the densities that RigL's authors' definition gives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxsparse.passes.distributions import erdos_renyi, kept, spread, uniform

SHAPES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 7)),
        st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 7), st.integers(1, 7)),
    ),
    min_size=1,
    max_size=8,
)
SPARSITIES = st.floats(0.0, 0.999)


@pytest.mark.parametrize(
    ("density", "count", "expected"),
    [
        (0.3, 10, 3),
        (1 - 0.7, 10, 3),
        (0.1, 1_000_000, 100_000),
        (1 - 0.9, 10, 1),
        (0.25, 10, 3),
        (1.0, 7, 7),
        (0.0, 7, 0),
        (1e-9, 7, 1),
        (1.0, 0, 0),
    ],
)
def test_kept_is_the_ceiling_of_what_was_written(density: float, count: int, expected: int) -> None:
    assert kept(density, count) == expected


@given(SHAPES, SPARSITIES)
def test_uniform_keeps_the_same_of_each_layer(shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
    for name, count in uniform(shapes, sparsity).items():
        size = math.prod(shapes[name])
        assert 0 <= count - (1 - sparsity) * size + 1e-6 < 1.0 + 1e-5 or count == 1


@pytest.mark.parametrize("kernel", [False, True])
@given(shapes=SHAPES, sparsity=SPARSITIES)
def test_the_budget_is_met_to_the_weight(kernel: bool, shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
    counts = erdos_renyi(shapes, sparsity, kernel=kernel)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(counts.values()) == kept(1 - sparsity, sum(sizes.values()))
    assert all(0 <= counts[name] <= sizes[name] for name in sizes)


@pytest.mark.parametrize("kernel", [False, True])
@given(shapes=SHAPES, sparsity=SPARSITIES)
def test_densities_are_in_proportion_or_saturated(kernel: bool, shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
    """One eps explains every layer that is not dense, to within the rounding of one weight."""
    counts = erdos_renyi(shapes, sparsity, kernel=kernel)
    raw = {name: sum(s if kernel else s[:2]) / math.prod(s if kernel else s[:2]) for name, s in shapes.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    open_ones = [name for name in shapes if counts[name] < sizes[name]]
    low = max(((counts[name] - 1) / (raw[name] * sizes[name]) for name in open_ones), default=0.0)
    high = min(((counts[name] + 1 + (counts[name] == 0)) / (raw[name] * sizes[name]) for name in open_ones), default=math.inf)
    assert low <= high + 1e-9
    for name in shapes.keys() - set(open_ones):
        assert high * raw[name] * sizes[name] >= sizes[name] - 1 - 1e-6


@given(SHAPES, st.floats(0.0, 0.98), st.floats(0.001, 0.5))
def test_more_sparsity_keeps_no_more_of_any_layer(shapes: dict[str, tuple[int, ...]], sparsity: float, more: float) -> None:
    few = erdos_renyi(shapes, min(0.999, sparsity + more), kernel=True)
    many = erdos_renyi(shapes, sparsity, kernel=True)
    assert all(few[name] <= many[name] + 1 for name in shapes)


def test_a_saturated_layer_is_dense_and_its_rest_goes_to_the_others() -> None:
    """A small layer whose share would be more than it has, by hand: raw 3/2 and 40/400, 402 weights, half of them kept."""
    counts = erdos_renyi({"small": (1, 2), "large": (20, 20)}, 0.5, kernel=False)
    assert counts == {"small": 2, "large": 199}


def test_saturation_is_one_level_at_a_time() -> None:
    """After the densest layer is made dense, the one that seemed too dense as well need not be."""
    sizes = {"a": 10, "b": 10, "c": 100}
    counts = spread({"a": 10.0, "b": 2.0, "c": 1.0}, sizes, 60)
    assert counts["a"] == 10
    assert counts["b"] < 10
    assert sum(counts.values()) == 60
    assert counts["b"] / 10 == pytest.approx(2 * counts["c"] / 100, abs=0.1)


def test_two_spreads_of_the_same_are_the_same() -> None:
    shapes = {"x": (5, 5), "y": (5, 5), "z": (5, 5)}
    assert erdos_renyi(shapes, 0.9, kernel=True) == erdos_renyi(dict(reversed(shapes.items())), 0.9, kernel=True)


@given(SHAPES, SPARSITIES)
def test_every_layer_keeps_a_weight_if_there_are_enough(shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
    counts = erdos_renyi(shapes, sparsity, kernel=True)
    if sum(counts.values()) >= len(counts):
        assert min(counts.values()) >= 1
