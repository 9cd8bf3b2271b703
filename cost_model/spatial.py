"""Cycles of dense arrays that are no plain systolic ones: row-stationary and channel-parallel."""

from __future__ import annotations

from math import prod

from .gemm import Pass
from .workload import Contraction


def row_stationary_cycles(workload: Contraction, which: Pass, *, rows: int, columns: int) -> int:
    """Cycles when each column of PEs makes one output row and each PE convolves with one kernel row.

    A kernel of R rows and an output of E rows take R x E PEs; several such sets fill the array, larger ones are folded. What has no
    rows (linear layers) fills the array. The gradients are counted with the forward pass's R and E. Source: Chen et al. 2016.
    """
    kernel_rows = workload.kernel[0] if workload.kernel else 1
    steps = workload.input_size if workload.transposed else workload.output_size
    output_rows = steps[0] if steps else 1
    high = min(kernel_rows, rows)
    sets = (rows // high) * max(1, columns // min(output_rows, columns))
    folds = -(-kernel_rows // rows) * -(-output_rows // columns)
    return -(-workload.macs(which) * folds // (sets * kernel_rows * output_rows))


def channel_parallel_cycles(workload: Contraction, which: Pass, *, rows: int, columns: int) -> int:
    """Cycles when `rows` multipliers reduce over channels for each of `columns` results, kernel taps one after another.

    forward reduces over input channels, grad_input over output channels, grad_weight over positions. Groups come one after
    another. Source: counting argument over the loop order of NVDLA's direct convolution.
    """
    taps = prod(workload.kernel)
    inputs, outputs = workload.in_channels // workload.groups, workload.out_channels // workload.groups
    groups, positions = workload.groups * workload.repeats, workload.positions
    if not workload.shared_weight:
        groups, positions = groups * workload.batch, positions // max(1, workload.batch)
    if not workload.macs(which):
        return 0
    if which == "grad_weight":
        return groups * taps * inputs * -(-positions // rows) * -(-outputs // columns)
    reduced, made = (inputs, outputs) if which == "forward" else (outputs, inputs)
    return groups * taps * positions * -(-reduced // rows) * -(-made // columns)
