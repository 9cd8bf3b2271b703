"""One pass of one contraction on an array: cycles of its multipliers, traffic, buffer accesses and what becomes of each MAC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from fxsparse.errors import CostError

from .accelerator import Accelerator, Array
from .actions import split_macs
from .attention import Attention
from .gemm import Pass
from .operands import DENSE, OperandSparsity
from .skipping import cartesian_cycles, skipping_cycles
from .spatial import channel_parallel_cycles, row_stationary_cycles
from .systolic import SramAccesses, compressed_k, overlapped_cycles, systolic_cycles, systolic_sram_accesses
from .traffic import TiledProduct, Traffic
from .workload import Contraction


@dataclass(frozen=True, kw_only=True)
class ArrayWork:
    """What one pass of one workload takes on an array, memory and multipliers apart.

    cycles: of the multipliers; ideal_cycles: the same without waiting for the slowest. metadata_bytes: part of dram_bytes that
    says where the values are. computed, gated: MACs that cost their full energy, or that of a gated one.
    """

    cycles: float = 0.0
    ideal_cycles: float = 0.0
    dram_bytes: float = 0.0
    metadata_bytes: float = 0.0
    sram_bytes: float = 0.0
    sram_words: float = 0.0
    computed: float = 0.0
    gated: float = 0.0


def work_on_array(
    work: Contraction,
    which: Pass,
    product: TiledProduct,
    traffic: Traffic,
    sparsity: OperandSparsity,
    accelerator: Accelerator,
    array: Array,
    bits: int,
) -> ArrayWork:
    """What one pass of one contraction takes, given the tiling found for it; compressed operands also shrink buffer accesses."""
    support = accelerator.sparsity
    densities = sparsity.of(which)
    actions = split_macs(work.macs(which), densities=densities, skip=support.skip, gate=support.gate)
    cycles = array_cycles(work, which, sparsity, accelerator)
    accesses = _sram_accesses(work, which, array)
    left, right = product.left_bits / bits, product.right_bits / bits
    words = accesses.input * left + accesses.filter * right + accesses.output
    metadata = sum(
        moved * max(0.0, 1 - densities[name] * bits / stored)
        for moved, name, stored in (
            (traffic.left_bytes, "gradient" if which == "grad_input" else "activation", product.left_bits),
            (traffic.right_bytes, "gradient" if which == "grad_weight" else "weight", product.right_bits),
        )
        if 0 < stored < bits
    )
    return ArrayWork(
        cycles=cycles,
        ideal_cycles=cycles if array.dataflow not in ("skip", "cartesian") else actions.timed / array.multipliers,
        dram_bytes=_repeated_bytes(work, which, product, traffic, accelerator),
        metadata_bytes=metadata * work.repeats,
        sram_bytes=words * bits / 8,
        sram_words=words,
        computed=actions.computed,
        gated=actions.gated,
    )


def _repeated_bytes(work: Contraction, which: Pass, product: TiledProduct, traffic: Traffic, accelerator: Accelerator) -> float:
    """Bytes of all executions; a weight that takes at most half of the buffer stays there from one to the next."""
    total = traffic.total_bytes * work.repeats
    if work.repeats == 1 or not work.shared_weight:
        return total
    gemm = product.gemm
    held, moved = gemm.right_elements * product.right_bits, traffic.right_bytes
    if which == "grad_weight":
        held, moved = gemm.result_elements * product.partial_bits, traffic.result_bytes
    stays = held <= accelerator.memory.usable_buffer_bits / 2
    return total - (work.repeats - 1) * moved if stays else total


def attention_on_array(
    work: Attention, which: Pass, accelerator: Accelerator, array: Array, bits: int, moved_bytes: float
) -> list[ArrayWork]:
    """Both products on the array, scaled to the pass's MACs; the scores stay in the buffer unless backward is "math"."""
    products = work.contractions()
    full = sum(product.forward_macs for product in products)
    scale = work.macs(which) / full if full else 0.0
    cycles = scale * sum(array_cycles(product, "forward", DENSE, accelerator) for product in products)
    words = scale * sum(_sram_accesses(product, "forward", array).total for product in products)
    return [
        ArrayWork(
            cycles=cycles,
            ideal_cycles=cycles,
            dram_bytes=moved_bytes,
            sram_bytes=words * bits / 8,
            sram_words=words,
            computed=float(work.macs(which)),
        )
    ]


