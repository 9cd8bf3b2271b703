"""A compiled model as a plain module: the model's own Python, with the weights that eval mode multiplies with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fxsparse.passes.capture.clone import clone_modules
from fxsparse.passes.capture.graph_forward import GraphForward
from fxsparse.passes.final_weights import FinalWeight, final_weight
from fxsparse.passes.masks.specs import MaskSpec
from fxsparse.passes.specs import SwatSpec
from fxsparse.passes.state import STATE, SiteState
from fxsparse.passes.weight_reads import weight_reads

from ..errors import ExportError
from ..ranks import is_sharded, whole

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel


@dataclass(frozen=True)
class FinalSite:
    """A sparse weight of a finalised model: the site, the names that now hold the sparse weight, and the weight."""

    site: str
    names: tuple[str, ...]
    weight: FinalWeight


@dataclass(frozen=True)
class Finalized:
    """A plain module, in eval mode, and its sparse weights by site."""

    module: nn.Module
    sites: dict[str, FinalSite]


def finalize(model: CompiledModel, *, own_tensors: bool = True, device: str | None = None) -> Finalized:
    """The model without fxsparse; the compiled one stays as it is.

    Args:
        own_tensors: copy the tensors that are not sparsified; otherwise they are the model's own.
        device: where the tensors go; None leaves them where they are. A weight that is sharded over ranks is gathered.

    Raises:
        ExportError: a weight is read sparse and dense under one name.
        NumericalError: a weight holds NaN or inf, so that no threshold can be selected.
    """
    sites = _final_sites(model)
    by_name = {name: site for site in sites.values() for name in site.names}
    module = without_graphs(model._root)
    made: dict[str, nn.Parameter] = {}
    for name, site in by_name.items():
        owner, _, attribute = name.rpartition(".")
        holder = module.get_submodule(owner)
        if site.site not in made:
            original = holder._parameters[attribute]
            assert original is not None
            made[site.site] = nn.Parameter(site.weight.values, requires_grad=original.requires_grad)
        holder._parameters[attribute] = made[site.site]
    fresh = {id(parameter) for parameter in made.values()}
    module = clone_modules(module, _converter(fresh, own_tensors, device))
    module.eval()
    return Finalized(module, sites)


def _final_sites(model: CompiledModel) -> dict[str, FinalSite]:
    reads = weight_reads(model._root, model._forwards)
    parameters = dict(model._root.named_parameters(remove_duplicate=False))
    found = {}
    for name in model.plan:
        state, site = model.fxsparse.site(name), model.sites[name]
        if state is None:
            continue
        swat, mask = model.swat.get(name), model.masks.get(name)
        names = tuple(alias for alias in (name, *site.aliases) if reads.is_sparse(alias))
        for alias in names:
            if alias in reads.dense:
                raise ExportError(
                    f"{alias!r} is sparse where its contraction reads it and dense for {reads.dense[alias]}, which a plain module with one "
                    "weight of that name cannot be; give that reader a parameter of its own (the same one, under another name), or exclude "
                    f"the site (exclude=({name!r},))"
                )
        weight = _gathered_weight(parameters[name], state, mask, swat) if names else None
        if weight is not None:
            found[name] = FinalSite(name, names, weight)
    return found


def _gathered_weight(weight: nn.Parameter, state: SiteState, mask: MaskSpec | None, swat: SwatSpec | None) -> FinalWeight | None:
    """The weight of a site; where rows are sharded over ranks, all of them."""
    if mask is not None and is_sharded(state.get_buffer("mask")):
        gathered = whole(state.get_buffer("mask"))
        state = copy.copy(state)
        state._buffers = {**state._buffers, "mask": gathered}
    return final_weight(whole(weight.detach()), state, mask, swat)


def without_graphs(root: nn.Module) -> nn.Module:
    """A structural copy of the module tree that runs its own Python again."""
    module = clone_modules(root)
    for part in module.modules():
        if isinstance(part.__dict__.get("forward"), GraphForward):
            del part.__dict__["forward"]
        part.__dict__.pop(STATE, None)
    return module


def _converter(fresh: set[int], own_tensors: bool, device: str | None) -> Callable[[Tensor], Tensor]:
    def convert(tensor: Tensor) -> Tensor:
        made = whole(tensor.detach())
        if device is not None:
            made = made.to(device)
        if own_tensors and id(tensor) not in fresh and made.data_ptr() == tensor.data_ptr() and made.numel():
            made = made.clone()
        return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made

    return convert
