"""A compiled model made again from an exported file and a fresh model of the same architecture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ExportError
from ..policy import Policy
from .example import CallForm, call_form
from .read_back import OnnxFile

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel


def from_onnx(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    weights: bool = True,
    policy: Policy | None = None,
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
) -> CompiledModel:
    """``model`` compiled with the policy of an exported file, with its masks, thresholds, counters and weights.

    An exported file holds no weight that was dropped: after SWAT these are zeros here, and learn from there on.

    Args:
        path: a file that ``export_onnx`` wrote, with metadata.
        model: a fresh model of the exported one's architecture.
        weights: load the parameters and buffers too, into ``model``, which shares them; otherwise only policy, masks and counters.
        policy: instead of the file's, where that could not be saved (a criterion of one's own).
        example_inputs: as for ``fxs.compile``, where the file does not know them.

    Raises:
        ExportError: the file cannot be read, or does not fit the model.
        PolicyError: the policy cannot be applied to the model.
    """
    from ..compiler import compile

    file = OnnxFile(path)
    if file.facts.get("compact"):
        raise ExportError(f"{str(path)!r} was exported with compact=True, without the filters that were dead; no mask can be made of it")
    if weights and file.facts.get("folded"):
        raise ExportError(
            f"{str(path)!r} holds weights with the batch norms after them folded in, which cannot be told apart again; restore policy and "
            "masks alone with from_onnx(path, model, weights=False), or export without fold_norms"
        )
    if policy is None and "policy" not in file.facts:
        raise ExportError(
            f"{str(path)!r} holds no policy, since it has a criterion that is Python; pass it: from_onnx(path, model, policy=...)"
        )
    chosen = Policy.from_dict(file.facts["policy"], source=f"the policy in {str(path)!r}") if policy is None else policy
    known = CallForm.from_dict(file.facts["example"]) if file.facts.get("example") else None
    args, kwargs = call_form(example_inputs, known).zeros(dynamic=False) if example_inputs is not None or known is not None else ((), {})
    if weights:
        _require_fitting(file, model)
        with torch.no_grad():
            _load(file, model)
    compiled = compile(model, chosen, args, example_kwargs=kwargs)
    _restore_state(file, compiled)
    return compiled


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _require_fitting(file: OnnxFile, model: nn.Module) -> None:
    own = _tensors(model)
    for site, facts in file.sites.items():
        if site not in own:
            raise ExportError(f"{str(file.path)!r} has the weight {site!r}, and {type(model).__name__} has none of that name")
        shape = tuple(file.stored[facts.get("table", facts["initializer"])].dims)
        if shape != tuple(own[site].shape):
            raise ExportError(
                f"{site!r} has the shape {shape} in {str(file.path)!r} and {tuple(own[site].shape)} in {type(model).__name__}; "
                "make the model as the exported one was made"
            )


def _load(file: OnnxFile, model: nn.Module) -> None:
    """Copies every tensor of the file that has the name of a parameter or buffer.

    A shared parameter may be in the file twice, sparse for a contraction and dense for a table: it is filled once, from the dense one.
    """
    own = _tensors(model)
    merged = file.facts.get("merged", {})
    sparse = {facts["initializer"] for facts in file.sites.values()}
    own_sources = {name: merged.get(name, name) for name in own}
    sources = {site: facts.get("table", facts["initializer"]) for site, facts in file.sites.items()}
    sources.update({name: source for name, source in own_sources.items() if source in file.stored})
    filled: set[int] = set()
    for name, source in sorted(sources.items(), key=lambda item: item[1] in sparse):
        target = own[name]
        if id(target) not in filled:
            filled.add(id(target))
            target.copy_(_as_tensor(file.weight(source)).reshape(target.shape))


def _as_tensor(array: Any) -> torch.Tensor:
    if array.dtype.kind == "V" or array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


@torch.no_grad()
def _restore_state(file: OnnxFile, compiled: CompiledModel) -> None:
    own = compiled.fxsparse.state_dict()
    for name, value in file.facts.get("state", {}).items():
        if name in own and torch.tensor(value).shape == own[name].shape:
            own[name].copy_(torch.tensor(value, dtype=own[name].dtype))
    for site in compiled.masks:
        if site not in file.sites:
            raise ExportError(f"{str(file.path)!r} has no weight {site!r}, which the policy masks in {type(compiled._root).__name__}")
        kept = torch.from_numpy(file.kept(site))
        state = compiled.fxsparse.site(site)
        assert state is not None
        mask = state.get_buffer("mask")
        if kept.shape != mask.shape:
            raise ExportError(f"{site!r} has the shape {tuple(kept.shape)} in {str(file.path)!r} and {tuple(mask.shape)} in the model")
        mask.copy_(kept)
    compiled.fxsparse.forget_trust()
