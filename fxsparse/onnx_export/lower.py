"""A plain module as standard ONNX operators, through torch's exporter, with the names of parameters kept."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxsparse.passes.capture.before import leaving_no_trace

from ..errors import ExportError
from .example import CallForm
from .tidy import tidy

NEEDED = ("onnx", "onnxscript")
BATCH = "batch"
_DEEPEST_CHAIN = 8


@dataclass(frozen=True)
class Lowered:
    """An ``onnx_ir.Model``, whether its batch size is free, and the parameters that another, equal one stands for."""

    model: Any
    dynamic: bool
    merged: dict[str, str]


def require_onnx(*needed: str) -> None:
    """Raises ExportError naming the extra, if a package that export needs is not installed."""
    missing = [name for name in needed or NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{' and '.join(missing)} not installed; ONNX files need the extra: pip install 'fxsparse[onnx]'")


def lower(module: nn.Module, form: CallForm, *, opset: int | None, model: str) -> Lowered:
    """The module as an ``onnx_ir.Model``. Nothing is computed on real data.

    Args:
        module: plain, in eval mode, on the CPU. opset: of ONNX's own domain; None takes torch's choice.
        model: what the model is called in errors.

    Raises:
        ExportError: the model's Python cannot be captured whole, or ONNX lacks an operator.
    """
    with _quiet():
        exported, dynamic = _captured(module, form, model)
        try:
            program: Any = torch.onnx.export(exported, dynamo=True, verbose=False, optimize=False, opset_version=opset)
        except (torch.onnx.errors.OnnxExporterError, ValueError) as error:
            raise ExportError(_conversion_problem(exported, error, model)) from error
        found = program.model
        _name_batch(found)
        tensors = _tensors(module)
        merged = tidy(found, tensors, [name for name, tensor in tensors.items() if tensor.dim() == 1])
    return Lowered(found, dynamic, merged)


@contextmanager
def _quiet() -> Iterator[None]:
    """Random states are put back, nothing is warned of, and no gradient is wanted."""
    with leaving_no_trace(), torch.no_grad():
        yield


def _captured(module: nn.Module, form: CallForm, model: str) -> tuple[torch.export.ExportedProgram, bool]:
    """The module under torch.export: with a batch size of any value, or of one value where its Python allows no other."""
    first: Exception | None = None
    for batch in (torch.export.Dim(BATCH), torch.export.Dim.AUTO, None):
        args, kwargs = form.zeros(dynamic=batch is not None)
        shapes = None if batch is None else _by_argument(module, form, batch)
        try:
            exported = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            first = first or error
            continue
        return exported, batch is not None and _has_free_size(exported)
    assert first is not None
    raise ExportError(
        f"{model} cannot be exported: torch.export does not capture its forward whole: {_first_line(first)}{_place(str(first))}. "
        "A graph can hold no branch on data, and nothing that Python alone does; rewrite that place (torch.where, torch.cond), or export "
        "the part of the model around it"
    ) from first


def _name_batch(model: Any) -> None:
    """Calls the free size of the inputs by its name; torch's exporter gives it the number of a symbol."""
    import onnx_ir as ir

    free = [str(dim.value) for value in model.graph.inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)]
    if not free or len(set(free)) > 1:
        return
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            named = [re.sub(rf"\b{free[0]}\b", BATCH, str(d.value)) if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
            value.shape = ir.Shape(named)


def _by_argument(module: nn.Module, form: CallForm, batch: Any) -> Any:
    args, kwargs = form.shapes(batch)
    return (*args, *kwargs.values()) if not kwargs else _named(module, args, kwargs)


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    import inspect

    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _has_free_size(exported: torch.export.ExportedProgram) -> bool:
    inputs = [node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"]
    return any(isinstance(size, torch.SymInt) for value in inputs if isinstance(value, torch.Tensor) for size in value.shape)


def _conversion_problem(exported: torch.export.ExportedProgram, error: Exception, model: str) -> str:
    chain: list[str] = []
    current: BaseException | None = error
    while current is not None and len(chain) < _DEEPEST_CHAIN:
        chain.append(str(current))
        current = current.__cause__ or current.__context__
    text = "\n".join(chain)
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'\)>", text)
    failed = re.search(r"target=torch\.ops\.([\w.]+)\]", text)
    if missing is None and failed is None:
        return f"{model} cannot be exported: torch's ONNX exporter says: {_first_line(error)}"
    operator = f"{missing[1]}.{missing[2]}" if missing else failed[1] if failed else ""
    named = re.search(r"Error when translating node %(\w+)", text)
    place = _line_of(exported, operator)
    what = "has no counterpart in ONNX" if missing else f"cannot be converted to ONNX ({_first_line(chain[-1])})"
    node = f" (node {named[1]!r})" if named else ""
    return f"{model} cannot be exported: the operator {operator}{node} {what}{place}; replace it by operators that ONNX has"


def _line_of(exported: torch.export.ExportedProgram, operator: str) -> str:
    """Where the model calls an operator: it may come from another one by decomposition."""
    try:
        graphs = [exported.graph, exported.run_decompositions().graph]
    except Exception:  # only the place in a message is lost
        graphs = [exported.graph]
    for graph in graphs:
        for node in graph.nodes:
            if node.op == "call_function" and str(node.target) == operator:
                return _place(node.meta.get("stack_trace") or "")
    return ""


def _place(trace: str) -> str:
    """The innermost line of a stack trace that is not torch's own, as "at FILE:LINE: CODE"."""
    lines = re.findall(r'File "([^"]+)", line (\d+)[^\n]*\n\s+([^\n]+)', trace)
    own = [found for found in lines if "/torch/" not in found[0]] or lines
    return f", at {own[-1][0]}:{own[-1][1]}: {own[-1][2].strip()}" if own else ""


def _first_line(error: object) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}
