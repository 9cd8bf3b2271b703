"""Which operands of a SWAT contraction are saved for its backward pass."""

from typing import Any

from torch import Tensor

X, A_HAT, W_HAT = 0, 1, 2


def save_sparse_operands(ctx: Any, x: Tensor, a_hat: Tensor, w_hat: Tensor, op: str) -> None:
    """Return nothing; save `a_hat` where w_hat needs a gradient, `w_hat` where x does, and the shape of each: never x.

    Raises: ValueError when w_hat needs a gradient and `a_hat` is not of x's shape.
    """
    needs_x, needs_w = ctx.needs_input_grad[X], ctx.needs_input_grad[W_HAT]
    if needs_w and a_hat.shape != x.shape:
        raise ValueError(
            f"{op}: the gradient of the weight needs a sparse activation of shape {list(x.shape)}, got {list(a_hat.shape)}; "
            "an empty one may be passed only where no gradient is recorded"
        )
    ctx.set_materialize_grads(False)
    ctx.x_shape, ctx.w_shape = x.shape, w_hat.shape
    ctx.save_for_backward(a_hat if needs_w else None, w_hat if needs_x else None)
