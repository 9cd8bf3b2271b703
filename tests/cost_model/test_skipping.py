"""Skipping arrays against simulations, gating and skipping by hand, and the dense arrays' cycle formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxsparse.cost_model import Contraction, cartesian_cycles, imbalance_factor, skipping_cycles, split_macs
from fxsparse.cost_model.spatial import channel_parallel_cycles, row_stationary_cycles
from fxsparse.errors import CostError


def test_dense_skipping_takes_the_macs_over_the_elements() -> None:
    assert skipping_cycles(macs=10_000, density=1.0, elements=10, chunk=64) == pytest.approx(1000)
    assert skipping_cycles(macs=10_001, density=1.0, elements=10, chunk=64) == pytest.approx(1001)


def test_skipping_pays_its_imbalance() -> None:
    found = skipping_cycles(macs=256 * 64 * 50, density=0.1, elements=256, chunk=64)
    assert found == pytest.approx(50 * 64 * 0.1 * imbalance_factor(candidates=64, density=0.1, elements=256))


def test_skipping_is_within_one_percent_of_a_simulation() -> None:
    rounds, elements, chunk, density = 400, 128, 32, 0.2
    kept = np.random.default_rng(4).random((rounds, elements, chunk)) < density
    simulated = kept.sum(axis=2).max(axis=1).sum()
    assert skipping_cycles(macs=rounds * elements * chunk, density=density, elements=elements, chunk=chunk) == pytest.approx(
        simulated, rel=0.01
    )


def test_a_lookahead_caps_the_gain() -> None:
    assert skipping_cycles(macs=64_000, density=0.0, elements=10, chunk=64, most_speedup=3) == pytest.approx(6400 / 3)


@given(macs=st.integers(1, 10**7), low=st.floats(0, 1), high=st.floats(0, 1), chunk=st.integers(1, 512))
def test_more_zeros_never_take_longer(macs: int, low: float, high: float, chunk: int) -> None:
    low, high = sorted((low, high))
    sparse, dense = (skipping_cycles(macs=macs, density=d, elements=64, chunk=chunk) for d in (low, high))
    assert sparse <= dense * (1 + 1e-9) + 1e-9
    assert dense <= -(-macs // 64) + 1


def test_dense_cartesian_products_by_hand() -> None:
    # 3 channels of 10 activations and 9 weights, 4 x 4 lanes: ceil(10/4) x ceil(9/4) = 9 steps a channel, twice
    found = cartesian_cycles(
        channels=3,
        activations=10,
        weights=9,
        density_activation=1.0,
        density_weight=1.0,
        elements=64,
        lanes_activation=4,
        lanes_weight=4,
        weight_groups=2,
    )
    assert found == pytest.approx(54)


def test_cartesian_products_are_within_one_percent_of_a_simulation() -> None:
    draw = np.random.default_rng(5)
    channels, activations, weights, elements = 64, 49, 72, 64
    totals = []
    for _ in range(60):
        weight_steps = -(-draw.binomial(weights, 0.3, size=channels) // 4)
        activation_steps = -(-draw.binomial(activations, 0.4, size=(elements, channels)) // 4)
        totals.append((activation_steps * weight_steps).sum(axis=1).max())
    found = cartesian_cycles(
        channels=channels,
        activations=activations,
        weights=weights,
        density_activation=0.4,
        density_weight=0.3,
        elements=elements,
        lanes_activation=4,
        lanes_weight=4,
    )
    assert found == pytest.approx(np.mean(totals), rel=0.01)


def test_gating_saves_energy_and_skipping_time() -> None:
    found = split_macs(1000, densities={"weight": 0.5, "activation": 0.2}, skip=["weight"], gate=["activation"])
    assert (found.computed, found.gated, found.skipped, found.timed) == pytest.approx((100, 400, 500, 500))


@given(weight=st.floats(0, 1), activation=st.floats(0, 1), skip=st.sets(st.sampled_from(["weight", "activation"])))
def test_actions_sum_to_the_candidates(weight: float, activation: float, skip: set[str]) -> None:
    found = split_macs(777, densities={"weight": weight, "activation": activation}, skip=skip, gate=["weight", "activation"])
    assert found.computed + found.gated + found.skipped == pytest.approx(777)
    assert found.computed == pytest.approx(777 * weight * activation)


def test_hardware_that_sees_no_zeros_computes_everything() -> None:
    found = split_macs(10, densities={"weight": 0.1}, skip=(), gate=())
    assert (found.computed, found.gated, found.skipped) == (10, 0, 0)


LAYER = Contraction.conv(batch=2, in_channels=70, out_channels=40, kernel=(3, 3), padding=(1, 1), input_size=(28, 28))


@pytest.mark.parametrize(
    ("which", "cycles"),
    [
        ("forward", 9 * 2 * 784 * 2 * 2),  # taps x positions x ceil(70/64) x ceil(40/32)
        ("grad_input", 9 * 2 * 784 * 1 * 3),  # ceil(40/64) x ceil(70/32)
        ("grad_weight", 9 * 70 * 25 * 2),  # ceil(1568/64) positions, ceil(40/32)
    ],
)
def test_channel_parallel_by_hand(which: str, cycles: int) -> None:
    assert channel_parallel_cycles(LAYER, which, rows=64, columns=32) == cycles  # type: ignore[arg-type]


def test_channel_parallel_takes_groups_one_after_another() -> None:
    depthwise = Contraction.conv(batch=1, in_channels=32, out_channels=32, kernel=(3, 3), input_size=(10, 10), groups=32)
    assert channel_parallel_cycles(depthwise, "forward", rows=64, columns=32) == 32 * 9 * 64


def test_row_stationary_by_hand() -> None:
    # 3 x 28 rows fold onto 12 x 14 elements: 4 sets of 3 rows, all busy
    assert row_stationary_cycles(LAYER, "forward", rows=12, columns=14) == -(-LAYER.forward_macs // 168)
    # an 11-row kernel leaves one row of elements idle
    wide = Contraction.conv(batch=1, in_channels=3, out_channels=4, kernel=(11, 11), stride=(4, 4), input_size=(227, 227))
    assert row_stationary_cycles(wide, "forward", rows=12, columns=14) == -(-wide.forward_macs * 4 // (11 * 55))


@given(
    kernel=st.integers(1, 30),
    extra=st.integers(0, 60),
    rows=st.integers(1, 16),
    columns=st.integers(1, 16),
    which=st.sampled_from(["forward", "grad_input", "grad_weight"]),
)
def test_no_dense_array_beats_its_multipliers(kernel: int, extra: int, rows: int, columns: int, which: str) -> None:
    layer = Contraction.conv(batch=1, in_channels=3, out_channels=5, kernel=(kernel, 1), input_size=(kernel + extra, 4))
    for cycles in (row_stationary_cycles, channel_parallel_cycles):
        assert cycles(layer, which, rows=rows, columns=columns) * rows * columns >= layer.forward_macs  # type: ignore[arg-type]


@pytest.mark.parametrize(("changes", "message"), [({"density": 1.2}, r"density is 1\.2"), ({"chunk": 0}, "chunk is 0")])
def test_bad_arguments_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(CostError, match=message):
        skipping_cycles(**({"macs": 10, "density": 0.5, "elements": 4, "chunk": 8} | changes))  # type: ignore[arg-type]
