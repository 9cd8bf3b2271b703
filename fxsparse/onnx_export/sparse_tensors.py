"""Weights of an ONNX graph as SparseTensorProto: COO with linearised, sorted int64 indices, where that is the smaller form.

Two places can hold one. A ``Constant`` node with ``sparse_value`` passes every check of onnx and is understood by every runtime that
knows opset 11. ``graph.sparse_initializer`` says more plainly what it is, but onnx's type inference takes it for a sparse tensor at the
operator that reads it and refuses that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

INDEX_BYTES = 8
OVERHEAD_BYTES = 96
SMALLEST_ELEMENTS = 256
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}


@dataclass(frozen=True)
class Choice:
    """A weight that takes ``saved`` bytes less as a sparse tensor of the elements at ``positions``, flat and sorted."""

    name: str
    positions: np.ndarray[Any, Any]
    saved: int


def choose_sparse(
    model: Any, kept: Mapping[str, np.ndarray[Any, Any]], candidates: Mapping[str, int], budget: int | None = None
) -> list[Choice]:
    """The weights that take fewer bytes as sparse tensors.

    Args:
        model: a ModelProto whose weights are dense initializers.
        kept: bool for each element, for weights that a technique has made sparse: these positions are stored, zeros among them too.
        candidates: further initializers that may be stored sparse, with their number of elements; of these, what is not +0.0 is stored.
        budget: bytes that all sparse tensors together may take; the largest savings come first. None: no limit.
    """
    found = []
    sizes = {}
    for tensor in model.graph.initializer:
        size = _SIZES.get(tensor.data_type)
        if size is None or (tensor.name not in kept and candidates.get(tensor.name, 0) < SMALLEST_ELEMENTS):
            continue
        values = bits_of(tensor, size)
        if tensor.name in kept:
            positions = np.flatnonzero(kept[tensor.name].reshape(-1))
        elif np.count_nonzero(values) * (size + INDEX_BYTES) < values.nbytes:
            positions = np.flatnonzero(values)
        else:
            continue
        sizes[tensor.name] = len(positions) * (size + INDEX_BYTES) + OVERHEAD_BYTES
        if sizes[tensor.name] < values.nbytes:
            found.append(Choice(tensor.name, positions, values.nbytes - sizes[tensor.name]))
    found.sort(key=lambda choice: -choice.saved)
    if budget is None:
        return found
    within = []
    for choice in found:
        if sizes[choice.name] <= budget:
            budget -= sizes[choice.name]
            within.append(choice)
    return within


def make_sparse(model: Any, chosen: Sequence[Choice], place: str) -> frozenset[str]:
    """Stores weights as sparse tensors, in place. Returns their names.

    Args:
        place: "constant" or "initializer".
    """
    _replace(model.graph, {choice.name: choice.positions for choice in chosen}, place)
    return frozenset(choice.name for choice in chosen)


def bits_of(tensor: Any, size: int) -> np.ndarray[Any, Any]:
    """The elements of a dense TensorProto as unsigned integers of their size, flat; complex128 as bytes of 16."""
    return np.frombuffer(tensor.raw_data, dtype={1: "u1", 2: "u2", 4: "u4", 8: "u8"}.get(size, f"V{size}"))


def _replace(graph: Any, made: Mapping[str, np.ndarray[Any, Any]], place: str) -> None:
    """Replaces dense initializers by sparse tensors. They are filled where they stand: a message that is put into another is copied."""
    from onnx import AttributeProto

    for tensor in graph.initializer:
        if tensor.name not in made:
            continue
        if place == "initializer":
            _fill(graph.sparse_initializer.add(), tensor, made[tensor.name], tensor.name)
            continue
        node = graph.node.add(op_type="Constant", name=f"{tensor.name}.sparse", output=[tensor.name])
        attribute = node.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
        _fill(attribute.sparse_tensor, tensor, made[tensor.name], "")
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in made:
            del graph.initializer[index]
    graph.node.sort(key=lambda node: not (node.op_type == "Constant" and node.output[0] in made))


def _fill(sparse: Any, tensor: Any, positions: np.ndarray[Any, Any], name: str) -> None:
    from onnx import TensorProto

    values, indices = sparse.values, sparse.indices
    values.name, values.data_type, indices.data_type = name, tensor.data_type, TensorProto.INT64
    values.dims.append(len(positions))
    indices.dims.append(len(positions))
    values.raw_data = bits_of(tensor, _SIZES[tensor.data_type])[positions].tobytes()
    indices.raw_data = positions.astype("<i8", copy=False).tobytes()
    sparse.dims.extend(tensor.dims)
