"""fxsparse::swat_einsum, a contraction of two operands that keeps only sparse operands for its backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .autocast import cast_to_active_dtype
from .operator import operator, owned
from .sparse_operands import W_HAT, SparseOperands, X, rule


@operator()
def swat_einsum(
    x: Tensor,
    a_hat: Tensor,
    w_hat: Tensor,
    equation: str,
    scheme: str = "exact",
    values: Tensor | None = None,
    stats: Tensor | None = None,
    w: Tensor | None = None,
    threshold: Tensor | None = None,
    dims: Sequence[int] | None = None,
    w_groups: int = 1,
) -> Tensor:
    """Return torch.einsum(equation, x, w_hat), the equation as "x indices,w indices->output indices"; a_hat has x's shape.

    The gradient of w_hat is computed from `a_hat` and that of x from `w_hat`, which alone are saved, or what they follow from (see
    sparse_operands.py); a_hat gets none, since x's gradient is straight-through. Under autocast the operands are cast to the active
    dtype.

    Raises: ValueError for an equation without "->", with an ellipsis, with other than two operands, with an index twice in one term
    or in one term only, and for sizes that do not agree (a size of 1 is not broadcast); also when w_hat needs a gradient and a_hat
    is neither of x's shape nor packed.
    Source: SWAT, Raihan & Aamodt 2020, arXiv 2001.01969, algorithm 1, for any bilinear contraction.
    """
    return owned(_contract(x, w_hat, equation))


@swat_einsum.register_fake
def _(
    x: Tensor,
    a_hat: Tensor,
    w_hat: Tensor,
    equation: str,
    scheme: str = "exact",
    values: Tensor | None = None,
    stats: Tensor | None = None,
    w: Tensor | None = None,
    threshold: Tensor | None = None,
    dims: Sequence[int] | None = None,
    w_groups: int = 1,
) -> Tensor:
    return _contract(x, w_hat, equation)


def parse_equation(equation: str) -> tuple[str, str, str]:
    """Return the indices of x, of w and of the output.

    Raises: ValueError for an equation whose backward pass is not the same equation with its terms exchanged.
    """
    operands, arrow, out = equation.replace(" ", "").partition("->")
    terms = operands.split(",")
    if not arrow or len(terms) != 2:
        raise _refusal(equation, "it needs two operands and an output, as in 'bi,oi->bo'")
    x, w = terms
    for term in (x, w, out):
        strange = [letter for letter in term if not letter.isalpha()]
        if strange:
            raise _refusal(equation, f"an index is a letter, got {''.join(strange)!r}; write every dimension out")
        if len(set(term)) != len(term):
            raise _refusal(equation, f"an index occurs twice in the term {term!r}")
    for name, term, others in (("x", x, w + out), ("w", w, x + out), ("the output", out, x + w)):
        alone = sorted(set(term) - set(others))
        if alone:
            raise _refusal(equation, f"index {alone[0]!r} of {name} occurs in no other term")
    return x, w, out


def _refusal(equation: str, reason: str) -> ValueError:
    return ValueError(f"swat_einsum cannot contract {equation!r}: {reason}")


def _contract(x: Tensor, w: Tensor, equation: str) -> Tensor:
    x_term, w_term, out_term = parse_equation(equation)
    for name, tensor, term in (("x", x, x_term), ("w", w, w_term)):
        if tensor.dim() != len(term):
            raise _refusal(equation, f"{name} has {len(term)} indices, but its shape is {list(tensor.shape)}")
    for index in sorted(set(x_term) & set(w_term)):
        in_x, in_w = x.shape[x_term.index(index)], w.shape[w_term.index(index)]
        if in_x != in_w:
            raise _refusal(equation, f"index {index!r} has size {in_x} in x and {in_w} in w")
    return torch.einsum(f"{x_term},{w_term}->{out_term}", x, w)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, a_hat, w_hat, equation, *kept = inputs
    ctx.arguments, ctx.terms = len(inputs), parse_equation(equation)
    ctx.operands = SparseOperands(ctx, "swat_einsum", x, a_hat, w_hat, kept)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    operands, saved = ctx.operands, ctx.saved_tensors
    x, w, out = ctx.terms
    grad_x = torch.einsum(f"{out},{w}->{x}", grad, operands.w_hat(saved)) if ctx.needs_input_grad[X] else None
    grad_w = torch.einsum(f"{out},{x}->{w}", grad, operands.a_hat(saved)) if ctx.needs_input_grad[W_HAT] else None
    return (grad_x, None, grad_w, *(None,) * (ctx.arguments - 3))


swat_einsum.register_autograd(rule("swat_einsum", _backward), setup_context=_setup)
cast_to_active_dtype("swat_einsum", only=("x", "a_hat", "w_hat", "values"))
