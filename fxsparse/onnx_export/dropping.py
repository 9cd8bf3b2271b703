"""Top-K by threshold in standard ONNX operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .finalize import FinalSite


def threshold_of(final: FinalSite, data_type: int) -> np.ndarray[Any, Any]:
    """A site's threshold: float64 for weights of that type, float32 for all others."""
    from onnx import TensorProto

    return np.array(final.weight.threshold, dtype=np.float64 if data_type == TensorProto.DOUBLE else np.float32)


def dropping_nodes(weight: str, threshold: str | None, mask: str, out: str, data_type: int) -> list[Any]:
    """Nodes that compute ``out``: the weight where its magnitude reaches the threshold, 0 elsewhere.

    Args:
        threshold: None where the bool ``mask`` is there already; otherwise the nodes make it.
        data_type: of the weight, a TensorProto.DataType.
    """
    from onnx import TensorProto, helper

    nodes = []
    if threshold is not None:
        magnitude = f"{out}.magnitude"
        nodes.append(helper.make_node("Abs", [weight], [magnitude], name=magnitude))
        if data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            nodes.append(helper.make_node("Cast", [magnitude], [f"{magnitude}.float"], name=f"{magnitude}.float", to=TensorProto.FLOAT))
            magnitude = f"{magnitude}.float"
        nodes.append(helper.make_node("GreaterOrEqual", [magnitude, threshold], [mask], name=mask))
    zero = f"{out}.zero"
    nothing = helper.make_tensor("zero", data_type, [], [0.0])
    nodes.append(helper.make_node("Constant", [], [zero], name=zero, value=nothing))
    nodes.append(helper.make_node("Where", [mask, weight, zero], [out], name=out))
    return nodes
