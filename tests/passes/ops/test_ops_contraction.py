"""The SWAT contractions: values, the three gradients, what is saved, autocast and refusals, against plain autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fxsparse.passes.ops  # noqa: F401

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
ops = torch.ops.fxsparse
OPCHECK_WARNING = "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
Contraction = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# Each row: the geometry as aten.convolution takes it, the shapes of x and w, and the number of biases (0: no bias).
CONVOLUTIONS: dict[str, tuple[tuple[Any, ...], tuple[int, ...], tuple[int, ...], int]] = {
    "2d": (([1, 1], [1, 1], [1, 1], False, [0, 0], 1), (2, 4, 6, 6), (5, 4, 3, 3), 5),
    "2d strided": (([2, 1], [1, 0], [1, 1], False, [0, 0], 1), (2, 4, 7, 6), (5, 4, 3, 3), 5),
    "2d dilated": (([1, 1], [2, 2], [2, 2], False, [0, 0], 1), (2, 4, 7, 6), (5, 4, 3, 3), 5),
    "2d grouped": (([1, 1], [1, 1], [1, 1], False, [0, 0], 2), (2, 4, 6, 6), (6, 2, 3, 3), 6),
    "2d depthwise": (([1, 1], [1, 1], [1, 1], False, [0, 0], 4), (2, 4, 6, 6), (4, 1, 3, 3), 4),
    "2d no bias": (([1, 1], [1, 1], [1, 1], False, [0, 0], 1), (2, 4, 6, 6), (5, 4, 3, 3), 0),
    "2d pointwise": (([1, 1], [0, 0], [1, 1], False, [0, 0], 1), (2, 4, 6, 6), (5, 4, 1, 1), 5),
    "2d transposed": (([2, 2], [1, 1], [1, 1], True, [1, 1], 1), (2, 4, 5, 5), (4, 3, 3, 3), 3),
    "2d transposed grouped": (([2, 2], [1, 1], [1, 1], True, [0, 0], 2), (2, 4, 5, 5), (4, 3, 3, 3), 6),
    "1d": (([1], [1], [1], False, [0], 1), (2, 4, 9), (5, 4, 3), 5),
    "3d": (([1, 1, 1], [1, 1, 1], [1, 1, 1], False, [0, 0, 0], 1), (2, 2, 4, 5, 4), (3, 2, 3, 3, 3), 3),
}
FORMATS = [torch.contiguous_format, torch.channels_last]


def plain_convolution(geometry: tuple[Any, ...]) -> Contraction:
    stride, padding, dilation, transposed, output_padding, groups = geometry

    def contract(x: Tensor, w: Tensor, bias: Tensor | None) -> Any:
        dims = x.dim() - 2
        if transposed:
            function: Any = getattr(functional, f"conv_transpose{dims}d")
            return function(x, w, bias, stride, padding, output_padding, groups, dilation)
        function = getattr(functional, f"conv{dims}d")
        return function(x, w, bias, stride, padding, dilation, groups)

    return contract


def swat_by_autograd(contract: Contraction, x: Tensor, a_hat: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """Return contract(x, w) whose gradient for w comes from a_hat: the value of the second term is zero."""
    weight_path = contract(a_hat.detach(), w, None)
    return contract(x, w.detach(), bias) + (weight_path - weight_path.detach())


def operands(shape: tuple[int, ...], w_shape: tuple[int, ...], bias: int, dtype: torch.dtype, memory_format: Any) -> list[Any]:
    torch.manual_seed(0)
    x, w = torch.randn(shape).to(dtype), torch.randn(w_shape).to(dtype) * 0.3
    if memory_format is torch.channels_last and len(shape) == 4 == len(w_shape):
        x, w = x.contiguous(memory_format=memory_format), w.contiguous(memory_format=memory_format)
    a_hat, w_hat = x.where(x.abs() > 0.7, 0.0), w.where(w.abs() > 0.2, 0.0)
    b = torch.randn(bias).to(dtype) if bias else None
    return [x.requires_grad_(), a_hat, w_hat.requires_grad_(), b if b is None else b.requires_grad_()]


def gradients(out: Tensor, inputs: list[Any]) -> list[Tensor]:
    weighting = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype)
    return list(torch.autograd.grad(out, [value for value in inputs if value is not None], weighting))


def compare(got: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[got.dtype]
    scale = float(expected.detach().abs().max().clamp(min=1e-6))
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * scale)


def check(op: Contraction, contract: Contraction, inputs: list[Any]) -> None:
    x, a_hat, w_hat, bias = inputs
    out, expected = op(x, w_hat, bias), swat_by_autograd(contract, x, a_hat, w_hat, bias)
    assert out.dtype == expected.dtype
    compare(out, contract(x, w_hat, bias))
    for got, wanted in zip(gradients(out, [x, w_hat, bias]), gradients(expected, [x, w_hat, bias]), strict=True):
        compare(got, wanted)


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_convolution_agrees_with_autograd(case: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    geometry, shape, w_shape, bias = CONVOLUTIONS[case]
    inputs = operands(shape, w_shape, bias, dtype, memory_format)
    check(lambda x, w, b: ops.swat_convolution.default(x, inputs[1], w, b, *geometry), plain_convolution(geometry), inputs)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("bias", [0, 7])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_linear_agrees_with_autograd(shape: tuple[int, ...], bias: int, dtype: torch.dtype) -> None:
    inputs = operands(shape, (7, 6), bias, dtype, None)
    check(lambda x, w, b: ops.swat_linear.default(x, inputs[1], w, b), functional.linear, inputs)


EINSUMS = {
    "bi,oi->bo": ((3, 4), (5, 4)),
    "bij,jk->bik": ((2, 3, 4), (4, 5)),
    "bij,bjk->bik": ((2, 3, 4), (2, 4, 5)),
    "bhij,hjk->bhik": ((2, 3, 4, 5), (3, 5, 6)),
    "i,o->oi": ((3,), (4,)),
    "bnd, dhk -> bhnk": ((2, 3, 4), (4, 2, 5)),
    "ij,ij->ji": ((3, 4), (3, 4)),
    "i,i->": ((5,), (5,)),
}


@pytest.mark.parametrize("equation", EINSUMS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_einsum_agrees_with_autograd(equation: str, dtype: torch.dtype) -> None:
    inputs = operands(*EINSUMS[equation], 0, dtype, None)
    check(
        lambda x, w, b: ops.swat_einsum.default(x, inputs[1], w, equation),
        lambda x, w, b: torch.einsum(equation, x, w),
        inputs,
    )


@pytest.mark.filterwarnings(OPCHECK_WARNING)
@pytest.mark.parametrize(
    ("case", "memory_format"), [(case, form) for form in FORMATS for case in CONVOLUTIONS if form is FORMATS[0] or case.startswith("2d")]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_convolution_opcheck(case: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    geometry, shape, w_shape, bias = CONVOLUTIONS[case]
    inputs = operands(shape, w_shape, bias, dtype, memory_format)
    torch.library.opcheck(ops.swat_convolution.default, (*inputs, *geometry), **opcheck_tolerance(dtype))


@pytest.mark.filterwarnings(OPCHECK_WARNING)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)])
@pytest.mark.parametrize("bias", [0, 7])
def test_linear_opcheck(dtype: torch.dtype, shape: tuple[int, ...], bias: int) -> None:
    torch.library.opcheck(ops.swat_linear.default, tuple(operands(shape, (7, 6), bias, dtype, None)), **opcheck_tolerance(dtype))


@pytest.mark.filterwarnings(OPCHECK_WARNING)
@pytest.mark.parametrize("equation", EINSUMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_einsum_opcheck(equation: str, dtype: torch.dtype) -> None:
    x, a_hat, w_hat, _ = operands(*EINSUMS[equation], 0, dtype, None)
    torch.library.opcheck(ops.swat_einsum.default, (x, a_hat, w_hat, equation), **opcheck_tolerance(dtype))


def opcheck_tolerance(dtype: torch.dtype) -> dict[str, Any]:
    return {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}


def calls() -> dict[str, tuple[Callable[..., Tensor], list[Any]]]:
    """Return, for each contraction, its call and its operands x, a_hat, w_hat and bias (or None)."""
    geometry, shape, w_shape, bias = CONVOLUTIONS["2d grouped"]
    return {
        "convolution": (
            lambda x, a, w, b: ops.swat_convolution.default(x, a, w, b, *geometry),
            operands(shape, w_shape, bias, torch.float32, None),
        ),
        "linear": (ops.swat_linear.default, operands((5, 6), (7, 6), 7, torch.float32, None)),
        "einsum": (lambda x, a, w, b: ops.swat_einsum.default(x, a, w, "bi,oi->bo"), operands((3, 4), (5, 4), 0, torch.float32, None)),
    }


NAMES = ["convolution", "linear", "einsum"]


def saved_by(call: Callable[[], Tensor]) -> set[int]:
    pointers = []

    def pack(tensor: Tensor) -> Tensor:
        pointers.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return set(pointers)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_sparse_operands_are_saved(name: str) -> None:
    op, (x, a_hat, w_hat, bias) = calls()[name]
    assert saved_by(lambda: op(x, a_hat, w_hat, bias)) == {a_hat.data_ptr(), w_hat.data_ptr()}


@pytest.mark.parametrize("name", NAMES)
def test_the_dense_operands_are_not_saved_by_the_whole_chain(name: str) -> None:
    op, (x, _, w, bias) = calls()[name]
    threshold = torch.tensor(0.2)

    def forward() -> Tensor:
        a_hat = ops.sparsify.default(x, threshold, [], 1, True)
        w_hat = ops.sparsify.default(w, threshold, [], 1, True)
        return op(x, a_hat, w_hat, bias)

    assert saved_by(forward).isdisjoint({x.data_ptr(), w.data_ptr()})
    grad_x, grad_w = torch.autograd.grad(forward().sum(), [x, w])
    assert grad_x.abs().sum() > 0
    assert grad_w.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", ["x", "w", "bias"])
def test_what_needs_no_gradient_is_neither_saved_nor_computed(name: str, frozen: str) -> None:
    op, (x, a_hat, w_hat, bias) = calls()[name]
    full = torch.autograd.grad(op(x, a_hat, w_hat, bias).sum(), [v for v in (x, w_hat, bias) if v is not None])
    by_name = dict(zip(("x", "w", "bias"), full, strict=False))
    tensors = {"x": x, "w": w_hat, "bias": bias}
    if tensors[frozen] is None:
        return
    tensors[frozen].requires_grad_(False)
    saved = saved_by(lambda: op(x, a_hat, w_hat, bias))
    assert saved == {a_hat.data_ptr() for _ in "w" if frozen != "w"} | {w_hat.data_ptr() for _ in "x" if frozen != "x"}
    left = {key: value for key, value in tensors.items() if value is not None and key != frozen}
    grads = torch.autograd.grad(op(x, a_hat, w_hat, bias).sum(), list(left.values()))
    for key, grad in zip(left, grads, strict=True):
        torch.testing.assert_close(grad, by_name[key])


@pytest.mark.parametrize("name", NAMES)
def test_the_sparse_activation_gets_no_gradient(name: str) -> None:
    op, (x, a_hat, w_hat, bias) = calls()[name]
    a_hat.requires_grad_()
    torch.autograd.backward(op(x, a_hat, w_hat, bias).sum())
    assert a_hat.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_activation_serves_where_no_gradient_is_recorded(name: str) -> None:
    op, (x, a_hat, w_hat, bias) = calls()[name]
    with torch.no_grad():
        assert torch.equal(op(x, x.new_empty(0), w_hat, bias), op(x, a_hat, w_hat, bias))
    with pytest.raises(ValueError, match=r"needs a sparse activation of shape .*got \[0\]"):
        op(x, x.new_empty(0), w_hat, bias)


@pytest.mark.parametrize("name", NAMES)
def test_the_backward_pass_can_be_differentiated(name: str) -> None:
    op, inputs = calls()[name]
    x, a_hat, w_hat = (v.detach().double().requires_grad_() for v in inputs[:3])
    bias = None if inputs[3] is None else inputs[3].detach().double()
    out = op(x, a_hat, w_hat, bias)
    upstream = torch.randn_like(out).requires_grad_()
    grad_x, grad_w = torch.autograd.grad(out, [x, w_hat], upstream, create_graph=True)
    direction_x, direction_w = torch.randn_like(grad_x), torch.randn_like(grad_w)
    second = torch.autograd.grad((grad_x * direction_x).sum() + (grad_w * direction_w).sum(), [upstream, w_hat, a_hat])
    no_bias = None if bias is None else torch.zeros_like(bias)
    torch.testing.assert_close(second[0], op(direction_x, a_hat, w_hat, no_bias) + op(a_hat, a_hat, direction_w, no_bias))
    assert second[1].abs().sum() > 0
    assert second[2].abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_uses_the_active_dtype(name: str, dtype: torch.dtype, compiled: bool) -> None:
    op, inputs = calls()[name]
    x, a_hat, w_hat, bias = inputs

    def forward(x: Tensor, a_hat: Tensor, w_hat: Tensor, bias: Tensor | None) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return op(x, a_hat, w_hat, bias)

    torch._dynamo.reset()
    call = torch.compile(forward, fullgraph=True, backend="aot_eager") if compiled else forward
    out = call(x, a_hat, w_hat, bias)
    assert out.dtype == dtype
    low = [v if v is None else v.detach().to(dtype).requires_grad_() for v in inputs]
    expected = op(*low)
    compare(out, expected)
    present = [v for v in (x, w_hat, bias) if v is not None]
    got = torch.autograd.grad(out.float().square().sum(), present)
    wanted = torch.autograd.grad(expected.float().square().sum(), [v for v in (low[0], low[2], low[3]) if v is not None])
    for grad, low_grad in zip(got, wanted, strict=True):
        assert grad.dtype == torch.float32
        scale = float(low_grad.abs().max())
        torch.testing.assert_close(grad, low_grad.float(), rtol=1e-2, atol=1e-2 * scale)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_saves_the_cast_operands(name: str) -> None:
    op, (x, a_hat, w_hat, bias) = calls()[name]
    sizes = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.element_size())
        return tensor

    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        op(x, a_hat, w_hat, bias)
    assert sizes == [2, 2]


@pytest.mark.parametrize("name", NAMES)
def test_autocast_leaves_float64_alone_as_torch_does(name: str) -> None:
    op, inputs = calls()[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert op(*[v if v is None else v.detach().double() for v in inputs]).dtype == torch.float64
        assert functional.linear(torch.randn(2, 2).double(), torch.randn(2, 2).double()).dtype == torch.float64


def test_disabled_autocast_casts_nothing() -> None:
    op, inputs = calls()["linear"]
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert op(*inputs).dtype == torch.float32


@pytest.mark.parametrize(
    ("equation", "shapes", "reason"),
    [
        ("bi,oi", [(2, 3), (4, 3)], "two operands and an output"),
        ("bi->b", [(2, 3), (4, 3)], "two operands and an output"),
        ("bi,oi,ok->bk", [(2, 3), (4, 3)], "two operands and an output"),
        ("...i,oi->...o", [(2, 3), (4, 3)], r"an index is a letter, got '\.\.\.'"),
        ("ii,oi->o", [(3, 3), (4, 3)], "an index occurs twice in the term 'ii'"),
        ("bi,oi->o", [(2, 3), (4, 3)], "index 'b' of x occurs in no other term"),
        ("bi,oi->b", [(2, 3), (4, 3)], "index 'o' of w occurs in no other term"),
        ("bi,oi->boz", [(2, 3), (4, 3)], "index 'z' of the output occurs in no other term"),
        ("bi,oi->bo", [(2, 3, 1), (4, 3)], r"x has 2 indices, but its shape is \[2, 3, 1\]"),
        ("bi,oi->bo", [(2, 1), (4, 3)], "index 'i' has size 1 in x and 3 in w"),
    ],
)
def test_einsum_refuses_with_its_reason(equation: str, shapes: list[tuple[int, ...]], reason: str) -> None:
    x, w = torch.randn(shapes[0]), torch.randn(shapes[1])
    with pytest.raises(ValueError, match=f"cannot contract .*: .*{reason}"):
        ops.swat_einsum.default(x, x, w, equation)
