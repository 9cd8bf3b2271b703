"""Weights of an ONNX graph as SparseTensorProto: COO with linearised, sorted int64 indices, where that is the smaller form.

Two places can hold one. A ``Constant`` node with ``sparse_value`` passes every check of onnx and is understood by every runtime that
knows opset 11. ``graph.sparse_initializer`` says more plainly what it is, but onnx's type inference takes it for a sparse tensor at the
operator that reads it and refuses that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

INDEX_BYTES = 8
OVERHEAD_BYTES = 96
SMALLEST_ELEMENTS = 256
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}


@dataclass(frozen=True)
class Stored:
    """How a weight is stored: ``form`` is "sparse" or "dense"; ``kept``, the elements that count as kept."""

    form: str
    kept: int


def make_sparse(
    model: Any, kept: Mapping[str, np.ndarray[Any, Any]], candidates: Mapping[str, int], place: str, budget: int | None = None
) -> dict[str, Stored]:
    """Turns weights into sparse tensors where they take fewer bytes so, in place.

    Args:
        model: a ModelProto whose weights are dense initializers.
        kept: bool for each element, for weights that a technique has made sparse: these positions are stored, zeros among them too.
        candidates: further initializers that may be stored sparse, with their number of elements; of these, what is not +0.0 is stored.
        place: "constant" or "initializer".
        budget: bytes that all sparse tensors together may take; the largest savings come first. None: no limit.
    """
    graph = model.graph
    found: dict[str, Stored] = {}
    chosen: list[tuple[int, Any, np.ndarray[Any, Any]]] = []
    for tensor in graph.initializer:
        size = _SIZES.get(tensor.data_type)
        if size is None or (tensor.name not in kept and candidates.get(tensor.name, 0) < SMALLEST_ELEMENTS):
            continue
        values = bits_of(tensor, size)
        if tensor.name in kept:
            positions = np.flatnonzero(kept[tensor.name].reshape(-1))
            found[tensor.name] = Stored("dense", len(positions))
        else:
            if np.count_nonzero(values) * (size + INDEX_BYTES) >= values.nbytes:
                continue
            positions = np.flatnonzero(values)
        saved = values.nbytes - (len(positions) * (size + INDEX_BYTES) + OVERHEAD_BYTES)
        if saved > 0:
            chosen.append((saved, tensor, positions))
    made = {}
    for saved, tensor, positions in sorted(chosen, key=lambda item: -item[0]):
        needed = len(tensor.raw_data) - saved
        if budget is not None:
            if needed > budget:
                continue
            budget -= needed
        made[tensor.name] = _sparse_tensor(tensor, positions)
        found[tensor.name] = Stored("sparse", len(positions))
    _put(graph, made, place)
    return found


def bits_of(tensor: Any, size: int) -> np.ndarray[Any, Any]:
    """The elements of a dense TensorProto as unsigned integers of their size, flat; complex128 as bytes of 16."""
    return np.frombuffer(tensor.raw_data, dtype={1: "u1", 2: "u2", 4: "u4", 8: "u8"}.get(size, f"V{size}"))


def _sparse_tensor(tensor: Any, positions: np.ndarray[Any, Any]) -> Any:
    from onnx import TensorProto, helper

    values = bits_of(tensor, _SIZES[tensor.data_type])[positions]
    held = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[len(positions)], raw_data=values.tobytes())
    at = TensorProto(data_type=TensorProto.INT64, dims=[len(positions)], raw_data=positions.astype("<i8").tobytes())
    return helper.make_sparse_tensor(held, at, list(tensor.dims))


def _put(graph: Any, made: Mapping[str, Any], place: str) -> None:
    """Replaces dense initializers by sparse tensors."""
    from onnx import helper

    dense = [tensor for tensor in graph.initializer if tensor.name not in made]
    order = [tensor.name for tensor in graph.initializer if tensor.name in made]
    _replace(graph.initializer, dense)
    if place == "initializer":
        graph.sparse_initializer.extend(made[name] for name in order)
        return
    nodes = []
    for name in order:
        made[name].values.name = ""
        nodes.append(helper.make_node("Constant", [], [name], name=f"{name}.sparse", sparse_value=made[name]))
    _replace(graph.node, [*nodes, *graph.node])


def _replace(field: Any, items: list[Any]) -> None:
    kept = list(items)
    del field[:]
    field.extend(kept)
