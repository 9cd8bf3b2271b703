"""fxsparse::count_kept, how much of an activation was kept at the last selection of its threshold."""

from torch import Tensor

from .operator import operator


@operator(mutates=("counts",))
def count_kept(x: Tensor, kept: Tensor, counts: Tensor, clock: Tensor, period: int, wanted: bool) -> None:
    """Store the number of elements of ``x`` that were ``kept`` (0-dim int64), and that of all, in ``counts`` (2, int64).

    Done on the steps that select a threshold: ``clock`` is the 0-dim int64 CPU tensor of ``refresh_threshold``. Not ``wanted``, or of
    an empty ``x``: nothing is counted.
    """
    step = int(clock.item())
    if not wanted or step < 0 or step % period or x.numel() == 0:
        return
    counts[0].copy_(kept)
    counts[1].fill_(x.numel())


@count_kept.register_fake
def _(x: Tensor, kept: Tensor, counts: Tensor, clock: Tensor, period: int, wanted: bool) -> None:
    return None
