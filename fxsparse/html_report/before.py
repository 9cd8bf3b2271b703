"""The same model before any pass: compiled again from its own Python, without a policy, on shapes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses import FakeTensorMode
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
    args, kwargs = _like(example, compiled)
    try:
        return compile(without_graphs(compiled._root), None, args, example_kwargs=kwargs, check_graphs=False), ""
    except FxSparseError as error:
        return None, f"the model cannot be captured again: {error}"


def _like(example: CallForm, compiled: CompiledModel) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example's arguments again: tensors of the same form, fake ones, since nothing is to read their values."""
    device = next((parameter.device for parameter in compiled.parameters()), torch.device("cpu"))
    root = compiled.graphs.get("")
    seen = [node.meta.get("val") for node in root.graph.nodes if node.op == "placeholder"] if root is not None else []
    known = iter(seen if len(seen) == len(example.forms) else [])

    def made(form: TensorForm) -> torch.Tensor:
        dtype, was = getattr(torch, form.dtype), next(known, None)
        if isinstance(was, torch.Tensor) and tuple(was.shape) == form.shape:
            return torch.empty_strided(form.shape, was.stride(), dtype=dtype, device=device, requires_grad=was.requires_grad)
        return torch.empty(form.shape, dtype=dtype, device=device)

    with FakeTensorMode():
        args, kwargs = pytree.tree_map_only(TensorForm, made, (example.args, example.kwargs))
    return args, kwargs
