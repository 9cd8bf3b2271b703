"""Analytical accelerator cost model: FLOPs, memory, cycles and energy of forward, grad-input and grad-weight."""

if __name__ != "fxsparse.cost_model":
    raise ImportError(f"import 'fxsparse.cost_model' instead of {__name__!r}: a second copy of its classes would not match the first")

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
from .gemm import PASSES, Gemm, Pass
from .pointwise import Pointwise
from .recurrent import Recurrent
from .systolic import SramAccesses, compressed_k, overlapped_cycles, systolic_cycles, systolic_sram_accesses
from .workload import Contraction
from .workloads import Workload, contractions_of, workload_from_dict

__all__ = [
    "CONVENTIONS",
    "PASSES",
    "Attention",
    "Contraction",
    "CountedWorkload",
    "Gemm",
    "Pass",
    "PassMacs",
    "Pointwise",
    "Recurrent",
    "SparsePassMacs",
    "SramAccesses",
    "StepMacs",
    "Workload",
    "compressed_k",
    "contractions_of",
    "overlapped_cycles",
    "pass_macs",
    "reduction",
    "rigl_training_multiplier",
    "sparse_pass_macs",
    "step_macs",
    "systolic_cycles",
    "systolic_sram_accesses",
    "workload_from_dict",
]
