"""Operators that keep codes: torch's own outputs to the bit, exact gradients where they are promised, unbiased ones elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from .coded_cases import APPROXIMATE, CASES, LAYOUTS, SEED, Case, Coder

OPCHECK_WARNING = "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
HALF = [torch.bfloat16, torch.float16]
CLOSE = {torch.float32: 0.03, torch.bfloat16: 0.04, torch.float16: 0.03}
FIRST = (
    "convolution", "linear after layer norm", "matmul", "mul", "group_norm", "batch_norm", "gelu", "relu", "positive_relu", "softmax",
    "attention", "max_pool", "avg_pool",
)  # fmt: skip
IN_FLOAT32 = ("attention, added",)  # its mask is


def gradients(out: Tensor, operands: list[Tensor], **options: Any) -> list[Tensor]:
    weighting = torch.linspace(-1, 1.3, out.numel()).sin().reshape(out.shape).to(out.dtype)
    return list(torch.autograd.grad(out, operands, weighting, **options))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12))


def skip_what_is_float32(name: str, dtype: torch.dtype) -> None:
    if name in IN_FLOAT32 and dtype != torch.float32:
        pytest.skip("the mask is of another dtype")


@pytest.mark.filterwarnings(OPCHECK_WARNING)
@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in HALF)])
@pytest.mark.parametrize("layout", ["contiguous", pytest.param("channels_last", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_opcheck(name: str, layout: str, dtype: torch.dtype) -> None:
    skip_what_is_float32(name, dtype)
    case = CASES[name]
    op, arguments = case.call(Coder(), *case.operands(dtype, layout))
    utils = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if "dropout" in name:
        utils.remove("test_aot_dispatch_dynamic")  # it compares two runs, which drop differently
    if name.startswith("batch_norm") and dtype != torch.float32:
        utils.remove("test_aot_dispatch_dynamic")  # torch's own kernel rounds a gradient of other strides than its input's otherwise
    tolerance = {} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.library.opcheck(op, arguments, test_utils=utils, **tolerance)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@pytest.mark.parametrize("name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_fake_tensors_tell_sizes_and_strides_in_any_layout(name: str, layout: str) -> None:
    op, arguments = CASES[name].call(Coder(), *CASES[name].operands(layout=layout))
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_exact_gradients_are_torchs_to_the_bit(name: str, layout: str, dtype: torch.dtype) -> None:
    skip_what_is_float32(name, dtype)
    case = CASES[name]
    operands = case.operands(dtype, layout)
    out, expected = case.run(Coder(bits=2), operands), case.expected(operands)
    assert out.dtype == expected.dtype
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()
    found, wanted = gradients(out, operands), gradients(expected, operands)
    for index in case.exact:
        off = relative(found[index], wanted[index])
        reordered = name.startswith("batch_norm") and layout == "with gaps"  # torch sums in the order of its input's memory
        assert torch.equal(found[index], wanted[index]) or (reordered and off < {torch.float32: 1e-6}.get(dtype, 1e-2)), (
            f"gradient of operand {index}: {off}"
        )
    assert all(a.dtype == b.dtype and a.shape == b.shape for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("layout", ["contiguous", "reversed"])
@pytest.mark.parametrize("name", APPROXIMATE)
def test_eight_bits_are_close(name: str, layout: str, dtype: torch.dtype) -> None:
    skip_what_is_float32(name, dtype)
    case = CASES[name]
    operands = case.operands(dtype, layout)
    found, wanted = gradients(case.run(Coder(), operands), operands), gradients(case.expected(operands), operands)
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert relative(a, b) < CLOSE[dtype], f"operand {index}"


def drawn(case: Case, operands: list[Tensor], bits: int, count: int) -> list[Tensor]:
    """Gradients over steps of training, each (count, *) in float64."""
    draws = [gradients(case.run(Coder(bits, SEED, step), operands), operands) for step in range(count)]
    return [torch.stack([draw[index] for draw in draws]).double() for index in range(len(operands))]


@pytest.mark.parametrize("name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in APPROXIMATE])
def test_the_mean_of_1000_draws_is_the_exact_gradient(name: str) -> None:
    """Within six standard errors, and the bias that the operator's docstring tells of."""
    case = CASES[name]
    operands = case.operands()
    exact = gradients(case.expected(operands), operands)
    for index, (sample, expected) in enumerate(zip(drawn(case, operands, 4 if case.bias else 2, 1000), exact, strict=True)):
        seldom = 12 / 1000 * (sample.amax(0) - sample.amin(0)).max()  # a code that none of the draws happened to take
        error = 6 * sample.std(0) / math.sqrt(1000) + seldom + (case.bias + 1e-5) * expected.abs().max()
        assert ((sample.mean(0) - expected).abs() <= error).all(), f"operand {index}"
        noisy = relative(sample[0], expected)
        averaged = relative(sample.mean(0), expected)
        assert index in case.exact or averaged < 0.5 * noisy + 1e-4, f"operand {index}: {noisy} of one draw, {averaged} of their mean"


