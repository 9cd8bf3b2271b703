"""What a graph was after its capture and after each pass, and what one pass changed in it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text
from torch import fx

from fxsparse.passes.graph_state import FrozenGraph, freeze, thaw

from .errors import FxSparseError
from .techniques import closest

CAPTURE = "capture"


@dataclass(frozen=True)
class Stage:
    """One graph after one pass.

    Attributes:
        name: of the pass, "capture" for the graph as it was captured. path: of the graph's module; "" is the root.
        variant: number of the graph among those of its module. code: readable Python of its forward.
        nodes: what each node computes from what, by its name.
    """

    name: str
    path: str
    variant: int
    code: str = field(repr=False)
    nodes: Mapping[str, str] = field(repr=False)
    frozen: FrozenGraph | str = field(repr=False)

    @classmethod
    def of(cls, name: str, path: str, variant: int, gm: fx.GraphModule) -> Stage:
        """A graph as it is now."""
        nodes = {node.name: f"{node.op} {node.target} {node.args} {node.kwargs}" for node in gm.graph.nodes}
        frozen: FrozenGraph | str
        try:
            frozen = freeze(gm.graph)
        except FxSparseError as error:
            frozen = str(error)
        return cls(name, path, variant, readable(gm.code), nodes, frozen)

    def graph(self) -> fx.Graph:
        """The graph as it was then: a copy, with the facts of its nodes.

        Raises: FxSparseError if a function in it cannot be imported by name.
        """
        if isinstance(self.frozen, str):
            raise FxSparseError(self.frozen)
        return thaw(self.frozen)


class Trace:
    """The stages of all graphs, in the order in which they were made. Plain data: copies and pickles have them too."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self._names: dict[tuple[str, int], list[str]] = {}

    def keep(self, name: str, path: str, variant: int, gm: fx.GraphModule) -> None:
        """Keeps a graph as it is now. A pass that has run on it before gets a number: "prune_heads#2"."""
        names = self._names.setdefault((path, variant), [])
        names.append(name)
        number = names.count(name)
        self.stages.append(Stage.of(name if number == 1 else f"{name}#{number}", path, variant, gm))


@dataclass(frozen=True)
class GraphDiff:
    """What one pass changed in one graph: its code, as a unified diff, and the names of nodes."""

    path: str
    variant: int
    text: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    rewired: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class StageDiff:
    """What one pass changed, graph by graph. ``str()`` is a unified diff of readable code; graphs that stayed are left out."""

    name: str
    graphs: tuple[GraphDiff, ...]

    def __str__(self) -> str:
        if not self.graphs:
            return f"{self.name} changed nothing\n"
        return "\n".join(f"{_counts(graph)}\n{graph.text}" for graph in self.graphs)

    __repr__ = __str__

    def __rich__(self) -> Text:
        styles = {"+": "green", "-": "red", "@": "cyan", "#": "bold"}
        return Text("\n").join(Text(line, style=styles.get(line[:1], "")) for line in str(self).splitlines())

    def to_dict(self) -> dict[str, Any]:
        """The difference as plain data."""
        names = ("path", "variant", "added", "removed", "rewired", "text")
        rows = [{key: getattr(graph, key) for key in names} for graph in self.graphs]
        return {"name": self.name, "graphs": [{k: list(v) if isinstance(v, tuple) else v for k, v in row.items()} for row in rows]}


def stage_diff(stages: Sequence[Stage], name: str, path: str | None = None) -> StageDiff:
    """What a pass changed.

    Args:
        name: of the pass. path: of one graph; None takes all.

    Raises:
        FxSparseError: no pass of that name ran, or there is no such graph; the nearest names are listed.
    """
    names = list(dict.fromkeys(stage.name for stage in stages))
    if name not in names or name == CAPTURE:
        ran = [one for one in names if one != CAPTURE]
        known = f"the passes that ran: {', '.join(ran)}" if ran else "no pass ran"
        raise FxSparseError(f"there is no pass {name!r}{closest(name, ran)}; {known}")
    paths = list(dict.fromkeys(stage.path for stage in stages))
    if path is not None and path not in paths:
        raise FxSparseError(f"there is no graph at {path!r}{closest(path, paths)}; graphs: {', '.join(map(repr, paths))}")
    before: dict[tuple[str, int], Stage] = {}
    found = []
    for stage in stages:
        key = stage.path, stage.variant
        if stage.name == name and path in (None, stage.path):
            found += _graph_diff(before[key], stage)
        before[key] = stage
    return StageDiff(name, tuple(found))


def readable(code: str) -> str:
    """Generated code without the statements that only free names."""
    return re.sub(r"; +\w+ = (\w+ = )*None$", "", code, flags=re.MULTILINE).strip() + "\n"


def _graph_diff(before: Stage, after: Stage) -> list[GraphDiff]:
    changed = {
        "added": after.nodes.keys() - before.nodes.keys(),
        "removed": before.nodes.keys() - after.nodes.keys(),
        "rewired": {name for name in before.nodes.keys() & after.nodes.keys() if before.nodes[name] != after.nodes[name]},
    }
    if not any(changed.values()):
        return []
    place = f"{after.path or '(root)'}{f' [{after.variant}]' if after.variant else ''}"
    lines = difflib.unified_diff(
        before.code.splitlines(), after.code.splitlines(), f"{place} after {before.name}", f"{place} after {after.name}", lineterm=""
    )
    order = [*before.nodes, *after.nodes]
    names = {kind: tuple(dict.fromkeys(name for name in order if name in found)) for kind, found in changed.items()}
    return [GraphDiff(path=after.path, variant=after.variant, text="\n".join(lines) + "\n", **names)]


def _counts(graph: GraphDiff) -> str:
    parts = [f"{kind} {len(names)}: {', '.join(names)}" for kind in ("added", "removed", "rewired") if (names := getattr(graph, kind))]
    return "\n".join(f"# {part}" for part in parts)
