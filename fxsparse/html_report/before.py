"""The same model before any pass: compiled again from its own Python, without a policy, on shapes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils import _pytree as pytree

from ..errors import FxSparseError
from ..onnx_export.example import CallForm, TensorForm
from ..onnx_export.finalize import without_graphs

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel


def before_of(compiled: CompiledModel) -> tuple[CompiledModel | None, str]:
    """The model before the passes, sharing all tensors with it; or None with the reason."""
    from ..compiler import compile

    if not compiled.report.changes:
        return None, "no pass changed a graph"
    example = compiled.example
    if example is None:
        return None, "the model was compiled without example inputs"
    args, kwargs = _forms(example)
    try:
        return compile(without_graphs(compiled._root), None, args, example_kwargs=kwargs, check_graphs=False), ""
    except FxSparseError as error:
        return None, f"the model cannot be captured again: {error}"


def _forms(example: CallForm) -> tuple[tuple[object, ...], dict[str, object]]:
    """The example's arguments as tensors without values."""

    def made(form: TensorForm) -> torch.Tensor:
        return torch.empty(form.shape, dtype=getattr(torch, form.dtype), device="meta")

    args, kwargs = pytree.tree_map_only(TensorForm, made, (example.args, example.kwargs))
    return args, kwargs
