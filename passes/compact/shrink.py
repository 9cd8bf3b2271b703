"""Removes dead channels from the modules of a plain model, in place. Outputs stay the same up to rounding.

A channel goes when no reader misses it: each of them multiplies it with zeros, or it is a constant there, whose share moves to the reader's
bias. Where zeros are put around a constant, it is none at the border; then one constant channel stays and speaks for all of them, with
their weights, scaled, added to its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .channels import Array, ChannelMap, Reader


@dataclass(frozen=True)
class Shrunk:
    """The rows and columns of a module's weight that are left, as positions; None where all are."""

    rows: Array
    columns: Array | None


def shrink(channels: ChannelMap) -> dict[str, Shrunk]:
    """Removes what can be removed from the modules that the map holds. Returns what is left of each that has changed."""
    removed = _removable(channels)
    for reader in channels.readers:
        _keep_one_of(channels, reader.made, removed)
    for reader in channels.readers:
        if reader.padded and reader.read is not None:
            _keep_a_speaker(channels, reader, removed)
    if not removed:
        return {}
    gone = np.array(sorted(removed))
    changed: dict[str, Shrunk] = {}
    with torch.no_grad():
        for reader in channels.readers:
            columns = None if reader.read is None else ~np.isin(channels.roots(reader.read.ids), gone)
            rows = ~np.isin(channels.roots(reader.made), gone)
            if columns is not None and not columns.all():
                _move_constants(reader, columns)
            if not rows.all() or (columns is not None and not columns.all()):
                changed[reader.name] = _cut(reader.module, rows, columns)
        for name, module, ids in channels.per_channel:
            rows = ~np.isin(channels.roots(ids), gone)
            if not rows.all():
                changed[name] = _cut_per_channel(module, rows)
    return changed


def _removable(channels: ChannelMap) -> set[int]:
    """Roots of the channels that no reader misses: the largest set, found by removing more as long as rows go that read them."""
    fixed = channels.fixed()
    roots_made = {reader.name: channels.roots(reader.made) for reader in channels.readers}
    roots_read = {reader.name: channels.roots(reader.read.ids) for reader in channels.readers if reader.read is not None}
    every = {int(root) for roots in roots_made.values() for root in roots} - fixed
    removed: set[int] = set()
    while True:
        missed: set[int] = set()
        gone = np.array(sorted(removed), dtype=np.int64)
        for reader in channels.readers:
            if reader.read is None:
                continue
            weight = reader.module.weight.detach()
            rows = torch.from_numpy(~np.isin(roots_made[reader.name], gone)).to(weight.device)
            used = weight[rows].flatten(2).any(2).any(0) if weight.dim() > 2 else weight[rows].any(0)
            wanted = used.cpu().numpy() & np.isnan(reader.read.constant)
            missed.update(roots_read[reader.name][wanted].tolist())
        found = every - missed
        if found == removed:
            return removed
        removed = found


def _keep_one_of(channels: ChannelMap, ids: Array, removed: set[int]) -> None:
    """A tensor keeps a channel."""
    roots = channels.roots(ids)
    if len(roots) and all(int(root) in removed for root in roots):
        removed.discard(int(roots[0]))


def _told_constants(channels: ChannelMap, reader: Reader, removed: set[int]) -> Array:
    """Which of the channels that a reader loses are constants other than 0 to it."""
    assert reader.read is not None
    lost = np.isin(channels.roots(reader.read.ids), np.array(sorted(removed), dtype=np.int64))
    weight = reader.module.weight.detach()
    used = weight.flatten(2).any(2).any(0).cpu().numpy()
    told: Array = lost & used & ~np.isnan(reader.read.constant) & (reader.read.constant != 0)
    return told


def _keep_a_speaker(channels: ChannelMap, reader: Reader, removed: set[int]) -> None:
    assert reader.read is not None
    told = _told_constants(channels, reader, removed)
    if not told.any():
        return
    constant, roots = reader.read.constant, channels.roots(reader.read.ids)
    stays = np.array([int(root) not in removed for root in roots])
    if (stays & ~np.isnan(constant) & (constant != 0)).any():
        return
    speaker = int(np.argmax(np.where(told, np.abs(constant), 0.0)))
    removed.discard(int(roots[speaker]))


def _move_constants(reader: Reader, columns: Array) -> None:
    """What the removed constants added to a reader's output goes to its bias, or to the channel that speaks for them."""
    assert reader.read is not None
    module, constant = reader.module, np.nan_to_num(reader.read.constant)
    lost = torch.from_numpy(np.where(columns, 0.0, constant)).to(module.weight.device)
    if not bool(lost.any()):
        return
    weight = module.weight.detach().double()
    shares = torch.tensordot(weight.movedim(1, -1), lost, dims=1)  # (out, ...)
    if reader.padded:
        if bool(shares.any()):
            speaker = int(np.argmax(np.where(columns, np.abs(constant), 0.0)))
            weight[:, speaker] += shares / constant[speaker]
            module.weight = _like(module.weight, weight)
        return
    added = shares.flatten(1).sum(1) if shares.dim() > 1 else shares
    if module.bias is not None:
        module.bias = _like(module.bias, module.bias.detach().double() + added)
    elif bool(added.any()):
        module.bias = nn.Parameter(added.to(module.weight.dtype), requires_grad=module.weight.requires_grad)


def _cut(module: Any, rows: Array, columns: Array | None) -> Shrunk:
    """Leaves these rows and columns of a convolution or linear layer."""
    kept, read = np.flatnonzero(rows), None if columns is None else np.flatnonzero(columns)
    weight = module.weight.detach()[torch.from_numpy(kept).to(module.weight.device)]
    if read is not None:
        weight = weight[:, torch.from_numpy(read).to(weight.device)]
    module.weight = _like(module.weight, weight.contiguous())
    if module.bias is not None:
        module.bias = _like(module.bias, module.bias.detach()[torch.from_numpy(kept).to(module.bias.device)])
    counts = ("in_features", "out_features") if isinstance(module, nn.Linear) else ("in_channels", "out_channels")
    setattr(module, counts[0], weight.shape[1])
    setattr(module, counts[1], weight.shape[0])
    return Shrunk(kept, read)


def _cut_per_channel(module: Any, rows: Array) -> Shrunk:
    """Leaves these channels of a batch norm or of a depthwise convolution."""
    kept = np.flatnonzero(rows)
    for name, parameter in list(module._parameters.items()):
        if parameter is not None:
            module._parameters[name] = _like(parameter, parameter.detach()[torch.from_numpy(kept).to(parameter.device)])
    for name, buffer in list(module._buffers.items()):
        if buffer is not None and buffer.dim() == 1:
            module._buffers[name] = buffer[torch.from_numpy(kept).to(buffer.device)]
    counts = ("num_features",) if hasattr(module, "num_features") else ("in_channels", "out_channels", "groups")
    for name in counts:
        setattr(module, name, len(kept))
    return Shrunk(kept, None)


def _like(parameter: nn.Parameter, values: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(parameter.dtype), requires_grad=parameter.requires_grad)
