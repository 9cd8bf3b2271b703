"""How a dense tensor lies in memory, and how to work through it in blocks that stay in the processor's cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 1 << 17  # elements that one thread works on at a time: half a MiB in float32, a share of its cache


def block_elements(tensor: Tensor) -> int:
    """Return how many elements are worked on at a time: everything on an accelerator."""
    return BLOCK * torch.get_num_threads() if tensor.device.type == "cpu" else max(BLOCK, tensor.numel())


def is_dense(tensor: Tensor) -> bool:
    """Return whether the tensor's elements fill one piece of memory, each once, in whatever order."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def dense(tensor: Tensor) -> Tensor:
    """Return the tensor, or a contiguous copy of one that has gaps or repeats."""
    return tensor if is_dense(tensor) else tensor.contiguous()


def dense_strides(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Return the strides of a dense tensor of that shape in the same memory order; the given ones if they are dense."""
    made, expected = [1] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda dim: (strides[dim], -dim)):
        made[dim] = expected
        expected *= max(shape[dim], 1)
    return made


def in_memory_order(tensor: Tensor) -> Tensor:
    """Return a dense tensor as one dimension, in the order of its memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def by_channel(tensor: Tensor) -> Tensor:
    """Return a dense tensor whose dimension 1 is that of channels as (A, C, B) in memory order: B is 1 with channels last.

    Raises: ValueError if the channels are neither contiguous nor last in memory.
    """
    sizes, strides = tensor.shape, tensor.stride()
    channels = sizes[1]
    after = [dim for dim in range(len(sizes)) if dim != 1 and sizes[dim] > 1 and strides[dim] < strides[1]]
    before = [dim for dim in range(len(sizes)) if dim != 1 and sizes[dim] > 1 and strides[dim] >= strides[1]]  # equal: one channel
    inner, outer = math.prod(sizes[dim] for dim in after), math.prod(sizes[dim] for dim in before)
    if channels > 1 and strides[1] != inner:
        raise ValueError(f"the channels of a tensor of shape {list(sizes)} and strides {list(strides)} do not lie in one block")
    return tensor.as_strided((outer, channels, inner), (channels * inner, inner, 1))


def blocks(count: int, elements_each: int, limit: int) -> Iterator[slice]:
    """Yield slices that cover `count` items of `elements_each` elements, at most `limit` elements (but one item) in each."""
    step = max(1, limit // max(elements_each, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def is_innermost(tensor: Tensor) -> bool:
    """Return whether a tensor (N, C, H, W) of several samples lies in memory as (C, H, W, N): batch innermost."""
    return tensor.dim() == 4 and tensor.shape[0] > 1 and tensor.stride(0) == 1 and tensor.permute(1, 2, 3, 0).is_contiguous()


def empty_innermost(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a new tensor (N, C, H, W), batch innermost, of another's dtype and device."""
    n, _, height, width = shape
    return like.new_empty_strided(list(shape), [1, height * width * n, width * n, n])


def as_innermost(tensor: Tensor) -> Tensor:
    """Return the tensor batch innermost: itself if it is."""
    return tensor if is_innermost(tensor) else empty_innermost(tensor, tensor.shape).copy_(tensor)
