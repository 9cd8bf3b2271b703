"""fxsparse::count_kept, how much of an activation was kept at the last selection of its threshold."""

import torch
from torch import Tensor

from .operator import operator


@operator(mutates=("counts",))
def count_kept(a_hat: Tensor, counts: Tensor, clock: Tensor, period: int) -> None:
    """Store the non-zeros and the elements of ``a_hat`` in ``counts`` (2, int64) on the steps that select a threshold.

    ``clock`` is the 0-dim int64 CPU tensor of ``refresh_threshold``. An empty ``a_hat`` (no gradient is wanted) counts nothing.
    """
    step = int(clock.item())
    if step < 0 or step % period or a_hat.numel() == 0:
        return
    counts[0].copy_(torch.count_nonzero(a_hat))
    counts[1].fill_(a_hat.numel())


@count_kept.register_fake
def _(a_hat: Tensor, counts: Tensor, clock: Tensor, period: int) -> None:
    return None
