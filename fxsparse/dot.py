"""A networkx graph of a compiled model in the language of Graphviz, modules as boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import networkx as nx

from .quantities import quantity

_PALETTE = ("#8ecae6", "#ffb703", "#b5e48c", "#f4a6b7", "#cdb4db", "#e9c46a")


def dot_of(network: nx.DiGraph[str]) -> str:
    """The text of a .dot file. Parameters and other attributes that are read have no node of their own."""
    shown = [name for name in network if network.nodes[name]["op"] != "get_attr"]
    names = sorted({technique for name in shown for technique in network.nodes[name]["techniques"]})
    colours = {technique: _PALETTE[index % len(_PALETTE)] for index, technique in enumerate(names)}
    numbers = {name: f"n{index}" for index, name in enumerate(shown)}
    modules: dict[str, list[str]] = {}
    for name in shown:
        modules.setdefault(network.nodes[name]["module"], []).append(name)
    lines = [
        f"digraph {_quoted(str(network.graph.get('model', '')))} {{",
        '  node [shape=box, style="filled,rounded", fillcolor="#f2f2f2", fontname="sans-serif", fontsize=10];',
        *_cluster("", modules, network, numbers, colours, "  "),
    ]
    for source, reader, facts in network.edges(data=True):
        if source in numbers and reader in numbers:
            shape = facts.get("shape")
            label = f" [label={_quoted('x'.join(map(str, shape)))}, fontsize=8]" if shape else ""
            lines.append(f"  {numbers[source]} -> {numbers[reader]}{label};")
    return "\n".join([*lines, "}"]) + "\n"


def _cluster(
    path: str, modules: dict[str, list[str]], network: nx.DiGraph[str], numbers: dict[str, str], colours: dict[str, str], indent: str
) -> Iterator[str]:
    """The nodes of a module, then the modules in it."""
    for name in modules.get(path, ()):
        yield f"{indent}{numbers[name]} [{_look(name, network.nodes[name], colours)}];"
    start = f"{path}." if path else ""
    inner = dict.fromkeys(start + other.removeprefix(start).split(".")[0] for other in modules if other.startswith(start) and other != path)
    for below in inner:
        yield f"{indent}subgraph {_quoted(f'cluster_{below}')} {{"
        yield f"{indent}  label={_quoted(below)}; color=gray; fontsize=10;"
        yield from _cluster(below, modules, network, numbers, colours, f"{indent}  ")
        yield f"{indent}}}"


def _look(name: str, facts: dict[str, Any], colours: dict[str, str]) -> str:
    label = [facts["site"] if facts["role"] == "contraction" else name, facts.get("operator") or facts["target"]]
    if facts["site"] and facts.get("weight_density", 1.0) < 1.0:
        label.append(f"density {facts['weight_density']:.4g}")
    if facts.get("flops"):
        label.append(quantity(facts["flops"], "FLOP"))
    colour = f", fillcolor={_quoted(colours[facts['techniques'][0]])}" if facts["techniques"] else ""
    tip = f", tooltip={_quoted(facts['line'])}" if facts["line"] else ""
    return f"label={_quoted(*label)}{colour}{tip}"


def _quoted(*lines: str) -> str:
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for line in lines)
    return '"' + "\\n".join(escaped) + '"'
