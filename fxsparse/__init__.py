"""fxsparse: a graph compiler on torch.fx that makes neural-network training sparse and small, for real.

>>> import fxsparse as fxs
>>> compiled = fxs.compile(model, fxs.Policy(fxs.SWAT(weight_sparsity=0.9)), example_inputs=(x,))
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .errors import CostError, ExportError, FxSparseError, NumericalError, PassError, PolicyError, TraceError, VerificationError

if TYPE_CHECKING:
    from fxsparse.cost_model.accelerator import Accelerator, accelerators

    from .checker import CheckReport, check
    from .compiled_model import CompiledModel
    from .compiler import compile
    from .cost_comparison import CostComparison
    from .cost_report import CostReport
    from .criterion import Criterion, Weight
    from .estimator import estimate
    from .mask_techniques import GMP, NM, SET, GraNet, RigL, StaticMask
    from .onnx_export.read_back import OnnxFile, onnx_file
    from .onnx_export.restore import from_onnx
    from .policy import Policy
    from .preset_policies import presets
    from .recalibrate import recalibrate_batch_norm
    from .report import Report
    from .run_log import RunLog
    from .run_report import RunReport
    from .techniques import BLPA, SWAT, SavedActivations

try:
    __version__ = version("fxsparse")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "CheckReport": "checker",
    "check": "checker",
    "compile": "compiler",
    "Accelerator": "cost_model.accelerator",
    "accelerators": "cost_model.accelerator",
    "CostComparison": "cost_comparison",
    "CostReport": "cost_report",
    "estimate": "estimator",
    "CompiledModel": "compiled_model",
    "from_onnx": "onnx_export.restore",
    **dict.fromkeys(("OnnxFile", "onnx_file"), "onnx_export.read_back"),
    "Policy": "policy",
    "presets": "preset_policies",
    "Report": "report",
    "RunLog": "run_log",
    "RunReport": "run_report",
    **dict.fromkeys(("BLPA", "SWAT", "SavedActivations"), "techniques"),
    **dict.fromkeys(("GMP", "NM", "SET", "GraNet", "RigL", "StaticMask"), "mask_techniques"),
    "Criterion": "criterion",
    "Weight": "criterion",
    "recalibrate_batch_norm": "recalibrate",
}

__all__ = [
    "BLPA",
    "GMP",
    "NM",
    "SET",
    "SWAT",
    "Accelerator",
    "CheckReport",
    "CompiledModel",
    "CostComparison",
    "CostError",
    "CostReport",
    "Criterion",
    "ExportError",
    "FxSparseError",
    "GraNet",
    "NumericalError",
    "OnnxFile",
    "PassError",
    "Policy",
    "PolicyError",
    "Report",
    "RigL",
    "RunLog",
    "RunReport",
    "SavedActivations",
    "StaticMask",
    "TraceError",
    "VerificationError",
    "Weight",
    "__version__",
    "accelerators",
    "check",
    "compile",
    "estimate",
    "from_onnx",
    "onnx_file",
    "presets",
    "recalibrate_batch_norm",
]


def __getattr__(name: str) -> Any:
    """Public names are loaded on first use, so that the cost model works where torch is not installed."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fxsparse' has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
