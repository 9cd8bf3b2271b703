"""A finalised module without its dead filters and channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from fxsparse.passes.capture.before import leaving_no_trace
from fxsparse.passes.capture.capture import capture
from fxsparse.passes.compact.shrink import Shrunk, shrink
from fxsparse.passes.compact.walk import follow_channels

from ..errors import ExportError, TraceError
from .example import CallForm
from .finalize import FinalSite


@dataclass(frozen=True)
class Compacted:
    """A module, what is kept of each sparse site in it, and how many filters were removed, by layer."""

    module: nn.Module
    kept: dict[str, np.ndarray[Any, Any]]
    removed: dict[str, int]


def compacted(module: nn.Module, sites: Mapping[str, FinalSite], form: CallForm) -> Compacted:
    """The module with smaller layers, changed in place.

    Raises: ExportError if the model is not one graph, or does not run without the channels that seemed to be dead.
    """
    try:
        captured = capture(module, form.zeros(dynamic=False))
    except TraceError as error:
        raise ExportError(f"compact=True: {error}") from error
    if "" not in captured.forwards:
        raise ExportError(
            f"compact=True needs the model as one graph, to see what depends on a channel, and {type(module).__name__} keeps its Python: "
            f"{captured.left.get('', 'its forward is not captured')}; export it with compact=False"
        )
    channels = follow_channels(captured.forwards[""].variants[0].graph_module.graph, module)
    sizes = {reader.name: len(reader.made) for reader in channels.readers} | {name: len(ids) for name, _, ids in channels.per_channel}
    changed = shrink(channels)
    _require_running(module, form)
    kept = {name: _kept(module, site, changed) for name, site in sites.items()}
    filters = {name: found for name, found in changed.items() if not hasattr(module.get_submodule(name), "num_features")}
    removed = {name: sizes[name] - len(found.rows) for name, found in filters.items() if sizes[name] > len(found.rows)}
    return Compacted(module, kept, removed)


def _kept(module: nn.Module, site: FinalSite, changed: Mapping[str, Shrunk]) -> np.ndarray[Any, Any]:
    """What is kept of a site's weight, in its new shape."""
    kept = site.weight.kept.cpu().numpy()
    owner = site.names[0].rpartition(".")[0]
    found = changed.get(owner)
    if found is None:
        return kept
    kept = kept[found.rows]
    if found.columns is not None:
        kept = kept[:, found.columns]
    weight = module.get_parameter(site.names[0])
    left: np.ndarray[Any, Any] = kept | (weight.detach() != 0).cpu().numpy()
    return left


def _require_running(module: nn.Module, form: CallForm) -> None:
    """Runs the module on tensors without data."""
    args, kwargs = form.zeros(dynamic=False)
    try:
        with leaving_no_trace(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            module(*args, **kwargs)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"compact=True: {type(module).__name__} does not run without its dead channels ({reason}): its Python names numbers of "
            "channels; export it with compact=False"
        ) from error
