"""``compiled.export_onnx``: finalise, lower, store sparse, annotate, write."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..errors import ExportError
from .annotate import annotate_nodes, contractions_of, put
from .compacting import Compacted, compacted
from .example import call_form
from .facts import (
    SiteFacts,
    cost_report,
    costs_by_site,
    model_facts,
    packed_positions,
    site_facts,
    state_of,
    with_thresholds,
)
from .finalize import Finalized, finalize
from .fold_norms import fold_norms_of
from .lower import lower, require_onnx
from .shared_tables import share_tables
from .sparse_tensors import choose_sparse, make_sparse
from .visible import show_nodes
from .write import LIMIT_BYTES, exceeds, require_writable, write

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel

PLACES = ("constant", "initializer")


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written.

    Attributes:
        path, size_bytes: of the file, the weights beside it included.
        stored: for each site that a technique makes sparse, "sparse" or "dense", the smaller form; or "shared", computed from the dense
            table that it is tied to.
        dynamic_batch: whether any batch size may be given.
        removed: channels that ``compact`` has removed, by layer.
        folded: batch norms that were folded into the convolutions before them.
    """

    path: Path
    size_bytes: int
    stored: Mapping[str, str]
    dynamic_batch: bool
    removed: Mapping[str, int]
    folded: int


def export_onnx(
    model: CompiledModel,
    path: str | os.PathLike[str],
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
    *,
    sparse: bool | str = True,
    metadata: bool = True,
    keep_nodes: bool = False,
    compact: bool = False,
    fold_norms: bool = False,
    opset: int | None = None,
    limit: int = LIMIT_BYTES,
) -> ExportResult:
    """Writes a compiled model as ONNX; see ``CompiledModel.export_onnx``."""
    if fold_norms and keep_nodes:
        raise ExportError("keep_nodes shows the model's own nodes, and fold_norms removes batch norms from among them; choose one")
    place = _place_of(sparse)
    require_onnx()
    target = require_writable(path)
    form = call_form(example_inputs, model.example)
    final = finalize(model, own_tensors=False, device="cpu")
    shrunk = compacted(final.module, final.sites, form) if compact else Compacted(final.module, _kept(final), {})
    lowered = lower(shrunk.module, form, opset=opset, model=type(model._root).__name__)
    proto = _as_proto(lowered.model)
    names = _initializers(model, final, proto)
    kept = {names[site]: mask for site, mask in shrunk.kept.items() if site in names}
    candidates = _candidates(shrunk.module)
    chosen = choose_sparse(proto, kept, candidates, limit // 2 if exceeds(proto, limit) else None) if place is not None else []
    folded = fold_norms_of(proto, candidates) if fold_norms else []
    values = {tensor.name: tensor for tensor in proto.graph.initializer}
    zeros = {site: _kept_zeros(values[names[site]], kept[names[site]]) for site in shrunk.kept if site in names}
    stored = make_sparse(proto, chosen, place) if place is not None else frozenset()
    tables = share_tables(proto, model, final.sites, names, {*stored, *folded}) if place is not None and not keep_nodes else {}
    if keep_nodes:
        consumers = show_nodes(proto, model, final.sites, shrunk.kept, names)
    else:
        consumers = {site: contractions_of(proto, name) for site, name in names.items()}
    if metadata:
        facts = {"merged": lowered.merged, "compact": dict(shrunk.removed), "folded": folded}
        extra = {"example": form.to_dict(), **{key: value or None for key, value in facts.items()}}
        described = _described(model, shrunk, names, stored, zeros, tables)
        _annotate(proto, model, final, described, consumers, extra)
    size = write(proto, target, limit=limit)
    forms = {site: "shared" if site in tables else _form(stored, names[site]) for site in shrunk.kept if site in names}
    return ExportResult(
        path=target, size_bytes=size, stored=forms, dynamic_batch=lowered.dynamic, removed=shrunk.removed, folded=len(folded)
    )


def _place_of(sparse: bool | str) -> str | None:
    if sparse is True:
        return PLACES[0]
    if sparse is False:
        return None
    if sparse not in PLACES:
        raise ExportError(f"sparse is {sparse!r}; expected True, False, or one of {', '.join(map(repr, PLACES))}")
    return sparse


def _kept(final: Finalized) -> dict[str, np.ndarray[Any, Any]]:
    return {name: site.weight.kept.cpu().numpy() for name, site in final.sites.items()}


def _as_proto(model: Any) -> Any:
    """As a ModelProto; weights say their own shape, and need no entry in value_info."""
    import onnx_ir

    proto = onnx_ir.serde.serialize_model(model)
    weights = {tensor.name for tensor in proto.graph.initializer}
    shapes = [info for info in proto.graph.value_info if info.name not in weights]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(shapes)
    return proto


def _initializers(model: CompiledModel, final: Finalized, proto: Any) -> dict[str, str]:
    """For each site the initializer that holds its weight: one of the names under which its contractions read it."""
    present = {tensor.name for tensor in proto.graph.initializer}
    found = {}
    for name, site in model.sites.items():
        read = final.sites[name].names if name in final.sites else (name, *site.aliases)
        own = [alias for alias in read if alias in present]
        if own:
            found[name] = own[0]
    return found


def _candidates(module: nn.Module) -> dict[str, int]:
    """Parameters of two dimensions or more that may be sparse by themselves."""
    return {name: tensor.numel() for name, tensor in module.named_parameters(remove_duplicate=False) if tensor.dim() > 1}


def _kept_zeros(tensor: Any, kept: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Positions of weights that are kept and zero, which a dense tensor does not tell from dropped ones."""
    from onnx import numpy_helper

    flat = kept.reshape(-1)
    return np.flatnonzero(flat & (numpy_helper.to_array(tensor).reshape(-1) == 0))


def _form(stored: Collection[str], name: str) -> str:
    return "sparse" if name in stored else "dense"


def _described(
    model: CompiledModel,
    shrunk: Compacted,
    names: Mapping[str, str],
    stored: Collection[str],
    zeros: Mapping[str, np.ndarray[Any, Any]],
    tables: Mapping[str, str],
) -> dict[str, SiteFacts]:
    """What the file says of each site."""
    found = {}
    for name, site in site_facts(model, names, shrunk).items():
        is_dense = name in zeros and name not in tables and _form(stored, names[name]) == "dense"
        packed = packed_positions(zeros[name]) if is_dense and len(zeros[name]) else None
        found[name] = replace(site, kept_zeros=packed, table=tables.get(name))
    return found


def _annotate(
    proto: Any,
    model: CompiledModel,
    final: Finalized,
    sites: Mapping[str, SiteFacts],
    consumers: Mapping[str, list[Any]],
    extra: Mapping[str, Any],
) -> None:
    cost = cost_report(model)
    annotate_nodes(sites, costs_by_site(model), cost.accelerator if cost else None, consumers)
    state = with_thresholds(state_of(model), final)
    put(proto, model_facts(model, sites, {**extra, "state": state}))
