"""The k-th largest magnitude by a native kernel, which reads the values once and copies but the few around it."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import Library


def between(kernels: Library, flat: Tensor, lower: float, upper: float, room: int) -> tuple[int, Tensor] | None:
    """Return how many of `flat` (float32, contiguous) have a magnitude of `upper` or more, and the magnitudes strictly between the bounds.

    None if some are no finite numbers, or more lie between than there is room for.
    """
    threads = torch.get_num_threads()
    own = -(-room // threads)
    found, counts = torch.empty(own * threads), torch.empty(threads, 3, dtype=torch.int64)
    kernels.call("between", torch.float32, flat, flat.numel(), lower, upper, found, own * threads, counts)
    above, inside, odd = counts.unbind(1)
    if int(odd.sum()) or int(inside.max()) > own:
        return None
    return int(above.sum()), torch.cat([found[i * own : i * own + size] for i, size in enumerate(inside.tolist())])
