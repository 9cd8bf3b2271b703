"""Time of an operator on a machine that is only known by its peak rate, its bandwidth and how much of them it reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .validate import require_positive

# Classes of operators that reach different shares of a machine's rates, and the class that stands in for one that was not measured.
PARENTS: dict[str, str | None] = {
    "gemm": None,
    "attention": "gemm",
    "recurrent": "gemm",
    "conv": None,
    "pointwise_conv": "conv",
    "narrow_conv": "pointwise_conv",
    "grouped_conv": "conv",
    "depthwise": None,
    "large_depthwise": "depthwise",
    "elementwise": None,
    "relu": "elementwise",
    "activation": "elementwise",
    "mul": "elementwise",
    "reduce": "elementwise",
    "batch_norm": "elementwise",
    "layer_norm": "elementwise",
    "softmax": "elementwise",
    "dropout": "elementwise",
    "max_pool": "elementwise",
    "avg_pool": "elementwise",
    "copy": "elementwise",
}
OPERATOR_CLASSES = (*PARENTS, *(f"{name}_backward" for name in PARENTS))


@dataclass(frozen=True, kw_only=True)
class RooflineTime:
    """Seconds, and what bounds them: "compute", "dram" or "overhead"."""

    time_s: float
    bound: str


def efficiency_of(measured: Mapping[str, float], kind: str, *, backward: bool) -> float:
    """The share of its rates that a machine reaches in a class of operators: its own, else that of the class that stands in for it.

    Args:
        measured: by class; a backward pass has "CLASS_backward", or the forward pass's where that is missing.
    """
    known = [kind]
    while parent := PARENTS[known[-1]]:
        known.append(parent)
    names = [*(f"{name}_backward" for name in known if backward), *known]
    return next((measured[name] for name in names if name in measured), 1.0)


def roofline_time(
    *, flops: float, dram_bytes: float, peak_flops: float, dram_bytes_per_s: float, efficiency: float = 1.0, overhead_s: float = 0.0
) -> RooflineTime:
    """max(FLOPs / peak, bytes / bandwidth) / efficiency + overhead. Raises: CostError for a rate that is not positive.

    Source: Williams et al. 2009, with an efficiency and a launch overhead added.
    """
    require_positive("efficiency", efficiency)
    compute = flops / require_positive("peak_flops", peak_flops) / efficiency
    memory = dram_bytes / require_positive("dram_bytes_per_s", dram_bytes_per_s) / efficiency
    busy = max(compute, memory)
    bound = "overhead" if overhead_s > busy else "compute" if compute >= memory else "dram"
    return RooflineTime(time_s=busy + overhead_s, bound=bound)
