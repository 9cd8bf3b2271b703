"""Bits of sparse formats against encodings that are really written, and against random masks."""

from __future__ import annotations

from math import ceil, log2, prod

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fxsparse.cost_model import COO, CSR, FORMATS, NM, Bitmask, Dense, Format, Packed, RunLength, cheapest_format, make_format
from fxsparse.errors import CostError

from .networks import bottleneck_resnet, erk_densities

MASKS = arrays(np.int8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1))
BITS = 8


def width(values: int) -> int:
    """Digits that a binary number below `values` needs, 0 for a single value."""
    return len(f"{values - 1:b}") if values > 1 else 0


def encoded(kind: str, mask: npt.NDArray[np.int8]) -> str:
    """The tensor written as a string of bits, values as eight ones."""
    value = "1" * BITS
    rows, columns = mask.shape
    if kind == "dense":
        return "".join(value if kept else "0" * BITS for kept in mask.ravel())
    if kind == "bitmask":
        return "".join("1" if kept else "0" for kept in mask.ravel()) + value * int(mask.sum())
    if kind == "coo":
        sizes = width(rows), width(columns)
        places = np.argwhere(mask)
        return "".join(value + "".join(f"{i:0{w}b}" for i, w in zip(place, sizes, strict=True) if w) for place in places)
    if kind == "csr":
        starts = [0, *np.cumsum(mask.sum(axis=1)).tolist()]
        digits = width(int(mask.sum()) + 1)
        text = "".join(f"{start:0{digits}b}" if digits else "" for start in starts)
        return text + "".join(value + (f"{column:0{width(columns)}b}" if width(columns) else "") for column in np.argwhere(mask)[:, 1])
    text, zeros = "", 0  # rle: two bits of run
    last = np.flatnonzero(mask)
    for kept in mask.ravel()[: last[-1] + 1] if last.size else []:
        if kept or zeros == 3:
            text += f"{zeros:02b}" + (value if kept else "0" * BITS)
            zeros = 0
        else:
            zeros += 1
    return text


KINDS = [Dense(), Bitmask(), CSR(), COO(), RunLength(run_bits=2)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@given(mask=MASKS)
def test_exact_bits_equal_an_encoding(kind: Format, mask: npt.NDArray[np.int8]) -> None:
    assert kind.exact_bits(mask, element_bits=BITS) == len(encoded(kind.name, mask))


@pytest.mark.parametrize("kind", [*KINDS, RunLength(run_bits=4)], ids=lambda kind: repr(kind))
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
def test_expected_bits_are_within_one_percent_of_random_masks(kind: Format, density: float) -> None:
    draw = np.random.default_rng(1)
    shape = (128, 512)
    found = np.mean([kind.exact_bits(draw.random(shape) < density, element_bits=16) for _ in range(6)])
    assert kind.expected_bits(shape=shape, density=density, element_bits=16) == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        (Dense(), 64 * 8),
        (Bitmask(), 64 * (0.25 * 8 + 1)),
        (CSR(), 16 * (8 + 4) + 5 * 5),
        (COO(), 16 * (8 + 2 + 4)),
        (RunLength(run_bits=2), 16 / (1 - 0.75**4) * 10),
        (NM(2, 4), 32 * (8 + 2)),
        (Packed(4), 64 * 4),
        (Packed(2, 24, 32), 64 * 2 + 3 * 32),
    ],
    ids=lambda value: repr(value),
)
def test_formulas_by_hand(kind: Format, bits: float) -> None:
    assert kind.expected_bits(shape=(4, 16), density=0.25, element_bits=8) == pytest.approx(bits)


def test_two_of_four_halves_take_nine_sixteenths() -> None:
    assert NM(2, 4).expected_bits(shape=(64, 64), density=0.5, element_bits=16) == 64 * 64 * 9


@given(shape=st.tuples(st.integers(1, 64), st.integers(1, 64)), low=st.floats(0, 1), high=st.floats(0, 1))
def test_more_zeros_never_take_more_bits(shape: tuple[int, int], low: float, high: float) -> None:
    low, high = sorted((low, high))
    for kind in KINDS:
        bits = [kind.expected_bits(shape=shape, density=d, element_bits=16) for d in (low, high)]
        assert bits[0] <= bits[1] * (1 + 1e-9)


@given(shape=st.tuples(st.integers(1, 64), st.integers(1, 64)), density=st.floats(0, 1))
def test_the_cheapest_format_is_not_beaten(shape: tuple[int, int], density: float) -> None:
    best = cheapest_format(shape=shape, density=density, element_bits=16).expected_bits(shape=shape, density=density, element_bits=16)
    assert all(best <= kind.expected_bits(shape=shape, density=density, element_bits=16) for kind in KINDS)
    assert best <= prod(shape) * 16


def test_limits() -> None:
    for kind in KINDS[1:]:
        empty = kind.expected_bits(shape=(8, 8), density=0.0, element_bits=16)
        assert empty == {"bitmask": 64}.get(kind.name, 0)
    assert RunLength(4).expected_bits(shape=(8, 8), density=1.0, element_bits=16) == 64 * 20
    assert cheapest_format(shape=(8, 8), density=1.0, element_bits=16) == Dense()


def test_index_widths_are_rounded_up_logarithms() -> None:
    for columns in range(2, 70):
        bits = COO().expected_bits(shape=(1, columns), density=1.0, element_bits=0)
        assert bits == columns * ceil(log2(columns))


@pytest.mark.parametrize(("sparsity", "megabytes"), [(0.0, 102.122), (0.8, 23.683), (0.9, 13.499)])
def test_model_sizes_of_resnet50_with_erk(sparsity: float, megabytes: float) -> None:
    # Kept values in fp32, one bit a weight of mask where a layer is sparse, and the biases of 53 norms and the classifier.
    layers = bottleneck_resnet()
    densities = erk_densities(layers, sparsity) if sparsity else [1.0] * len(layers)
    biases = sum(layer.out_channels for layer in layers) * 32
    bits = sum(
        (Bitmask() if density < 1 else Dense()).expected_bits(shape=(layer.weight_elements,), density=density, element_bits=32)
        for layer, density in zip(layers, densities, strict=True)
    )
    assert (bits + biases) / 8e6 == pytest.approx(megabytes, abs=1e-3)


def test_formats_are_made_by_name() -> None:
    assert make_format("rle", run_bits=5) == RunLength(5)
    assert set(FORMATS) == {"dense", "bitmask", "csr", "coo", "rle", "nm", "packed"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_format("bitmap"), "format is 'bitmap'.*did you mean 'bitmask'"),
        (lambda: make_format("rle", bits=3), "'rle' does not take the options {'bits': 3}"),
        (lambda: NM(3, 2), "keeps 3 of 2"),
        (lambda: RunLength(0), "run_bits is 0"),
        (lambda: NM(2, 4).expected_bits(shape=(4, 4), density=0.6, element_bits=8), "does not fit the 2:4 format"),
        (lambda: Bitmask().expected_bits(shape=(4, 4), density=2, element_bits=8), "density is 2"),
    ],
)
def test_bad_formats_are_refused(make: object, message: str) -> None:
    with pytest.raises(CostError, match=message):
        make()  # type: ignore[operator]