@pytest.mark.parametrize("name", APPROXIMATE)
def test_rounding_follows_from_seed_and_step_alone(name: str) -> None:
    case = CASES[name]
    operands = case.operands()

    def of(seed: int, step: int) -> list[Tensor]:
        torch.rand(3)  # of no influence
        return gradients(case.run(Coder(2, seed, step), operands), operands)

    first, again = of(1, 5), of(1, 5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for others in ([of(1, step) for step in range(6, 26)], [of(seed, 5) for seed in range(2, 22)]):
        for index in set(range(len(operands))) - set(case.exact):
            assert not all(torch.equal(first[index], other[index]) for other in others)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("name", CASES)
def test_what_is_no_number_comes_out_as_none(name: str, bits: int, value: float) -> None:
    case = CASES[name]
    operands = [operand.detach().clone().requires_grad_() for operand in case.operands()]
    with torch.no_grad():
        operands[0].view(-1)[7] = value
    found, wanted = gradients(case.run(Coder(bits), operands), operands), gradients(case.expected(operands), operands)
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert not a[~b.isfinite()].isfinite().any(), f"operand {index}"
        if index in case.exact:
            kept = a.isfinite() & operands[index].isfinite()  # torch itself is of two minds about NaN
            assert torch.equal(a[kept], b[kept])


@pytest.mark.parametrize("name", CASES)
def test_an_empty_batch_passes(name: str) -> None:
    case = CASES[name]
    operands = case.operands(batch=0)
    if name.startswith(("attention", "matmul", "mul")) and operands[1].shape[0] == case.shapes[0][0]:
        operands[1:] = [operand.detach()[:0].requires_grad_() if operand.dim() > 2 else operand for operand in operands[1:]]
    try:
        expected = case.expected(operands)
        wanted = gradients(expected, operands)
    except (RuntimeError, ValueError, IndexError) as error:
        pytest.skip(f"torch refuses: {error}")
    out = case.run(Coder(), operands)
    assert out.shape == expected.shape
    for a, b in zip(gradients(out, operands), wanted, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_a_range_of_zero_is_exact(name: str) -> None:
    """Every element the same: what the code stands for is the element itself."""
    case = CASES[name]
    if "norm" in name or name == "attention, dropout":
        pytest.skip("its gradient is ill-conditioned there, or its output is not of one value")
    operands = [torch.full_like(operand, 0.5).requires_grad_() for operand in case.operands()]
    found, wanted = gradients(case.run(Coder(4), operands), operands), gradients(case.expected(operands), operands)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_second_derivative_is_refused_in_words(name: str) -> None:
    case = CASES[name]
    operands = case.operands()
    grads = gradients(case.run(Coder(), operands), operands, create_graph=True)
    if case.twice:
        return
    with pytest.raises(
        RuntimeError, match=r"a second derivative was asked for through fxsparse::\w+, .* call backward without create_graph"
    ):
        sum(grad.square().sum() for grad in grads).backward()


@pytest.mark.parametrize("name", CASES)
def test_a_retained_graph_gives_the_same_gradients_again(name: str) -> None:
    case = CASES[name]
    operands = case.operands()
    out = case.run(Coder(4, SEED), operands)
    first, second = gradients(out, operands, retain_graph=True), gradients(out, operands)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    if not case.twice:
        with pytest.raises(RuntimeError, match="second time"):
            gradients(out, operands)


@pytest.mark.parametrize("name", CASES)
def test_only_codes_are_kept_of_what_is_coded(name: str) -> None:
    case = CASES[name]
    operands = case.operands()
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        op, arguments = case.call(Coder(), *operands)
        op(*arguments)
    assert operands[0].data_ptr() not in {tensor.data_ptr() for tensor in kept}
    assert not any(tensor.is_floating_point() and tensor.shape == operands[0].shape for tensor in kept)
