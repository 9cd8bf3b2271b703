"""What fxsparse inserts, visible in the file: functions of the domain "fxsparse" with standard operators inside.

    weight, threshold -> fxsparse.sparsify -> fxsparse.swat_convolution -> ...       SWAT by elements
    weight, mask -> fxsparse.sparsify_structures -> fxsparse.swat_convolution -> ...  SWAT by kernels or filters
    weight, mask -> fxsparse.masked_weight -> Conv -> ...                             masks

A viewer shows them, and a runtime that knows none of them inlines their bodies. The weights are the sparse ones already, which each of
these functions leaves as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .annotate import contractions_of
from .dropping import dropping_nodes, threshold_of
from .facts import dumps

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel
    from .finalize import FinalSite

DOMAIN = "fxsparse"
_VERSION = 1
_WRAPPED = {
    "Conv": "swat_convolution",
    "ConvTranspose": "swat_convolution",
    "Gemm": "swat_linear",
    "MatMul": "swat_linear",
    "Einsum": "swat_einsum",
}


def show_nodes(
    proto: Any, model: CompiledModel, final: Mapping[str, FinalSite], kept: Mapping[str, np.ndarray[Any, Any]], names: Mapping[str, str]
) -> dict[str, list[Any]]:
    """Inserts the functions and calls them, in place. Returns the contractions of each site.

    Args:
        kept: what is kept of each sparse site's weight. names: the initializer of each site.
    """
    made, functions, renamed = [], _Functions(proto), {}
    types = _types(proto)
    for site, name in names.items():
        if site not in kept:
            continue
        by_threshold = site not in model.masks and not model.swat[site].reduce_dims
        function = "sparsify" if by_threshold else "masked_weight" if site in model.masks else "sparsify_structures"
        second = _second_input(proto, name, final[site], kept[site], by_threshold, types[name])
        renamed[name] = f"{name}.{function}"
        made.append(_call(functions.sparsifying(function, types[name]), [name, second], renamed[name], site))
    _rewire(proto.graph, made, renamed)
    found = {site: contractions_of(proto, renamed.get(name, name)) for site, name in names.items()}
    for site in model.swat:
        for node in found.get(site, ()):
            if node.op_type in _WRAPPED and node.domain == "":
                functions.wrap(node)
    opset = proto.opset_import.add()
    opset.domain, opset.version = DOMAIN, _VERSION
    return found


def _types(proto: Any) -> dict[str, int]:
    """The type of each weight, dense or sparse."""
    found = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    found.update({tensor.values.name: tensor.values.data_type for tensor in proto.graph.sparse_initializer})
    for node in proto.graph.node:
        if node.op_type == "Constant":
            sparse = [item.sparse_tensor.values.data_type for item in node.attribute if item.name == "sparse_value"]
            found.update(dict.fromkeys(node.output, sparse[0]) if sparse else {})
    return found


def _second_input(proto: Any, name: str, final: FinalSite, kept: np.ndarray[Any, Any], by_threshold: bool, data_type: int) -> str:
    from onnx import numpy_helper

    if by_threshold:
        value, title = threshold_of(final, data_type), f"{name}.threshold"
    else:
        value, title = _smallest_broadcast(kept), f"{name}.mask"
    proto.graph.initializer.append(numpy_helper.from_array(value, name=title))
    return title


def _smallest_broadcast(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The mask with size 1 along every dimension in which it does not change."""
    for dim in range(mask.ndim):
        first = mask.take([0], axis=dim) if mask.shape[dim] else mask
        if mask.shape[dim] > 1 and bool((mask == first).all()):
            mask = first
    return np.ascontiguousarray(mask)


def _call(function: str, inputs: list[str], output: str, site: str) -> Any:
    from onnx import helper

    node = helper.make_node(function, inputs, [output], name=output, domain=DOMAIN)
    for key, value in (("site", site), ("role", "sparse_weight")):
        entry = node.metadata_props.add()
        entry.key, entry.value = f"{DOMAIN}.{key}", value if isinstance(value, str) else dumps(value)
    return node


def _rewire(graph: Any, made: list[Any], renamed: Mapping[str, str]) -> None:
    """Puts the calls in front of everything that computes, and lets the readers of the weights read their results."""
    nodes = list(graph.node)
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    start = next((index for index, node in enumerate(nodes) if node.op_type != "Constant"), len(nodes))
    del graph.node[:]
    graph.node.extend([*nodes[:start], *made, *nodes[start:]])


class _Functions:
    """The model-local functions, each one added once."""

    def __init__(self, proto: Any) -> None:
        self._proto = proto
        self._opsets = [opset for opset in proto.opset_import if opset.domain == ""]
        self._wrapped: dict[Any, str] = {}
        self._known: set[str] = set()

    def sparsifying(self, base: str, data_type: int) -> str:
        """The name of the function that drops what a threshold (or a mask) drops of weights of a type; made if there is none yet."""
        from onnx import TensorProto

        name = base if data_type == TensorProto.FLOAT else f"{base}_{TensorProto.DataType.Name(data_type).lower()}"
        if name not in self._known:
            self._known.add(name)
            by_threshold = base == "sparsify"
            nodes = dropping_nodes("weight", "threshold" if by_threshold else None, "mask", "sparse_weight", data_type)
            self._add(name, ["weight", "threshold" if by_threshold else "mask"], ["sparse_weight"], nodes, [])
        return name

    def wrap(self, node: Any) -> None:
        """Turns a contraction into a call of a function that does what it did."""
        from onnx import AttributeProto, NodeProto

        attributes = sorted((attribute.name, attribute.type) for attribute in node.attribute)
        key = (node.op_type, tuple(attributes), len(node.input))
        if key not in self._wrapped:
            base, count = _WRAPPED[node.op_type], sum(name.startswith(_WRAPPED[node.op_type]) for name in self._wrapped.values())
            self._wrapped[key] = name = base if count == 0 else f"{base}_{count + 1}"
            inputs = ["x", "sparse_weight", "bias"][: len(node.input)]
            body = NodeProto(op_type=node.op_type, input=inputs, output=["out"])
            for title, kind in attributes:
                body.attribute.append(AttributeProto(name=title, type=kind, ref_attr_name=title))
            self._add(name, inputs, ["out"], [body], [title for title, _ in attributes])
        node.op_type, node.domain = self._wrapped[key], DOMAIN

    def _add(self, name: str, inputs: list[str], outputs: list[str], nodes: list[Any], attributes: list[str]) -> None:
        from onnx import helper

        self._proto.functions.append(helper.make_function(DOMAIN, name, inputs, outputs, nodes, self._opsets, attributes))
