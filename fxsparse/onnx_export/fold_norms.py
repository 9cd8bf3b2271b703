"""Batch norms folded into the convolutions before them, as torch's own exporter does: y = s (w * x + b - mean) + beta, s = gamma / std."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

_OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1}
_EPSILON = 1e-5
_FLOATS = (1, 10, 11, 16)


def fold_norms_of(model: Any, among: Collection[str]) -> list[str]:
    """Folds batch norms, in place; weights keep their names.

    Args:
        model: a ModelProto with weights as dense initializers.
        among: weights that may be changed.

    Returns: the weights changed.
    """
    return _fold(model.graph, _foldable(model.graph, among))


def _foldable(graph: Any, among: Collection[str]) -> list[tuple[Any, Any]]:
    """Convolutions whose dense weight nothing else reads, each with the batch norm that alone reads its output."""
    dense = {tensor.name: tensor for tensor in graph.initializer}
    reads = Counter(_read_names(graph))
    reads.update(value.name for value in graph.output)
    makers = {node.output[0]: node for node in graph.node if node.op_type in _OUTPUT_AXIS and node.domain == ""}
    found = []
    for node in graph.node:
        if node.op_type != "BatchNormalization" or len(node.output) != 1 or _attribute(node, "training_mode", 0):
            continue
        maker = makers.get(node.input[0])
        if maker is None or reads[node.input[0]] != 1 or reads[maker.input[1]] != 1 or maker.input[1] not in among:
            continue
        vectors, bias = node.input[1:5], [name for name in maker.input[2:3] if name]
        if any(name not in dense for name in (*vectors, *bias, maker.input[1])) or dense[maker.input[1]].data_type not in _FLOATS:
            continue
        if maker.op_type == "ConvTranspose" and _attribute(maker, "group", 1) != 1:
            continue
        found.append((maker, node))
    return found


def _fold(graph: Any, chosen: Collection[tuple[Any, Any]]) -> list[str]:
    dense = {tensor.name: tensor for tensor in graph.initializer}
    changed, renamed = [], {}
    for convolution, norm in chosen:
        name = convolution.input[1]
        axis = _OUTPUT_AXIS[convolution.op_type]
        scale, offset = _scale_and_offset(convolution, norm, dense)
        weight = _array(dense[name]).astype("f8")
        _set(dense[name], weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]), weight.shape)
        bias = graph.initializer.add(name=f"{name}.folded_bias", data_type=dense[name].data_type)
        _set(bias, offset, offset.shape)
        del convolution.input[2:]
        convolution.input.append(bias.name)
        renamed[convolution.output[0]] = norm.output[0]
        changed.append(name)
    _remove_norms(graph, renamed)
    return changed


def _remove_norms(graph: Any, renamed: dict[str, str]) -> None:
    """The convolutions take over their norms' outputs; what only the norms have read goes."""
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type == "BatchNormalization" and node.input[0] in renamed:
            del graph.node[index]
        elif node.op_type in _OUTPUT_AXIS and node.output[0] in renamed:
            node.output[0] = renamed[node.output[0]]
    read = {*_read_names(graph), *(value.name for value in graph.output)}
    _remove(graph.initializer, {tensor.name for tensor in graph.initializer} - read)
    _remove(graph.value_info, renamed)


def _remove(entries: Any, names: Collection[str]) -> None:
    for index in reversed(range(len(entries))):
        if entries[index].name in names:
            del entries[index]


def _scale_and_offset(convolution: Any, norm: Any, dense: dict[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """gamma / std, and the bias of the folded convolution, both float64 of the shape (output channels,)."""
    gamma, beta, mean, variance = (_array(dense[name]).astype("f8") for name in norm.input[1:5])
    scale = gamma / np.sqrt(variance + _attribute(norm, "epsilon", _EPSILON))
    own = _array(dense[convolution.input[2]]).astype("f8") if len(convolution.input) > 2 and convolution.input[2] else 0.0
    return scale, beta + (own - mean) * scale


def _array(tensor: Any) -> np.ndarray[Any, Any]:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _set(tensor: Any, values: np.ndarray[Any, Any], shape: tuple[int, ...]) -> None:
    from onnx import helper, numpy_helper

    made = numpy_helper.from_array(np.ascontiguousarray(values.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type))), tensor.name)
    tensor.raw_data = made.raw_data
    del tensor.dims[:]
    tensor.dims.extend(shape)


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)


def _read_names(graph: Any) -> Iterator[str]:
    """Every name that a node reads, those in branches and loops too."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                yield from _read_names(inner)
