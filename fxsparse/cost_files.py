"""A cost report as files: JSON, CSV, SCALE-Sim topologies and Timeloop problems."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fxsparse.cost_model.gemm import PASSES
from fxsparse.cost_model.interchange import scalesim_conv_csv, scalesim_gemm_csv, timeloop_problem_yaml
from fxsparse.cost_model.operands import OperandSparsity
from fxsparse.cost_model.workload import Contraction

from .cost_text import FIGURES
from .errors import CostError

if TYPE_CHECKING:
    from .cost_report import CostReport


def save_report(report: CostReport, target: Path) -> None:
    """Writes a report in the form that the name's ending says; see ``CostReport.save``. Raises: CostError for another ending."""
    name = target.name.lower()
    if name.endswith(".json"):
        target.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    elif name.endswith(".scalesim.csv"):
        target.write_text(scalesim_gemm_csv(_layers(report)))
    elif name.endswith(".csv"):
        target.write_text(_csv(report))
    elif name.endswith((".timeloop.yaml", ".timeloop.yml")):
        target.write_text("---\n".join(_problems(report).values()))
    elif not target.suffix:
        _save_all(report, target)
    else:
        raise CostError(
            "a report is saved as .json, .csv, .scalesim.csv or .timeloop.yaml, or into a folder (a name without an ending); "
            f"got {str(target)!r}"
        )


def _save_all(report: CostReport, folder: Path) -> None:
    (folder / "timeloop").mkdir(parents=True, exist_ok=True)
    save_report(report, folder / "report.json")
    save_report(report, folder / "report.csv")
    (folder / "scalesim_gemm.csv").write_text(scalesim_gemm_csv(_layers(report)))
    topology, left_out = scalesim_conv_csv(_layers(report))
    (folder / "scalesim_conv.csv").write_text(topology)
    (folder / "scalesim_conv_left_out.txt").write_text("".join(f"{name}\n" for name in left_out))
    for name, text in _problems(report).items():
        (folder / "timeloop" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.yaml").write_text(text)


def _products(report: CostReport) -> dict[str, tuple[Contraction, OperandSparsity]]:
    found: dict[str, tuple[Contraction, OperandSparsity]] = {}
    for node in report.nodes:
        several = len(node.contractions) > 1
        for index, product in enumerate(node.contractions):
            found[f"{node.name}.{index}" if several else node.name] = product
    return found


def _layers(report: CostReport) -> dict[str, Contraction]:
    return {name: product for name, (product, _) in _products(report).items()}


def _problems(report: CostReport) -> dict[str, str]:
    return {
        f"{name}.{which}": timeloop_problem_yaml(product, which, sparsity)
        for name, (product, sparsity) in _products(report).items()
        for which in PASSES
        if product.macs(which) and len(product.kernel) <= 3
    }


def _csv(report: CostReport) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    own = ("name", "graph", "module", "site", "operator", "weight_density", "activation_density", "saved_bytes", "known")
    writer.writerow([*own, *(f"{which}_{figure}" for which in PASSES for figure in (*FIGURES, "bound"))])
    for node in report.nodes:
        values = [getattr(getattr(node, which), figure) for which in PASSES for figure in (*FIGURES, "bound")]
        writer.writerow([*(getattr(node, key) for key in own), *values])
    return buffer.getvalue()
