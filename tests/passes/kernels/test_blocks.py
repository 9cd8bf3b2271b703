"""Memory that is given out again."""

from __future__ import annotations

import copy
import gc
import pickle

import torch

from fxsparse.passes.kernels.blocks import GRAIN, Blocks


def test_memory_comes_back_when_its_tensor_and_all_views_of_it_are_gone() -> None:
    blocks = Blocks()
    x, is_new = blocks.tensor(GRAIN)
    assert is_new
    view, address = x.view(2, -1)[1], x.data_ptr()
    del x
    gc.collect()
    assert not blocks.free
    del view
    gc.collect()
    assert len(blocks.free) == 1
    again, is_new = blocks.tensor(GRAIN - 5)
    assert not is_new
    assert again.data_ptr() == address
    assert again.shape == (GRAIN - 5,)


def test_two_living_tensors_share_nothing() -> None:
    blocks = Blocks()
    first, second = (blocks.tensor(GRAIN)[0] for _ in range(2))
    first.fill_(1.0)
    second.fill_(2.0)
    assert float(first.sum()) == GRAIN
    assert copy.deepcopy(first).sum() == pickle.loads(pickle.dumps(first)).sum() == GRAIN


def test_a_block_that_is_too_small_or_much_too_large_is_not_taken() -> None:
    blocks = Blocks()
    for elements in (GRAIN, 4 * GRAIN):
        blocks.tensor(elements)
    gc.collect()
    assert [block.numel() for block in blocks.free] == [GRAIN, 4 * GRAIN]
    assert blocks.tensor(2 * GRAIN)[1]


def test_no_more_is_held_than_the_limit() -> None:
    blocks = Blocks(held=8 * GRAIN)
    tensors = [blocks.tensor(GRAIN)[0] for _ in range(4)]
    del tensors
    gc.collect()
    assert sum(4 * block.numel() for block in blocks.free) == 8 * GRAIN


def test_autograd_writes_to_such_tensors_as_to_others() -> None:
    x = Blocks().tensor(GRAIN)[0].fill_(1.0).requires_grad_()
    (x * 2).add_(1).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))  # type: ignore[arg-type]
