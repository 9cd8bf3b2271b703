"""What an exported file holds: its metadata, its weights, dense or sparse, and the table of the report that it was made with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fxsparse.cost_model.gemm import PASSES
from fxsparse.passes.base import Skip

from ..errors import ExportError
from ..report import Report, SiteRow
from ..tree_table import render
from .facts import FORMAT, PREFIX, unpacked_positions
from .lower import require_onnx


class OnnxFile:
    """An ONNX file that ``export_onnx`` wrote.

    Raises:
        ExportError: there is no such file, it is no ONNX model, or no fxsparse metadata is in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        require_onnx("onnx")
        import onnx

        self.path = Path(path)
        if not self.path.is_file():
            raise ExportError(f"there is no file {str(self.path)!r}")
        try:
            self.model = onnx.load(self.path)
        except Exception as error:
            raise ExportError(f"{str(self.path)!r} cannot be read as an ONNX model: {type(error).__name__}: {error}") from error
        self.facts = _facts_of(self.model)
        if f"{PREFIX}format" not in {entry.key for entry in self.model.metadata_props}:
            raise ExportError(
                f"{str(self.path)!r} says nothing of fxsparse: it was written by another program, or with metadata=False; "
                "export it with compiled.export_onnx(path)"
            )
        if self.facts["format"] > FORMAT:
            raise ExportError(
                f"{str(self.path)!r} is of format {self.facts['format']}, and this version reads formats up to {FORMAT}; update fxsparse"
            )

    @property
    def sites(self) -> dict[str, dict[str, Any]]:
        """For each site what the file says of it: initializer, technique, target, kept, total."""
        found: dict[str, dict[str, Any]] = self.facts["sites"]
        return found

    @cached_property
    def report(self) -> Report:
        """The report of the compilation, without its list of changes."""
        data = self.facts["report"]
        rows = tuple(SiteRow(**{**row, "shape": tuple(row["shape"])}) for row in data["sites"])
        skips = tuple(Skip(**skip) for skip in data["skips"])
        names = ("model", "graphs", "left", "kernels")
        return Report(sites=rows, changes=(), skips=skips, recorded=tuple(data["recorded"]), **{name: data[name] for name in names})

    @cached_property
    def stored(self) -> dict[str, Any]:
        """Every weight by name: a TensorProto, or a SparseTensorProto."""
        graph = self.model.graph
        found: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        found.update({tensor.values.name: tensor for tensor in graph.sparse_initializer})
        for node in graph.node:
            if node.op_type == "Constant" and node.domain == "":
                for attribute in node.attribute:
                    if attribute.name == "sparse_value":
                        found[node.output[0]] = attribute.sparse_tensor
        return found

    def weight(self, name: str) -> np.ndarray[Any, Any]:
        """A weight by its name in the file, dense."""
        from onnx import numpy_helper

        tensor = self.stored[name]
        if not is_sparse(tensor):
            return numpy_helper.to_array(tensor)
        values, positions = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
        dense = np.zeros(int(np.prod(tensor.dims)), dtype=values.dtype)
        dense[positions] = values
        return dense.reshape(tuple(tensor.dims))

    def kept(self, site: str) -> np.ndarray[Any, Any]:
        """bool of a site's shape: what its mask or threshold keeps, read from the weight itself."""
        from onnx import numpy_helper

        facts = self.sites[site]
        if "table" in facts:
            found: np.ndarray[Any, Any] = np.abs(self.weight(facts["table"])) >= self.facts["state"][f"sites.{site}.weight_threshold"]
            return found
        tensor = self.stored[facts["initializer"]]
        if not facts["technique"] or facts["kept"] == facts["total"]:
            return np.ones(tuple(tensor.dims), dtype=bool)
        positions = numpy_helper.to_array(tensor.indices) if is_sparse(tensor) else np.flatnonzero(numpy_helper.to_array(tensor))
        found = np.zeros(int(np.prod(tensor.dims)), dtype=bool)
        found[positions] = True
        if "kept_zeros" in facts:
            found[unpacked_positions(facts["kept_zeros"])] = True
        return found.reshape(tuple(tensor.dims))

    def form(self, site: str) -> str:
        """How a site's weight is stored: "sparse", "dense", or "shared", computed from the dense table that it is tied to."""
        facts = self.sites[site]
        if "table" in facts:
            return "shared"
        return "sparse" if is_sparse(self.stored[facts["initializer"]]) else "dense"

    def sparsity(self) -> dict[str, dict[str, Any]]:
        """For each site the density of its weight, counted from the stored tensors, as ``compiled.sparsity()`` gives it."""
        found = {}
        for site, facts in self.sites.items():
            kept = self.kept(site)
            count = int(kept.sum())
            found[site] = {"target": facts["target"], "actual": count / kept.size, "kept": count, "total": kept.size}
        return found

    def node_facts(self) -> list[dict[str, Any]]:
        """The metadata of each annotated node, with its name and operator, in the order of the graph."""
        return list(self._node_facts())

    def _node_facts(self) -> Iterator[dict[str, Any]]:
        for node in self.model.graph.node:
            facts = _facts_of(node)
            if "site" in facts:
                yield {"node": node.name, "operator": node.op_type, **facts}

    def __str__(self) -> str:
        return "\n".join([str(self.report), self._headline(), render(self._table())])

    def _headline(self) -> str:
        facts = self.facts
        rows = self.sparsity().values()
        kept, total = sum(row["kept"] for row in rows), sum(row["total"] for row in rows)
        cost = facts.get("cost")
        machine = f" on {cost['accelerator']}" if cost and cost["accelerator"] else ""
        counted = f"; figures: a training step of {cost['batch_size']} samples{machine}" if cost else ""
        share = f"{kept} of {total} weights kept ({100 * kept / total:.1f} %)" if total else "no site"
        made_by = f"fxsparse {facts['version']}, torch {facts['torch']}"
        return f"{self.path.name}: {self.path.stat().st_size:,} bytes, {made_by}; {share}{counted}\n"

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("site")
        table.add_column("stored")
        for name in ("kept", "density", *(f"{which} {figure}" for which in PASSES for figure in ("FLOPs", "bytes", "cycles"))):
            table.add_column(name, justify="right")
        costs: dict[str, list[dict[str, Any]]] = {}
        for node in self._node_facts():
            first = node["site"] if isinstance(node["site"], str) else node["site"][0]
            costs.setdefault(first, []).append(node)
        for site, row in self.sparsity().items():
            form = self.form(site)
            nodes = costs.get(site, [])
            cells = [_shown(sum(node[which][key] for node in nodes if key in node.get(which, {}))) for which in PASSES for key in _KEYS]
            table.add_row(site, form, f"{row['kept']}/{row['total']}", f"{row['actual']:.4f}", *cells)
        return table


def onnx_file(path: str | os.PathLike[str]) -> OnnxFile:
    """What an exported file says and holds; ``print`` shows its report. Raises: ExportError, see OnnxFile."""
    return OnnxFile(path)


_KEYS = ("flops", "bytes", "cycles")


def is_sparse(tensor: Any) -> bool:
    """Whether it is a SparseTensorProto."""
    return hasattr(tensor, "indices")


def _facts_of(holder: Any) -> dict[str, Any]:
    """The fxsparse entries among the metadata_props of a model or a node."""
    found: dict[str, Any] = {}
    for entry in holder.metadata_props:
        if entry.key.startswith(PREFIX):
            try:
                found[entry.key.removeprefix(PREFIX)] = json.loads(entry.value)
            except json.JSONDecodeError:
                found[entry.key.removeprefix(PREFIX)] = entry.value
    return found


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value else "-"
