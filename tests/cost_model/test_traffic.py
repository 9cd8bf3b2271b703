"""Tiled traffic against a search over every tiling and order, a walk over tiles, and its bounds."""

from __future__ import annotations

import itertools
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxsparse.cost_model import PASSES, Gemm, TiledProduct, best_traffic, compulsory_bytes
from fxsparse.cost_model.traffic import ORDERS
from fxsparse.errors import CostError

from .networks import bottleneck_resnet


def product_of(m: int, k: int, n: int, *, groups: int = 1, bits: int = 8, partial: int = 16) -> TiledProduct:
    """A product with equal words for all operands."""
    return TiledProduct(gemm=Gemm(m=m, k=k, n=n, groups=groups), left_bits=bits, right_bits=bits, result_bits=bits, partial_bits=partial)


def walked_bits(product: TiledProduct, tile: tuple[int, int, int], order: str) -> float:
    """Bits moved by walking over all tiles in order, one tile of each operand being held at a time."""
    gemm = product.gemm
    sizes = dict(zip("mkn", (gemm.m, gemm.k, gemm.n), strict=True))
    steps = dict(zip("mkn", tile, strict=True))
    counts = {axis: ceil(sizes[axis] / steps[axis]) for axis in "mkn"}
    held: dict[str, tuple[int, ...]] = {}
    visited: set[tuple[int, ...]] = set()
    bits = 0.0
    for place in itertools.product(*(range(counts[axis]) for axis in order)):
        at = dict(zip(order, place, strict=True))
        extent = {axis: min(steps[axis], sizes[axis] - at[axis] * steps[axis]) for axis in "mkn"}
        for name, axes, word in (("left", "mk", product.left_bits), ("right", "kn", product.right_bits)):
            key = tuple(at[axis] for axis in axes)
            if held.get(name) != key:
                bits += extent[axes[0]] * extent[axes[1]] * word
                held[name] = key
        key = (at["m"], at["n"])
        if held.get("result") != key:
            area = extent["m"] * extent["n"]
            if key in visited:  # read back, and written out once more in the end
                bits += 2 * area * product.partial_bits
            else:
                bits += area * product.result_bits
            visited.add(key)
            held["result"] = key
    return bits


def footprint(product: TiledProduct, tile: tuple[int, int, int]) -> float:
    """Bits that one tile of each operand takes."""
    tm, tk, tn = tile
    held = max(product.result_bits, product.partial_bits)
    return tm * tk * product.left_bits + tk * tn * product.right_bits + tm * tn * held


SMALL = st.integers(1, 7)
BUFFERS = st.sampled_from([40, 100, 300, 1000])


@settings(max_examples=40)
@given(m=SMALL, k=SMALL, n=SMALL, buffer_bits=BUFFERS, bits=st.sampled_from([1, 8]))
def test_no_tiling_or_order_moves_less(m: int, k: int, n: int, buffer_bits: int, bits: int) -> None:
    product = product_of(m, k, n, bits=bits)
    tiles = itertools.product(range(1, m + 1), range(1, k + 1), range(1, n + 1))
    fitting = [tile for tile in tiles if footprint(product, tile) <= buffer_bits]
    least = min(walked_bits(product, tile, order) for tile in fitting for order in ORDERS)
    assert best_traffic([product], buffer_bits=buffer_bits)[0].total_bytes * 8 == pytest.approx(least)


@given(m=SMALL, k=SMALL, n=SMALL, buffer_bits=BUFFERS)
def test_the_reported_tiling_moves_what_is_reported_and_fits(m: int, k: int, n: int, buffer_bits: int) -> None:
    product = product_of(m, k, n)
    found = best_traffic([product], buffer_bits=buffer_bits)[0]
    assert walked_bits(product, found.tile, found.order) == pytest.approx(found.total_bytes * 8)
    assert footprint(product, found.tile) <= buffer_bits


