"""What stands in the graph in front of a masked contraction: the operator, or what comes to the same and copies nothing.

fxsparse::masked_weight makes a copy of the weight in forward and one of its gradient in backward, and most of their time goes into
new memory. While a model trains on the CPU neither is needed. The hook after the optimizer's step leaves zeros where the mask is
false, and notes in ``trust`` that it did: as long as weight and mask are the memory that it saw, in the version that it saw, and a
sample of masked elements is zero, the weight is its own masked form. And a gradient that a contraction has just made belongs to
nobody else, so that it can be masked in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.masked_weight import mask_, mask_gradient, masked_weight

SAMPLED = 64
_CANDIDATES = 1024
_HEAD = 3


def apply_mask(
    weight: Tensor, mask: Tensor, growing: Tensor, trust: Tensor, straight_through: bool, decay: float, may_write: bool
) -> Tensor:
    """The weight where its mask is true, 0 elsewhere; see fxsparse::masked_weight.

    Args:
        trust: what the hook after the optimizer's step has noted, see ``note_trust``; not read under torch.compile.
        may_write: everything that reads the result makes a new gradient for it.

    Raises: TypeError when the weight is still sharded over ranks.
    """
    if torch.compiler.is_compiling():
        return masked_weight.overload(weight, _fitting(mask, weight), growing, straight_through, decay)  # type: ignore[no-any-return]
    if may_write and not straight_through and torch.is_grad_enabled() and _is_clean(weight, mask, trust):
        clean: Tensor = _Clean.apply(weight, mask, growing)
        return clean
    return masked_weight.overload(weight, _fitting(mask, weight), growing, straight_through, decay)  # type: ignore[no-any-return]


class _Clean(torch.autograd.Function):
    """The weight itself, with the gradient of fxsparse::masked_weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, growing: Tensor) -> Tensor:
        ctx.save_for_backward(mask, growing)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        mask, growing = ctx.saved_tensors
        if torch.is_grad_enabled() or type(grad) is not Tensor:
            return mask_gradient.overload(grad, mask, growing), None, None
        return grad if bool(growing) else mask_(grad, mask), None, None


def empty_trust() -> Tensor:
    """The buffer of a weight that nobody has vouched for."""
    return torch.full((_HEAD + SAMPLED,), -1, dtype=torch.int64)


def note_trust(trust: Tensor, weight: Tensor, mask: Tensor) -> None:
    """Notes that the weight is zero where the mask is false, as both are now. Does nothing on a GPU, where copies are cheap."""
    if type(weight.data) is not Tensor or type(mask) is not Tensor or weight.device.type != "cpu" or weight.numel() == 0:
        return
    if int(trust[2]) != mask._version:
        stride = max(1, weight.numel() // _CANDIDATES)
        places = torch.arange(0, weight.numel(), stride)
        places = places[~mask.take(places)]
        trust[_HEAD:] = places[torch.linspace(0, len(places) - 1, SAMPLED).long()] if len(places) else -1
    trust[0], trust[1], trust[2] = weight._version, weight.data_ptr(), mask._version


def looks_masked(trust: Tensor, x: Tensor) -> bool:
    """Whether a sample of the masked elements of a weight's gradient is zero; False where nothing was noted of the weight."""
    version, _, _, first = trust[: _HEAD + 1].tolist()
    return version >= 0 and (first < 0 or not bool(x.take(trust[_HEAD:]).any()))


def _is_clean(weight: Tensor, mask: Tensor, trust: Tensor) -> bool:
    if type(weight) is not nn.Parameter or type(mask) is not Tensor or type(trust) is not Tensor or weight.device.type != "cpu":
        return False
    version, pointer, mask_version, first = trust[: _HEAD + 1].tolist()
    if version < 0 or version != weight._version or pointer != weight.data_ptr() or mask_version != mask._version:
        return False
    return first < 0 or not bool(weight.detach().take(trust[_HEAD:]).any())


def _fitting(mask: Any, weight: Tensor) -> Tensor:
    """The mask itself, or where it is sharded over ranks and the weight is not, all of it."""
    if not hasattr(mask, "full_tensor"):
        found: Tensor = mask
        return found
    if hasattr(weight, "full_tensor"):
        raise TypeError(
            "a masked weight is still sharded while the model runs: apply fully_shard to the compiled model as a whole, since the "
            "forward of a part of it, which would gather the weights, is not called"
        )
    gathered: Tensor = mask.full_tensor()
    return gathered
