"""Constant folding and clean-up of an exported graph, which leaves parameters and buffers as they are, under their names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_DROPPED = "pkg."
_RULES = (
    "cast_cast_rule",
    "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule",
    "collapse_slice_rule",
    "collapse_slice2_rule",
    "materialize_reshape_shape_rule",
    "no_op_cast_rule",
    "no_op_expand_rule",
    "no_op_transpose_rule",
    "one_reshape_matmul_reshape_rule",
    "reshape_reshape_rule",
    "squeeze_reshape_1d_rule",
    "successive_clip_relu_rule",
    "successive_clip_rule",
    "successive_relu_clip_rule",
    "successive_relu_rule",
    "transpose_transpose_rule",
    "two_reshapes_matmul_reshape_rule",
    "unsqueeze_unsqueeze_rule",
)


def tidy(model: Any, names: Collection[str], vectors: Collection[str] = ()) -> dict[str, str]:
    """Folds constants and removes what computes nothing, in place.

    torch's own optimisation also folds batch norms into the weights before them, and parameters into what is computed from them;
    a file would then hold other weights than the model.

    Args:
        model: an ``onnx_ir.Model``.
        names: initializers that stay.
        vectors: those of them that may be merged with an equal one, as the statistics of untrained batch norms often are.

    Returns: for each merged initializer the one that stands for it.
    """
    import onnx_ir.passes.common as common
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common as rules

    def should_fold(node: Any) -> bool | None:
        return False if any(value is not None and value.name in names for value in node.inputs) else None

    chosen = [getattr(rules, name) for name in _RULES if hasattr(rules, name)]
    common.InlinePass()(model)
    for _ in range(2):
        folded = optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=should_fold)
        rewritten = rewriter.RewritePass(chosen)(model)
        common.RemoveUnusedNodesPass()(model)
        if not folded and not rewritten.modified:
            break
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.CommonSubexpressionEliminationPass()(model)
    merged = _merge_equal(model, {*model.graph.initializers} - {*names}) | _merge_equal(model, vectors)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)
    _forget_origins(model)
    return {name: first for name, first in merged.items() if name in names}


def _merge_equal(model: Any, names: Collection[str]) -> dict[str, str]:
    """Keeps one of the initializers of these names that are equal. Returns the name that stands for each of the others."""
    seen: dict[Any, Any] = {}
    merged = {}
    for name, value in list(model.graph.initializers.items()):
        if name not in names or value.is_graph_output():
            continue
        key = (value.const_value.dtype, tuple(value.const_value.shape.numpy()), value.const_value.tobytes())
        first = seen.setdefault(key, value)
        if first is not value:
            value.replace_all_uses_with(first)
            del model.graph.initializers[name]
            merged[name] = first.name
    return merged


def _forget_origins(model: Any) -> None:
    """Removes what torch notes of its own making: stack traces with the paths of this machine, scopes, signatures."""
    holders = [model, model.graph, *model.graph.all_nodes(), *model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        holders += node.outputs
    for holder in holders:
        for key in [key for key in holder.metadata_props if key.startswith(_DROPPED) or key == "namespace"]:
            del holder.metadata_props[key]
