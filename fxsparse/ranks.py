"""Weights and masks on several ranks: their local parts, the ranks that share one, and whether all ranks hold the same masks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fxsparse.passes.masks.selection import ALONE, Ranks

from .errors import PolicyError


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """This rank's part of a tensor, in the same memory."""
    found: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return found


def whole(tensor: Any) -> Tensor:
    """All of a tensor, gathered if it is sharded."""
    found: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return found


def placed_like(mask: Tensor, weight: Any) -> Tensor:
    """A mask with the weight's placement: this rank's part of it, as a DTensor if the weight is one. Nothing is sent."""
    if not is_sharded(weight) or is_sharded(mask):
        return mask
    from torch.distributed.tensor import DTensor

    _shard_dim(weight, "a masked weight")
    start, rows = _rows_of(weight)
    part = mask[start : start + rows].clone()
    found: Tensor = DTensor.from_local(
        part, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=mask.stride()
    )
    return found


def first_row(weight: Any) -> int:
    """The number of the first row of the whole weight that this rank holds."""
    return _rows_of(weight)[0] if is_sharded(weight) else 0


def _rows_of(weight: Any) -> tuple[int, int]:
    """First row and number of rows of this rank's part."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    return (int(offset[0]) if shape[0] else int(weight.shape[0])), int(shape[0])


def _shard_dim(weight: Any, what: str) -> int | None:
    """The dimension of the mesh along which a weight's rows are divided; None if every rank has all of it."""
    found = None
    for index, placement in enumerate(weight.placements):
        if placement.is_replicate():
            continue
        if type(placement).__name__ != "Shard" or placement.dim != 0 or found is not None:
            raise PolicyError(
                f"{what} is placed as {tuple(weight.placements)}; masks move on weights that are sharded by rows, along one dimension of "
                "the mesh (fully_shard's default), or not at all"
            )
        found = index
    return found


class Sharers:
    """The ranks that hold shards of the same weights, as ``choose_largest`` needs them."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group = group
        self._device = device
        self.index = dist.get_rank(group)

    def sum(self, counts: Tensor) -> Tensor:
        total = counts.to(self._device)
        dist.all_reduce(total, group=self._group)
        return total.cpu()

    def gather(self, counts: Tensor) -> Tensor:
        own = counts.to(self._device)
        found = [torch.empty_like(own) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(found, own, group=self._group)
        return torch.stack(found).cpu()


def sharers_of(weights: Mapping[str, Any]) -> Ranks:
    """The ranks among which these weights are divided.

    Raises: PolicyError if they are not all divided among the same ranks.
    """
    found = {name: _shard_dim(weight, repr(name)) if is_sharded(weight) else None for name, weight in weights.items()}
    groups = {name: weights[name].device_mesh.get_group(dim) for name, dim in found.items() if dim is not None}
    if not groups:
        return ALONE
    first = next(iter(groups.values()))
    for name in weights:
        if groups.get(name) is not first and (name not in groups or groups[name].group_name != first.group_name):
            raise PolicyError(f"{name!r} is not divided among the same ranks as other masked weights; apply fully_shard to all of them")
    mesh: Any = weights[next(iter(groups))].device_mesh
    return Sharers(
        first, torch.device(mesh.device_type, torch.cuda.current_device()) if mesh.device_type == "cuda" else torch.device("cpu")
    )


def are_several() -> bool:
    """Whether other processes take part in this training, as far as torch.distributed knows."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def require_same_masks(masks: Mapping[str, int], steps: Sequence[int], when: str) -> None:
    """Compares what all processes say of their masks.

    Args:
        masks: a number for each mask, see ``fingerprint``. steps: how many each regime has taken.
        when: for the message.

    Raises: PolicyError naming the ranks and masks that differ from rank 0.
    """
    own = [len(masks), *steps, *masks.values()]
    cuda = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    length = torch.tensor([len(own)], dtype=torch.int64, device=device)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    if len({int(item) for item in lengths}) > 1:
        raise PolicyError(
            f"ranks compiled with different policies {when}: they hold {[int(item) - 1 for item in lengths]} masks and counters"
        )
    sent = torch.tensor(own, dtype=torch.int64, device=device)
    rows = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, sent)
    table = torch.stack(rows).cpu()
    different = (table != table[0]).any(1).nonzero().squeeze(1).tolist()
    if not different:
        return
    columns = (table != table[0]).any(0).nonzero().squeeze(1).tolist()
    names = list(masks)
    places = [repr(names[column - 1 - len(steps)]) for column in columns if column > len(steps)]
    what = f"the masks of {', '.join(places[:3])}{' and others' if len(places) > 3 else ''}" if places else "the number of steps taken"
    raise PolicyError(
        f"ranks disagree {when}: {what} on rank{'s' * (len(different) > 1)} {', '.join(map(str, different))} differ from those on rank 0. "
        "Give every rank the same policy and the same checkpoint, and let gradients be reduced over all of them "
        "(DistributedDataParallel, fully_shard); processes that train different models pass attach(..., compare_ranks=False)"
    )


def fingerprint(mask: Tensor, kept: int) -> int:
    """What ranks compare of a mask: a hash, the same for every memory format; of a sharded one, whose parts differ, what it keeps."""
    return kept if is_sharded(mask) else zlib.crc32(mask.cpu().contiguous().numpy().data)
