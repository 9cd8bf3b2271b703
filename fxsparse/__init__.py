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
    from .estimator import estimate
    from .policy import Policy
    from .preset_policies import presets
    from .report import Report
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
    "Policy": "policy",
    "presets": "preset_policies",
    "Report": "report",
    "BLPA": "techniques",
    "SWAT": "techniques",
    "SavedActivations": "techniques",
}

__all__ = [
    "BLPA",
    "SWAT",
    "Accelerator",
    "CheckReport",
    "CompiledModel",
    "CostComparison",
    "CostError",
    "CostReport",
    "ExportError",
    "FxSparseError",
    "NumericalError",
    "PassError",
    "Policy",
    "PolicyError",
    "Report",
    "SavedActivations",
    "TraceError",
    "VerificationError",
    "__version__",
    "accelerators",
    "check",
    "compile",
    "estimate",
    "presets",
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
