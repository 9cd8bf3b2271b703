"""What a SWAT contraction saves for its backward pass: the sparse activation, packed, and what the sparse weight follows from.

The arguments that all of them end with:

    scheme, values, stats     how a_hat is to be read: "exact", a_hat itself, or as fxsparse::pack_sparse made it
    w, threshold, dims, groups   w_hat = sparsify(w, threshold, dims, groups, True); with no `w`, w_hat itself is saved
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .codes.scheme import EXACT
from .codes.tiles import TILES, scheme_for
from .derivative import once
from .quantize import Form

X, A_HAT, W_HAT = 0, 1, 2


class SparseOperands:
    """The operands of one call, as they are kept: never x, and neither a_hat nor w_hat where they follow from less."""

    def __init__(self, ctx: Any, op: str, x: Tensor, a_hat: Tensor, w_hat: Tensor, kept: Sequence[Any]) -> None:
        """Saves what the backward pass needs.

        Raises: ValueError when w_hat needs a gradient and a_hat is neither of x's shape nor packed.
        """
        scheme, values, stats, w, threshold, self.dims, self.groups = kept
        self.scheme = scheme_for(x, scheme)
        self.needs_x, self.needs_w = ctx.needs_input_grad[X], ctx.needs_input_grad[W_HAT]
        if self.needs_w and self.scheme == EXACT and a_hat.shape != x.shape:
            raise ValueError(
                f"{op}: the gradient of the weight needs a sparse activation of shape {list(x.shape)}, got {list(a_hat.shape)}; "
                "an empty one may be passed only where no gradient is recorded"
            )
        self.x, self.w_shape, self.w_dtype = Form(x), w_hat.shape, w_hat.dtype
        self.is_plain = self.scheme == EXACT and w is None
        activation = (None,) if not self.needs_w else (a_hat,) if self.scheme == EXACT else (a_hat, values, stats)
        weight = (None,) if not self.needs_x else (w_hat,) if w is None else (w, threshold)
        self.split = len(activation)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*activation, *weight)

    def a_hat(self, saved: Sequence[Any]) -> Any:
        """The sparse activation; None if nobody needs it."""
        activation = saved[: self.split]
        return activation[0] if self.split == 1 else self.x.restore(activation[0], activation[2], self.scheme, values=activation[1])

    def kept(self, saved: Sequence[Any]) -> tuple[Tensor | None, Tensor | None, Tensor | None, str]:
        """The sparse activation itself, or where its elements stand, their values and the scheme, as native kernels want it."""
        if self.split > 1 and self.scheme.startswith(TILES):
            return None, saved[0], saved[1], self.scheme
        return self.a_hat(saved), None, None, EXACT

    def w_hat(self, saved: Sequence[Any]) -> Any:
        """The sparse weight; None if nobody needs it."""
        weight = saved[self.split :]
        if len(weight) == 1:
            return weight[0]
        found: Tensor = torch.ops.fxsparse.sparsify(weight[0].detach(), weight[1], self.dims or [], self.groups, True)
        return found.to(self.w_dtype)


def rule(op: str, backward: Callable[[Any, Tensor], Any]) -> Callable[[Any, Any], Any]:
    """A backward rule of a SWAT contraction, which can be differentiated again only where it was given a_hat and w_hat as they are."""
    packed = once(f"fxsparse::{op}")(backward)

    def chosen(ctx: Any, grad: Any) -> Any:
        if grad is None:
            return (None,) * ctx.arguments
        return backward(ctx, grad) if ctx.operands.is_plain else packed(ctx, grad)

    return chosen
