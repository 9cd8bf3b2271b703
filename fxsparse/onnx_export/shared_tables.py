"""A weight that is sparse for a contraction and dense for a table (tied word vectors), stored once where twice would take more bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from .dropping import dropping_nodes, threshold_of

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel
    from .finalize import FinalSite


def share_tables(
    proto: Any, model: CompiledModel, final: Mapping[str, FinalSite], names: Mapping[str, str], settled: Collection[str]
) -> dict[str, str]:
    """Lets the graph compute a sparse weight that would be stored dense from the dense table that it is tied to, in place.

    The threshold is applied with standard operators, which a runtime folds when it loads the file.

    Args:
        settled: weights that stay as they are.

    Returns: the table of each weight that is computed so, by site.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    made, found = [], {}
    for site, name in names.items():
        table = _table(site, model, final, tensors)
        spec = model.swat.get(site)
        if table is None or name not in tensors or spec is None or spec.reduce_dims or name in settled:
            continue
        kind = tensors[name].data_type
        proto.graph.initializer.remove(tensors[name])
        proto.graph.initializer.append(numpy_helper.from_array(threshold_of(final[site], kind), name=f"{name}.threshold"))
        made += dropping_nodes(table, f"{name}.threshold", f"{name}.kept", name, kind)
        found[site] = table
    if made:
        nodes = [*made, *proto.graph.node]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
    return found


def _table(site: str, model: CompiledModel, final: Mapping[str, FinalSite], tensors: Mapping[str, Any]) -> str | None:
    """A name of the site's parameter under which the file holds it dense."""
    if site not in final:
        return None
    names = (site, *model.sites[site].aliases)
    return next((name for name in names if name in tensors and name not in final[site].names), None)
