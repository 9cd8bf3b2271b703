"""When masks change and by how much; in which shapes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxsparse.passes.masks.criteria import Criterion, Gradient, Magnitude, Random, criterion_of, uniform_numbers
from fxsparse.passes.masks.schedules import CosineExchange, CubicPruning
from fxsparse.passes.masks.structures import Elements, OfEvery, Slices
from fxsparse.passes.masks.update import Masked, exchange, grow_largest, keep_largest


def test_sparsity_rises_by_the_cube() -> None:
    rise = CubicPruning(initial=0.5, final=0.9, begin=200, end=1000, interval=100)
    at = {step: rise.sparsity(step) for step in range(0, 1300, 50)}
    assert {step for step, sparsity in at.items() if sparsity is not None} == set(range(200, 1000, 100))
    assert at[200] == 0.5
    assert at[600] == pytest.approx(0.9 - 0.4 * 0.5**3)
    assert at[900] == pytest.approx(0.9 - 0.4 / 8**3), "the authors stop one interval before the end"
    further = CubicPruning(initial=0.5, final=0.9, begin=200, end=1000, interval=100, to_the_end=True)
    assert further.sparsity(1000) == 0.9
    assert further.sparsity(900) == at[900]
    assert further.sparsity(1100) is None


@given(st.floats(0, 0.99), st.floats(0, 0.99), st.integers(0, 20), st.integers(1, 20), st.integers(1, 7))
def test_sparsity_only_rises_and_stays_between_its_ends(a: float, b: float, first: int, length: int, interval: int) -> None:
    low, high = sorted((a, b))
    end = (first + length) * interval
    rise = CubicPruning(initial=low, final=high, begin=first * interval, end=end, interval=interval, to_the_end=True)
    seen = [s for step in range(1, (first + length) * interval + 1) if (s := rise.sparsity(step)) is not None]
    assert seen == sorted(seen)
    assert seen[-1] == high
    assert all(low - 1e-12 <= s <= high for s in seen)


def test_the_exchanged_fraction_falls_in_half_a_cosine() -> None:
    fall = CosineExchange(start=0.3, floor=0.0, end=1000, interval=100)
    assert [step for step in range(1300) if fall.fraction(step) > 0] == list(range(100, 1000, 100))
    assert fall.fraction(500) == pytest.approx(0.15)
    assert fall.fraction(1000) == 0.0
    floored = CosineExchange(start=0.5, floor=0.005, end=1000, interval=100)
    assert floored.fraction(1000) == 0.005
    assert floored.fraction(1100) == 0.0
    assert floored.fraction(100) == pytest.approx(0.005 + 0.495 * (1 + math.cos(math.pi / 10)) / 2)
    assert floored.lasts_beyond(999)
    assert not floored.lasts_beyond(1000)


def test_units_of_structures() -> None:
    weight = torch.arange(2.0 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    kernel, filters = Slices("kernel", (2, 3)), Slices("filter", (1, 2, 3))
    assert kernel.unit((2, 3, 2, 2)) == 4
    assert filters.unit((2, 3, 2, 2)) == 12
    assert kernel.reduce(weight).flatten().tolist() == [6.0, 22.0, 38.0, 54.0, 70.0, 86.0]
    mask = kernel.expand(kernel.reduce(weight) > 40, weight)
    assert mask.shape == weight.shape
    assert mask.sum() == 12
    assert torch.equal(kernel.active(mask), kernel.reduce(weight) > 40)
    grouped = Slices("filter", (1, 3), groups=2)  # a transposed convolution (in, out / groups, k) in two groups
    weight = torch.randn(4, 3, 5)
    units = grouped.reduce(weight.abs())
    assert units.shape == (2, 1, 3, 1)
    torch.testing.assert_close(units[1, 0, 2, 0], weight[2:, 2].abs().sum())
    assert grouped.expand(units > units.median(), weight).shape == weight.shape
    assert Elements().reduce(weight) is weight


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 3, 3)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (8, 8), (1, 2)])
def test_n_of_every_m_along_the_input_axis(shape: tuple[int, ...], n: int, m: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    layouts = [weight, weight.to(memory_format=torch.channels_last)] if len(shape) == 4 else [weight]
    masks = [OfEvery(n, m).choose(form.abs()) for form in layouts]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    for index in torch.cartesian_prod(*(torch.arange(size) for i, size in enumerate(shape) if i != 1)).tolist():
        index = [index] if isinstance(index, int) else index
        lane = (index[0], slice(None), *index[1:])
        for start in range(0, shape[1], m):
            values, kept = weight[lane][start : start + m].abs(), masks[0][lane][start : start + m]
            order = sorted(range(m), key=lambda i: (-float(values[i]), i))[:n]
            assert sorted(order) == kept.nonzero().squeeze(1).tolist()


# Updates


def masked(weight: torch.Tensor, mask: torch.Tensor, gradient: torch.Tensor | None = None, structure: object = None) -> Masked:
    return Masked("w", weight, mask, structure or Elements(), gradient, None, lambda: uniform_numbers(tuple(weight.shape), 0, 1, "w"))  # type: ignore[arg-type]


def test_by_hand() -> None:
    weight, mask = torch.tensor([5.0, -1.0, 0.0, 3.0, 0.0, -2.0]), torch.tensor([True, True, False, True, False, True])
    gradient = torch.tensor([0.0, 9.0, 1.0, 0.0, -4.0, 0.0])
    exchange(masked(weight, mask, gradient), 4, 6, 0.5, Magnitude(), Gradient(), 1)
    assert mask.tolist() == [True, True, False, True, True, False], "-1 and -2 go; 9 comes back at once, and 4 comes"
    mask = torch.tensor([True, True, False, True, False, True])
    exchange(masked(weight, mask, gradient), 4, 6, 0.5, Magnitude(), Gradient(), 1, regrow=False)
    assert mask.tolist() == [True, False, True, True, True, False], "what was just dropped stays away"
    keep_largest([masked(weight, mask)], 2, Magnitude(), 1)
    assert mask.tolist() == [True, False, False, True, False, False]
    grow_largest(masked(weight, mask, gradient), 1, Gradient(), 1)
    assert mask.tolist() == [True, True, False, True, False, False]


@pytest.mark.parametrize("structure", [Elements(), Slices("kernel", (2, 3)), Slices("filter", (1, 2, 3))])
@pytest.mark.parametrize("grow", [Gradient(), Random()])
def test_an_exchange_keeps_the_count_and_whole_units(structure: Elements | Slices, grow: Criterion) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, generator=generator)
    unit = structure.unit(tuple(weight.shape))
    units = weight.numel() // unit
    mask = torch.ones_like(weight, dtype=torch.bool)
    keep_largest([masked(weight, mask, structure=structure)], units // 2, Magnitude(), 0)
    assert int(mask.sum()) == units // 2 * unit
    for step in range(1, 5):
        before = mask.clone()
        gradient = torch.randn(weight.shape, generator=generator)
        exchange(masked(weight, mask, gradient, structure), units // 2, units, 0.3, Magnitude(), grow, step)
        assert int(mask.sum()) == units // 2 * unit
        assert torch.equal(structure.expand(structure.active(mask), weight), mask)
        assert not torch.equal(mask, before) or unit == 36 or isinstance(grow, Random)


class Signed(Criterion):
    def score(self, at: object) -> torch.Tensor:
        return at.weight  # type: ignore[attr-defined,no-any-return]


class Wrong(Criterion):
    def score(self, at: object) -> torch.Tensor:
        return torch.zeros(2)


def test_a_criterion_of_ones_own() -> None:
    weight, mask = torch.tensor([5.0, -7.0, 1.0, -3.0]), torch.ones(4, dtype=torch.bool)
    keep_largest([masked(weight, mask)], 3, Signed(), 1)
    assert mask.tolist() == [True, False, True, True], "negative scores are smaller than positive ones"
    with pytest.raises(ValueError, match=r"Wrong\(\) scores 'w' by \(2,\) of torch.float32; expected .* \(4,\)"):
        keep_largest([masked(weight, mask)], 3, Wrong(), 1)
    assert criterion_of(Magnitude().name) == Magnitude()
    assert Signed().name.endswith(":Signed")


@pytest.mark.parametrize(
    ("name", "text"),
    [("size", "there is no criterion 'size'"), ("no.such:Thing", "cannot be imported"), ("collections:OrderedDict", "no subclass")],
)
def test_names_that_mean_no_criterion(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        criterion_of(name)


def test_random_numbers_depend_on_seed_step_and_site_alone() -> None:
    first = uniform_numbers((3, 4), 0, 1, "a")
    torch.manual_seed(99)
    assert torch.equal(first, uniform_numbers((3, 4), 0, 1, "a"))
    for other in ((1, 1, "a"), (0, 2, "a"), (0, 1, "b")):
        assert not torch.equal(first, uniform_numbers((3, 4), *other))
