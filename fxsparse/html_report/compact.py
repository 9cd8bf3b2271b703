"""Rows of equal dictionaries as columns, and a cost report as one table, so that a page of many nodes stays small; all is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxsparse.cost_model.gemm import PASSES

_REPEATS = 2  # a column of texts that repeat this often is written as numbers into a list of them


def compact_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"columns": {name: values}} with texts that repeat as {"words": [...], "at": [...]}."""
    names = list(rows[0]) if rows else []
    return {"length": len(rows), "columns": {name: _column([row[name] for row in rows]) for name in names}}


def _column(values: list[Any]) -> Any:
    words = list(dict.fromkeys(value for value in values if isinstance(value, str)))
    if len(words) * _REPEATS <= len(values) and all(isinstance(value, str) for value in values):
        index = {word: number for number, word in enumerate(words)}
        return {"words": words, "at": [index[value] for value in values]}
    if values and all(isinstance(value, Mapping) and value.keys() == values[0].keys() for value in values) and values[0]:
        return {"rows": compact_rows(values)}
    return values


def compact_costs(report: Mapping[str, Any]) -> dict[str, Any]:
    """``CostReport.to_dict()`` with its nodes as columns, and each set of tags once."""
    sets: list[dict[str, str]] = []

    def noted(tags: dict[str, str]) -> int:
        if tags not in sets:
            sets.append(tags)
        return sets.index(tags)

    nodes = [{**node, **{which: {**node[which], "tags": noted(node[which]["tags"])} for which in PASSES}} for node in report["nodes"]]
    return {**report, "nodes": compact_rows(nodes), "tags": sets}


def compact_graph(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of a graph, each input as its row's number."""
    number = {row["name"]: index for index, row in enumerate(rows)}
    return compact_rows([{**row, "inputs": [number[name] for name in row["inputs"]]} for row in rows])


def compact_timeline(timeline: Mapping[str, Any]) -> dict[str, Any]:
    """``MemoryTimeline.to_dict()`` with its steps as columns; a step's bytes are the sum of its kinds."""
    steps = timeline["steps"]
    kinds = [[step["by_kind"][index] for step in steps] for index in range(len(timeline["kinds"]))]
    return {**timeline, "steps": {"name": [step["name"] for step in steps], "by_kind": kinds}}