@given(m=st.integers(1, 5000), k=st.integers(1, 5000), n=st.integers(1, 5000), low=st.integers(32, 10**6), high=st.integers(32, 10**6))
def test_a_larger_buffer_moves_less_and_no_buffer_beats_once_each(m: int, k: int, n: int, low: int, high: int) -> None:
    low, high = sorted((low, high))
    product = product_of(m, k, n)
    small, large = (best_traffic([product], buffer_bits=bits)[0].total_bytes for bits in (low, high))
    assert compulsory_bytes(product) <= large * (1 + 1e-9)
    assert large <= small * 1.1  # the tile sizes tried depend on the product only, not all of them


@given(m=st.integers(1, 300), k=st.integers(1, 300), n=st.integers(1, 300), density=st.floats(0.01, 1))
def test_a_compressed_operand_never_moves_more(m: int, k: int, n: int, density: float) -> None:
    gemm = Gemm(m=m, k=k, n=n)
    words = {"right_bits": 16.0, "result_bits": 16.0, "partial_bits": 32.0}
    dense, sparse = (TiledProduct(gemm=gemm, left_bits=bits, **words) for bits in (16.0, 16.0 * density))
    before, after = (best_traffic([product], buffer_bits=8192)[0].total_bytes for product in (dense, sparse))
    assert after <= before * 1.02  # the found tilings differ; the bound on both is the search's grid


def test_everything_fits_and_moves_once() -> None:
    product = product_of(30, 20, 10, groups=4)
    found = best_traffic([product], buffer_bits=1e9)[0]
    assert found.total_bytes == 4 * (30 * 20 + 20 * 10 + 30 * 10) == compulsory_bytes(product)
    assert found.tile == (30, 20, 10)


def test_output_stationary_formula_where_that_order_wins() -> None:
    # A long contraction with a small result: results stay, both operands are fetched once for each strip of the other.
    product = product_of(64, 10_000, 64, partial=8)
    found = best_traffic([product], buffer_bits=8 * (32 * 32 + 2 * 32))[0]
    tm, tk, tn = found.tile
    assert found.order in ("mnk", "nmk")
    assert found.left_bytes == 64 * 10_000 * ceil(64 / tn)
    assert found.right_bytes == 64 * 10_000 * ceil(64 / tm)
    assert found.result_bytes == 64 * 64
    assert tm * tk + tk * tn + tm * tn <= 32 * 32 + 2 * 32


def test_many_products_at_once_equal_one_by_one() -> None:
    products = [product_of(3, 50, 7), product_of(900, 4, 31), product_of(1, 1, 1), product_of(64, 64, 64, groups=3)]
    together = best_traffic(products, buffer_bits=2000)
    assert together == [best_traffic([product], buffer_bits=2000)[0] for product in products]


def test_an_empty_product_moves_nothing() -> None:
    assert best_traffic([product_of(0, 5, 5)], buffer_bits=100)[0].total_bytes == 0.0
    assert best_traffic([], buffer_bits=100) == []


def test_shares_scale_the_unfolded_operand() -> None:
    whole = product_of(100, 90, 10)
    part = TiledProduct(gemm=whole.gemm, left_bits=8, right_bits=8, result_bits=8, partial_bits=16, left_share=0.25)
    found, fewer = best_traffic([whole, part], buffer_bits=1e9)
    assert fewer.left_bytes == found.left_bytes / 4


def test_a_buffer_too_small_is_refused() -> None:
    with pytest.raises(CostError, match="the buffer has 20 usable bits, but one element of each operand takes 32"):
        best_traffic([product_of(2, 2, 2)], buffer_bits=20)


def test_a_whole_network_is_searched_at_once() -> None:
    products = [product_of(g.m, g.k, g.n) for layer in bottleneck_resnet(8) for g in (layer.gemm(which) for which in PASSES)]
    found = best_traffic(products, buffer_bits=8 * 54 * 1024)
    for product, traffic in zip(products, found, strict=True):
        assert compulsory_bytes(product) <= traffic.total_bytes * (1 + 1e-9)
        assert footprint(product, traffic.tile) <= 8 * 54 * 1024
