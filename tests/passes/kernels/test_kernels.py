"""Native kernels against the reference in PyTorch: the same codes bit for bit, the same gradients but for the rounding of sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxsparse as fxs
import fxsparse.passes.ops
from fxsparse.passes.kernels import groups as grouped
from fxsparse.passes.kernels import norm
from fxsparse.passes.kernels.library import FILE, Library, library
from fxsparse.passes.ops.codes import channels as rows
from fxsparse.passes.ops.codes import groups
from fxsparse.passes.ops.codes.groups import Groups, Rounding
from fxsparse.passes.ops.normalise import ACTIVATIONS, decode_norm, packed_size

pytestmark = pytest.mark.skipif(library() is None, reason="the native kernels were not built")

ops = torch.ops.fxsparse
WIDTHS = st.sampled_from([1, 2, 4, 8])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
SEEDS = st.integers(0, 10_000)
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 3e38, -3e38]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sprinkled(x: Tensor, special: list[float], seed: int) -> Tensor:
    """The tensor with these values at random places."""
    flat = x.reshape(-1)
    for value in special if flat.numel() else []:
        flat[int(torch.randint(flat.numel(), (), generator=generator(seed)))] = value
        seed += 1
    return flat.view(x.shape)


def same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.equal(found.nan_to_num(nan=12345.0), expected.nan_to_num(nan=12345.0))


# Groups


@settings(max_examples=400, deadline=None)
@given(
    st.integers(1, 3000), st.sampled_from([8, 16, 24, 40, 64, 256, 1024, 4096]), WIDTHS, DTYPES, SEEDS, st.booleans(),
    st.sampled_from(["positive", "nearest", "stochastic"]), st.lists(st.sampled_from(SPECIAL), max_size=2),
)  # fmt: skip
def test_groups(count: int, size: int, bits: int, dtype: torch.dtype, seed: int, of_square: bool, kind: str, special: list[float]) -> None:
    x = sprinkled(torch.randn(count, generator=generator(seed)).to(dtype), special, seed)
    x = x.clamp(min=0) if kind == "positive" else x
    rounding = Rounding(seed, 7) if kind == "stochastic" else Rounding()
    value = torch.square if of_square else None
    code, expected = (groups.encode(x, size, bits, kind == "positive", rounding, value, reference) for reference in (False, True))
    assert same(code[1], expected[1])
    assert torch.equal(code[0], expected[0])
    decoded = [torch.full_like(x, 777) for _ in range(2)]
    for reference, out in enumerate(decoded):
        groups.decode(*code, count, size, bits, kind == "positive", out, bool(reference))
    assert same(*decoded)
    if kind == "positive":
        grad, passed = torch.randn(count, generator=generator(seed + 1)).to(dtype), [torch.full_like(x, 777) for _ in range(2)]
        for reference, out in enumerate(passed):
            groups.where_positive(*code, size, bits, grad, out, bool(reference))
        assert same(*passed)


def test_noise_runs_through_blocks_of_many_groups() -> None:
    x = torch.randn(3 * (1 << 17) + 1000, generator=generator(0))
    for size in (256, 72, 1 << 16):
        code, expected = (groups.encode(x, size, 2, False, Rounding(3, 5), None, reference) for reference in (False, True))
        assert torch.equal(code[0], expected[0])


# Norms


@st.composite
def norms(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 19)), *draw(st.lists(st.integers(1, 40), max_size=2))
    seed = draw(SEEDS)
    x = torch.randn(shape, generator=generator(seed)) * 2 + 0.3
    w, b = (torch.randn(shape[1], generator=generator(seed + index)) for index in (1, 2))
    w = sprinkled(w, draw(st.lists(st.sampled_from([0.0, 1e-35, 0.01, -0.01]), max_size=3)), seed)
    b = sprinkled(b, draw(st.lists(st.sampled_from([5.0, -5.0, 0.0]), max_size=3)), seed + 1)
    x = sprinkled(x, draw(st.lists(st.sampled_from(SPECIAL), max_size=1)), seed)
    return x, w, b


@settings(max_examples=400, deadline=None)
@given(norms(), st.sampled_from(sorted(ACTIVATIONS)), WIDTHS, DTYPES, st.sampled_from(sorted(LAYOUTS)), st.booleans())
def test_norms(given_: tuple[Tensor, Tensor, Tensor], activation: str, bits: int, dtype: torch.dtype, layout: str, training: bool) -> None:
    x, w, b = (item.to(dtype) for item in given_)
    x = LAYOUTS[layout](x)
    training = training and x.numel() > x.shape[1]
    running = torch.full((2, x.shape[1]), 0.5).to(dtype)
    arguments = (x, w, b, *running, training, 0.1, 1e-5, activation, bits, True, False)
    found, expected = (ops.blpa_norm(*arguments, reference) for reference in (False, True))
    for index in (0, 2, 4, 5):
        assert same(found[index], expected[index])
    assert found[0].stride() == expected[0].stride()
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[3], expected[3])

    decoded = [torch.empty_like(found[0]) for _ in range(2)]
    for reference, out in enumerate(decoded):
        decode_norm(found[1], found[2], activation, bits, out, bool(reference))
    assert same(*decoded)

    grad = torch.randn(x.shape, generator=generator(4)).to(dtype)
    settled = (*found[1:4], found[0].stride(), training, activation, bits, False)
    exact = ops.blpa_norm_backward(grad.float(), *settled, True)
    results = [ops.blpa_norm_backward(grad, *settled, False)]
    rough = {"rtol": 3e-2, "atol": 1e-1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    for gx, gw, gb in results:
        torch.testing.assert_close(gw, exact[1], equal_nan=True, **rough)
        torch.testing.assert_close(gb, exact[2], equal_nan=True, **rough)
        gain = (found[2][rows.GAIN].abs().nan_to_num() + 1).view(1, -1, *[1] * (x.dim() - 2))
        torch.testing.assert_close(gx.float() / gain, exact[0] / gain, equal_nan=True, **rough)


@pytest.mark.parametrize("level", ["portable", "avx2"])
@pytest.mark.parametrize("shape", [(3, 10, 7, 9), (64, 33)], ids=str)
def test_other_levels_of_instructions_make_the_same_codes(level: str, shape: tuple[int, ...]) -> None:
    best = library()
    assert best is not None
    try:
        other = Library(FILE, level)
    except AttributeError:
        pytest.skip(f"this build has no {level}")
    if level == "avx2" and best.level == "portable":
        pytest.skip("this machine has no AVX2")
    x, w, b = (torch.randn(size, generator=generator(0)) for size in (shape, shape[1], shape[1]))
    mean, grad = torch.zeros(shape[1]), torch.randn(shape, generator=generator(1))
    made = []
    for kernels in (best, other):
        z, grid = torch.nn.functional.batch_norm(x, mean, mean + 1, w, b), rows.make_grid(w, b, shape[1], 4, True, x.device)
        packed = torch.empty(packed_size(x, 4), dtype=torch.uint8)
        norm.encode(kernels, x, z, mean, mean + 1, grid, True, packed)
        stats, out = rows.statistics(grid, w, mean + 1), torch.empty_like(x)
        norm.decode(kernels, packed, stats, "relu", 4, out)
        group_stats, codes = torch.empty(2, -(-x.numel() // 64)), torch.empty(Groups(x.numel(), 64, 4).packed_bytes, dtype=torch.uint8)
        grouped.encode(kernels, x.view(-1), 64, 4, False, None, 1, 8, group_stats, codes)
        made.append([z, packed, out, group_stats, codes, norm.backward(kernels, grad, packed, stats, packed, True, "relu", 4)])
    for found, expected in zip(made[1][:-1], made[0][:-1], strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(made[1][-1], made[0][-1], strict=True):
        torch.testing.assert_close(found, expected)


# Which kernels run


def test_the_reference_backend_gives_the_same_training_step() -> None:
    """BLPA with and without native kernels, which its operators are told of."""
    generator_ = generator(0)
    first = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    second = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
    net = nn.Sequential(*first, *second, nn.Conv2d(8, 4, 3))
    x = torch.randn(4, 3, 16, 16, generator=generator_)
    found = {}
    for backend in ("auto", "reference"):
        compiled = fxs.compile(net, fxs.BLPA(bits=4), (x,), backend=backend)
        nodes = [node for node in compiled.graphs[""].graph.nodes if node.target is ops.blpa_norm.default]
        assert {node.args[-1] for node in nodes} == {backend == "reference"}
        assert ("by native kernels" if backend == "auto" else "by PyTorch, as asked for") in str(compiled.report)
        compiled(x).square().mean().backward()
        found[backend] = [parameter.grad for parameter in compiled.parameters()]
    assert len(found["auto"]) == 10
    for native, reference in zip(found["auto"], found["reference"], strict=True):
        torch.testing.assert_close(native, reference, rtol=1e-4, atol=1e-6)


def test_a_file_that_is_no_library_is_reported_and_left(tmp_path: Path) -> None:
    (tmp_path / "native.so").write_bytes(b"no library")
    with pytest.raises(OSError, match=r"native\.so"):
        Library(tmp_path / "native.so")
    loaded = library.__wrapped__
    with pytest.warns(RuntimeWarning, match="cannot be used .* PyTorch computes instead"):
        assert loaded(tmp_path / "native.so") is None
    assert loaded(tmp_path / "none.so") is None
