"""Where each figure of a report comes from: its formula in short, the file that computes it, and the source."""

from __future__ import annotations

from dataclasses import dataclass

MEANINGS = {
    "exact": "counted, without a model",
    "expected": "the mean over random positions of the non-zeros",
    "calibrated": "predicted with rates that were measured on the machine",
    "bound": "a limit that the machine cannot beat, reached if computing and moving overlap perfectly",
}


@dataclass(frozen=True, kw_only=True)
class Formula:
    """How a figure is computed.

    Attributes:
        machines: for which it holds: "any", "none" (no accelerator given), "array" or "roofline".
        where: the file in ``cost_model`` that computes it. source: the paper, tool or argument behind it.
    """

    figure: str
    machines: str
    formula: str
    where: str
    source: str


_SCALESIM = "SCALE-Sim 3.0.0 (Samajdar et al. 2020), equal cycle for cycle"
_ROOFLINE = "Williams et al. 2009"
FORMULAS = (
    Formula(
        figure="macs",
        machines="any",
        formula="product of the loop bounds times the density of the operand that is sparse in that pass",
        where="conventions.py",
        source="counting argument; conventions 'torch' (torch.utils.flop_counter), 'swat' (Raihan & Aamodt 2020) and 'rigl' "
        "(Evci et al. 2020)",
    ),
    Formula(figure="dense_macs", machines="any", formula="product of the loop bounds", where="workload.py", source="counting argument"),
    Formula(
        figure="flops",
        machines="any",
        formula="2 x macs + elements x FLOPs of an elementwise operator",
        where="pointwise.py",
        source="counting argument; transcendental functions count as one",
    ),
    Formula(
        figure="saved_bytes",
        machines="any",
        formula="bytes of the unique storages that autograd keeps, parameters left out",
        where="memory.py",
        source="recorded from torch's own dispatch; equal to what autograd saves",
    ),
    Formula(
        figure="peak_bytes",
        machines="any",
        formula="most bytes alive in a walk over the steps of forward and backward",
        where="memory.py",
        source="liveness analysis",
    ),
    Formula(
        figure="dram_bytes",
        machines="none",
        formula="each operand moved once",
        where="traffic.py",
        source="compulsory traffic, a lower bound",
    ),
    Formula(
        figure="dram_bytes",
        machines="roofline",
        formula="each operand moved once",
        where="traffic.py",
        source="compulsory traffic, a lower bound",
    ),
    Formula(
        figure="dram_bytes",
        machines="array",
        formula="A·ceil(N/tn) + B·ceil(M/tm) + C and the other loop orders, the best tiling that fits the buffer; sparse operands in "
        "their format",
        where="traffic.py, formats.py",
        source="two-level tiling, exhaustive over orders and tiles; formats as in Sparseloop (Wu et al. 2022)",
    ),
    Formula(
        figure="sram_bytes",
        machines="array",
        formula="words that cross the buffer's port for every fold",
        where="systolic.py, on_array.py",
        source=_SCALESIM,
    ),
    Formula(
        figure="cycles",
        machines="array",
        formula="folds x (T + R + C - 2) for outputs that stay, folds x (T + 2R + C - 2) for operands that stay; skipping arrays: rounds "
        "as long as their slowest element; never below the cycles that the traffic takes",
        where="systolic.py, skipping.py, imbalance.py, estimate.py",
        source=f"{_SCALESIM}; Parashar et al. 2017 (SCNN); E[max] of binomials for load imbalance",
    ),
    Formula(
        figure="energy_pj",
        machines="array",
        formula="sum of action counts x energy of each action, gated and skipped ones apart",
        where="energy.py, actions.py",
        source="Accelergy's form (Wu et al. 2019); the table of the accelerator's file",
    ),
    Formula(
        figure="energy_pj", machines="roofline", formula="time x board power", where="estimate.py", source="the accelerator's data sheet"
    ),
    Formula(
        figure="time_s", machines="array", formula="cycles / clock rate", where="estimate.py", source="perfect overlap, as Timeloop's rule"
    ),
    Formula(
        figure="time_s",
        machines="roofline",
        formula="max(FLOPs / peak, bytes / bandwidth) / efficiency of the operator's class + overhead",
        where="roofline.py",
        source=f"{_ROOFLINE}; efficiencies by fxsparse calibrate, or of the accelerator's file",
    ),
)


def formulas_for(machine: str) -> tuple[Formula, ...]:
    """The formulas of the figures that a kind of machine has: "none", "array" or "roofline"."""
    return tuple(formula for formula in FORMULAS if formula.machines in ("any", machine))
