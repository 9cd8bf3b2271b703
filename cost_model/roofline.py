"""Time of an operator on a machine that is only known by its peak rate, its bandwidth and how much of them it reaches."""

from __future__ import annotations

from dataclasses import dataclass

from .validate import require_positive

OPERATOR_CLASSES = ("gemm", "conv", "conv_backward", "depthwise", "attention", "recurrent", "elementwise")


@dataclass(frozen=True, kw_only=True)
class RooflineTime:
    """Seconds, and what bounds them: "compute", "dram" or "overhead"."""

    time_s: float
    bound: str


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
