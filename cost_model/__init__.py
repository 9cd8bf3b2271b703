"""Analytical accelerator cost model: FLOPs, memory, cycles and energy of forward, grad-input and grad-weight."""

if __name__ != "fxsparse.cost_model":
    raise ImportError(f"import 'fxsparse.cost_model' instead of {__name__!r}: a second copy of its classes would not match the first")

from .accelerator import Accelerator, Array, Memory, Roofline, SparseSupport, accelerators
from .actions import Actions, split_macs
from .attention import Attention
from .conventions import (
    CONVENTIONS,
    CountedWorkload,
    PassMacs,
    SparsePassMacs,
    StepMacs,
    pass_macs,
    reduction,
    rigl_training_multiplier,
    sparse_pass_macs,
    step_macs,
)
from .cost import TAGS, PassCost, WorkloadCost, sum_costs
from .density import Density, MeasuredDensity, NMDensity, UniformDensity
from .energy import EnergyTable, read_ert
from .estimate import CostRequest, estimate, estimate_all, operator_class, total_cost
from .formats import COO, CSR, FORMATS, NM, Bitmask, Dense, Format, Packed, RunLength, cheapest_format, make_format
from .formulas import FORMULAS, Formula, formulas_for
from .gemm import PASSES, Gemm, Pass
from .imbalance import expected_maximum, expected_maximum_binomial, expected_maximum_hypergeometric, imbalance_factor
from .interchange import scalesim_conv_csv, scalesim_gemm_csv, timeloop_problem, timeloop_problem_yaml
from .memory import MemoryTimeline, NodeMemory, SavedTensor, Step, peak_memory, saved_bytes, training_peak, training_steps
from .on_array import array_cycles
from .operands import OperandSparsity
from .pointwise import Pointwise
from .recurrent import Recurrent
from .roofline import OPERATOR_CLASSES, RooflineTime, roofline_time
from .skipping import cartesian_cycles, skipping_cycles
from .systolic import SramAccesses, compressed_k, overlapped_cycles, systolic_cycles, systolic_sram_accesses, utilisation
from .traffic import TiledProduct, Traffic, best_traffic, compulsory_bytes
from .workload import Contraction
from .workloads import Workload, contractions_of, without_input_gradient, workload_from_dict

__all__ = [
    "CONVENTIONS",
    "COO",
    "CSR",
    "FORMATS",
    "FORMULAS",
    "NM",
    "OPERATOR_CLASSES",
    "PASSES",
    "TAGS",
    "Accelerator",
    "Actions",
    "Array",
    "Attention",
    "Bitmask",
    "Contraction",
    "CostRequest",
    "CountedWorkload",
    "Dense",
    "Density",
    "EnergyTable",
    "Format",
    "Formula",
    "Gemm",
    "MeasuredDensity",
    "Memory",
    "MemoryTimeline",
    "NMDensity",
    "NodeMemory",
    "OperandSparsity",
    "Packed",
    "Pass",
    "PassCost",
    "PassMacs",
    "Pointwise",
    "Recurrent",
    "Roofline",
    "RooflineTime",
    "RunLength",
    "SavedTensor",
    "SparsePassMacs",
    "SparseSupport",
    "SramAccesses",
    "Step",
    "StepMacs",
    "TiledProduct",
    "Traffic",
    "UniformDensity",
    "Workload",
    "WorkloadCost",
    "accelerators",
    "array_cycles",
    "best_traffic",
    "cartesian_cycles",
    "cheapest_format",
    "compressed_k",
    "compulsory_bytes",
    "contractions_of",
    "estimate",
    "estimate_all",
    "expected_maximum",
    "expected_maximum_binomial",
    "expected_maximum_hypergeometric",
    "formulas_for",
    "imbalance_factor",
    "make_format",
    "operator_class",
    "overlapped_cycles",
    "pass_macs",
    "peak_memory",
    "read_ert",
    "reduction",
    "rigl_training_multiplier",
    "roofline_time",
    "saved_bytes",
    "scalesim_conv_csv",
    "scalesim_gemm_csv",
    "skipping_cycles",
    "sparse_pass_macs",
    "split_macs",
    "step_macs",
    "sum_costs",
    "systolic_cycles",
    "systolic_sram_accesses",
    "timeloop_problem",
    "timeloop_problem_yaml",
    "total_cost",
    "training_peak",
    "training_steps",
    "utilisation",
    "without_input_gradient",
    "workload_from_dict",
]