def array_cycles(work: Contraction, which: Pass, sparsity: OperandSparsity, accelerator: Accelerator) -> float:
    """Cycles that the multipliers of an array take for one pass, memory left out; all groups and repeats.

    Raises: CostError for an accelerator without an array.
    """
    array, support = accelerator.array, accelerator.sparsity
    if array is None:
        raise CostError(f"accelerator {accelerator.name!r} is a roofline and has no cycles; expected one with an 'array' section")
    macs = work.macs(which)
    if not macs:
        return 0.0
    if accelerator.systolic:
        gemm = work.gemm(which)
        k = gemm.k
        if which == "forward" and array.dataflow == "ws" and sparsity.pattern and sparsity.pattern == (support.kept, support.group):
            k = compressed_k(k, *sparsity.pattern)
        count = overlapped_cycles if array.overlap else systolic_cycles
        one = count(dataflow=array.dataflow, rows=array.rows, columns=array.columns, m=gemm.m, k=k, n=gemm.n)  # type: ignore[arg-type]
        return float(one * gemm.groups * work.repeats)
    if array.dataflow == "rs":
        return float(row_stationary_cycles(work, which, rows=array.rows, columns=array.columns))
    if array.dataflow == "channel":
        return float(channel_parallel_cycles(work, which, rows=array.rows, columns=array.columns))
    densities = sparsity.of(which)
    if array.dataflow == "cartesian" and which != "grad_weight":
        return _cartesian(work, which, densities, array, support.skip)
    density = prod(value for name, value in densities.items() if name in support.skip)
    lanes = array.lanes_activation * array.lanes_weight
    return skipping_cycles(
        macs=-(-macs // lanes), density=density, elements=array.rows * array.columns, chunk=array.chunk, most_speedup=array.most_speedup
    )


def _cartesian(work: Contraction, which: Pass, densities: Mapping[str, float], array: Array, skip: Sequence[str]) -> float:
    inputs, outputs = work.in_channels // work.groups, work.out_channels // work.groups
    reduced, made = (inputs, outputs) if which == "forward" else (outputs, inputs)
    space = work.input_size if which == "forward" else work.output_size
    groups, positions = work.groups * work.repeats, work.batch * work.rows * prod(space)
    if not work.shared_weight:
        groups, positions = groups * work.batch, positions // max(1, work.batch)
    streamed = "activation" if which == "forward" else "gradient"
    elements = array.rows * array.columns
    # A large channel is streamed in parts, so that the distribution of its steps stays small; the parts add up.
    held = -(-positions // elements)
    parts = -(-held // 4096)
    return groups * _cached_cartesian(
        channels=reduced * parts,
        activations=-(-held // parts),
        weights=min(array.weight_group, made) * prod(work.kernel),
        density_activation=densities[streamed] if streamed in skip else 1.0,
        density_weight=densities["weight"] if "weight" in skip else 1.0,
        elements=elements,
        lanes_activation=array.lanes_activation,
        lanes_weight=array.lanes_weight,
        weight_groups=-(-made // array.weight_group),
    )


_cached_cartesian = lru_cache(maxsize=1024)(cartesian_cycles)


def _sram_accesses(work: Contraction, which: Pass, array: Array) -> SramAccesses:
    """Words between buffer and array; arrays that are no systolic ones reuse operands as an output-stationary one does."""
    gemm = work.gemm(which)
    dataflow = array.dataflow if array.dataflow in ("os", "ws", "is") else "os"
    rows, columns = array.rows * array.lanes_activation, array.columns * array.lanes_weight
    one = systolic_sram_accesses(dataflow=dataflow, rows=rows, columns=columns, m=gemm.m, k=gemm.k, n=gemm.n)  # type: ignore[arg-type]
    times = gemm.groups * work.repeats
    return SramAccesses(input=one.input * times, filter=one.filter * times, output=one.output * times)
