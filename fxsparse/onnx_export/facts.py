"""What an exported file says about the model that it came from, as plain data."""

from __future__ import annotations

import base64
import json
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fxsparse.cost_model.gemm import PASSES

from ..errors import CostError, FxSparseError
from ..report import Report

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel
    from ..cost_report import CostReport, NodeCost
    from .compacting import Compacted
    from .finalize import Finalized

FORMAT = 1
PREFIX = "fxsparse."
_LARGEST_STATE = 4096


@dataclass(frozen=True)
class SiteFacts:
    """One site in the file: the initializer that holds its weight, and what of it is kept.

    Attributes:
        kept_zeros: packed positions that are kept and zero, where the form does not show them.
        table: the dense initializer that the weight is computed from, where it has none of its own.
    """

    site: str
    initializer: str
    technique: str
    target: float
    kept: int
    total: int
    kept_zeros: str | None = None
    table: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data, without what there is none of."""
        return {key: value for key, value in asdict(self).items() if value is not None and key != "site"}


def site_facts(model: CompiledModel, initializers: Mapping[str, str], shrunk: Compacted) -> dict[str, SiteFacts]:
    """The facts of all sites that are in the file, by site.

    Args:
        initializers: for each site the name of its weight in the file.
        shrunk: the module that was exported, and what is kept of its weights.
    """
    techniques = {row.site: row.technique for row in model.report.sites}
    found = {}
    for name in model.sites:
        if name in initializers:
            total, mask = shrunk.module.get_parameter(name).numel(), shrunk.kept.get(name)
            kept = total if mask is None else int(np.count_nonzero(mask))
            found[name] = SiteFacts(name, initializers[name], techniques.get(name, ""), model.target_density(name), kept, total)
    return found


def model_facts(model: CompiledModel, sites: Mapping[str, SiteFacts], extra: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of the whole file: versions, policy, report, sites."""
    cost = cost_report(model)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": sys.modules["fxsparse"].__dict__.get("__version__", ""),
        "torch": torch.__version__,
        "policy": _policy(model),
        "report": _report(model.report),
        "sites": {name: site.to_dict() for name, site in sites.items()},
        "conventions": "densities are kept / total, zeros that are kept counted as kept; FLOPs are 2 x multiply-accumulates of the "
        "products made, over the passes forward, grad_input and grad_weight of one training step",
        **extra,
    }
    if cost is not None:
        facts["cost"] = {
            "batch_size": cost.batch_size,
            "accelerator": cost.accelerator,
            "convention": cost.convention,
            **{which: figures(cost.total.of(which)) for which in PASSES},
        }
    return {f"{PREFIX}{key}": value if isinstance(value, str) else dumps(value) for key, value in facts.items() if value is not None}


def cost_report(model: CompiledModel) -> CostReport | None:
    """The costs of a training step on the machine that the model was compiled for; None if its shapes are not known."""
    try:
        return model.cost(model.accelerator)
    except CostError:
        return None


def costs_by_site(model: CompiledModel) -> dict[str, list[NodeCost]]:
    """The costs of each site's contractions, in the order of execution."""
    report = cost_report(model)
    found: dict[str, list[NodeCost]] = {}
    for node in report.nodes if report is not None else ():
        if node.site and node.contractions:
            found.setdefault(node.site, []).append(node)
    return found


def figures(cost: Any) -> dict[str, Any]:
    """The figures of one pass that a file carries; those that were not computed are left out."""
    named = {"flops": cost.flops, "bytes": cost.dram_bytes, "cycles": cost.cycles}
    return {name: _short(value) for name, value in named.items() if value is not None}


def packed_positions(positions: np.ndarray[Any, Any]) -> str:
    """Sorted positions as text."""
    steps = np.diff(positions, prepend=0).astype("<i8").tobytes()
    return base64.b85encode(zlib.compress(steps, 9)).decode()


def unpacked_positions(text: str) -> np.ndarray[Any, Any]:
    """What ``packed_positions`` has packed."""
    return np.cumsum(np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype="<i8"))


def dumps(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def _short(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")


def _policy(model: CompiledModel) -> Any:
    try:
        data = model.policy.to_dict()
        json.dumps(data)
    except (FxSparseError, TypeError):  # a criterion of the user's own is Python
        return None
    return data


def _report(report: Report) -> dict[str, Any]:
    """The report without its list of changes, which its text does not show either."""
    data = report.to_dict()
    del data["changes"]
    return data


def state_of(model: CompiledModel) -> dict[str, Any]:
    """Counters, densities and thresholds; not the masks, which the weights show, nor thresholds by channel."""
    found = {}
    for name, value in model.fxsparse.state_dict().items():
        is_counter = name.startswith(("clock.", "regimes."))
        if (
            not isinstance(value, torch.Tensor)
            or name.endswith((".mask", ".trust"))
            or value.numel() > (_LARGEST_STATE if is_counter else 1)
        ):
            continue
        plain = value.tolist()
        if not (isinstance(plain, float) and plain != plain):
            found[name] = plain
    return found


def with_thresholds(state: Mapping[str, Any], final: Finalized) -> dict[str, Any]:
    """The state with the thresholds that the weights of the file were made with."""
    thresholds = {
        f"sites.{name}.weight_threshold": site.weight.threshold for name, site in final.sites.items() if site.weight.threshold is not None
    }
    return {**state, **thresholds}
