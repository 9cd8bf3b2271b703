"""Says on every node which module of the model it stands for, which line of the model made it, and which pass put it there.

The facts are ``module`` (a path from the model's root), ``line`` ("FILE:LINE: CODE", where it is known) and ``made_by`` (a pass's name,
on nodes that the model did not have). What a pass puts in the place of a node stands for that node's module and line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from . import meta
from .base import PassResult
from .capture.origin import place_of
from .saving.places import site_of


@dataclass(frozen=True)
class Origin:
    """Module and line of a node, and the pass that made it."""

    module: str
    line: str
    made_by: str = ""


def origins_of(gm: fx.GraphModule, path: str) -> dict[str, Origin]:
    """The origin of each node of a graph as it was captured, by the node's name. path: of the graph's module."""
    found = {}
    for node in gm.graph.nodes:
        module = site_of(node, path)
        if node.op == "get_attr":
            module = _join(path, str(node.target).rpartition(".")[0])
        found[node.name] = Origin(module, place_of(node.stack_trace))
    return found


def write_origins(gm: fx.GraphModule, before: Mapping[str, Origin], results: Sequence[PassResult]) -> None:
    """Writes the origin of each node to its facts, after all passes.

    Args:
        before: of the nodes that were captured. results: what the passes say they did.
    """
    known = dict(before)
    for result in results:
        for change in result.changes:
            named = (*change.removed, change.node, *change.rewired)
            source = next((known[name] for name in named if name in known and known[name].line), None)
            source = source or next((known[name] for name in named if name in known), None)
            for name in change.added:
                if source is not None and name not in before:
                    known.setdefault(name, Origin(source.module, source.line, result.name))
    nodes = list(gm.graph.nodes)
    for node in reversed(nodes):  # a read stands for what reads it first
        if node.name not in known:
            user = next((known[other.name] for other in node.users if other.name in known), Origin("", ""))
            known[node.name] = Origin(user.module, user.line, user.made_by or "inserted")
    for node in nodes:
        origin = known[node.name]
        facts = {"module": origin.module, "line": origin.line, "made_by": origin.made_by}
        meta.write(node, **{name: text for name, text in facts.items() if text or name == "module"})


def _join(path: str, inner: str) -> str:
    return f"{path}.{inner}" if path and inner else path or inner
