"""The cost of workloads on an accelerator: forward, grad-input and grad-weight, dense or sparse.

MACs and FLOPs follow a counting convention. Cycles, traffic and energy are those of what the machine does, whatever the
convention: the exact products, with the zeros that this machine can skip left out. Computing and moving overlap perfectly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

from fxsparse.errors import CostError

from .accelerator import Accelerator, Array
from .attention import Attention
from .conventions import SparsePassMacs, pass_macs, sparse_pass_macs
from .cost import PassCost, WorkloadCost, sum_costs
from .gemm import PASSES, Pass
from .on_array import ArrayWork, attention_on_array, work_on_array
from .operands import DENSE, OperandSparsity, tiled_product
from .pointwise import Pointwise
from .recurrent import Recurrent
from .roofline import PARENTS, efficiency_of, roofline_time
from .traffic import NOTHING, TiledProduct, Traffic, best_traffic, compulsory_bytes
from .validate import require_count
from .workload import Contraction
from .workloads import Workload, without_input_gradient


@dataclass(frozen=True, kw_only=True)
class CostRequest:
    """One workload to be priced, with its sparsity; is_first: its input is the network's, so its gradient is not taken."""

    workload: Workload
    sparsity: OperandSparsity = DENSE
    is_first: bool = False


def estimate(
    workload: Workload,
    accelerator: Accelerator | None = None,
    *,
    sparsity: OperandSparsity = DENSE,
    is_first: bool = False,
    convention: str = "exact",
    element_bits: int = 32,
    dtype: str = "float32",
    device: str = "cpu",
) -> WorkloadCost:
    """The cost of one workload; see `estimate_all`."""
    request = CostRequest(workload=workload, sparsity=sparsity, is_first=is_first)
    return estimate_all([request], accelerator, convention=convention, element_bits=element_bits, dtype=dtype, device=device)[0]


def estimate_all(
    requests: Sequence[CostRequest],
    accelerator: Accelerator | None = None,
    *,
    convention: str = "exact",
    element_bits: int = 32,
    dtype: str = "float32",
    device: str = "cpu",
) -> list[WorkloadCost]:
    """The costs of many workloads, in the order given; far faster than one by one, since all tilings are searched together.

    accelerator None counts MACs, FLOPs and the bytes that must move at least; the rest is None. element_bits: of the model's
    tensors (arrays compute with words of their own, `memory.operand_bits`). dtype: which peak rate of a roofline applies.
    device: "cpu" or "cuda", where convention "torch" counts differently.
    Raises: CostError for an unknown convention, a dtype without a rate, or a buffer that holds nothing.
    """
    require_count("element_bits", element_bits)
    array = accelerator is not None and accelerator.array is not None
    bits, partial = (element_bits, element_bits)
    if array and accelerator is not None:
        bits, partial = accelerator.memory.operand_bits, accelerator.memory.accumulator_bits
    tiled: dict[TiledProduct, Traffic] = {}
    plans: list[dict[Pass, list[tuple[Contraction, TiledProduct]]]] = []
    wanted = [replace(one, workload=without_input_gradient(one.workload)) if one.is_first else one for one in requests]
    distinct = list(dict.fromkeys(wanted))  # a network repeats its blocks
    for request in distinct:
        plan: dict[Pass, list[tuple[Contraction, TiledProduct]]] = {which: [] for which in PASSES}
        for work in _products(request.workload):
            for which in PASSES:
                if work.macs(which):
                    product = tiled_product(
                        work,
                        which,
                        request.sparsity,
                        operand_bits=bits,
                        partial_bits=partial,
                        storage=accelerator.sparsity.storage() if array and accelerator is not None else None,
                        unfold=accelerator.memory.unfold if accelerator is not None else False,
                    )
                    tiled[product] = NOTHING
                    plan[which].append((work, product))
        plans.append(plan)
    if array and accelerator is not None:
        found = best_traffic(list(tiled), buffer_bits=accelerator.memory.usable_buffer_bits)
        tiled = dict(zip(tiled, found, strict=True))
    costs: dict[CostRequest, WorkloadCost] = {}
    for request, plan in zip(distinct, plans, strict=True):
        dense = pass_macs(request.workload, convention, device=device)
        sparsity = request.sparsity
        sparse = sparse_pass_macs(
            dense, density_weight=sparsity.density_weight, density_activation=sparsity.density_activation, rule=sparsity.rule
        )
        rows: dict[Pass, PassCost] = {}
        for position, which in enumerate(PASSES):
            counted = _count(request, which, dense[position], sparse, position)
            rows[which] = _price(request, which, counted, plan[which], tiled, accelerator, element_bits, bits, dtype)
        costs[request] = WorkloadCost(forward=rows["forward"], grad_input=rows["grad_input"], grad_weight=rows["grad_weight"])
    return [costs[request] for request in wanted]


def total_cost(costs: Sequence[WorkloadCost]) -> WorkloadCost:
    """The three passes of a whole network, each summed over its workloads."""
    return WorkloadCost(
        forward=sum_costs(cost.forward for cost in costs),
        grad_input=sum_costs(cost.grad_input for cost in costs),
        grad_weight=sum_costs(cost.grad_weight for cost in costs),
    )


def _products(workload: Workload) -> tuple[Contraction, ...]:
    """The contractions that are tiled; an attention is priced as a whole."""
    if isinstance(workload, Contraction):
        return (workload,)
    return workload.contractions() if isinstance(workload, Recurrent) else ()


def _least_bytes(work: Contraction, which: Pass, product: TiledProduct) -> float:
    """Bytes of all executions when each operand crosses the interface once, a weight used again and again only once in all."""
    gemm = product.gemm
    weight_bits = gemm.result_elements * product.result_bits if which == "grad_weight" else gemm.right_elements * product.right_bits
    again = (work.repeats - 1) * weight_bits / 8 if work.shared_weight else 0.0
    return compulsory_bytes(product) * work.repeats - again


@dataclass(frozen=True)
class _Counted:
    macs: float
    dense_macs: int
    flops: float
    other_flops: float


def _count(request: CostRequest, which: Pass, dense: int, sparse: SparsePassMacs, position: int) -> _Counted:
    macs = sparse[position]
    other = 0 if isinstance(request.workload, Contraction) else request.workload.pass_flops(which)
    return _Counted(macs=macs, dense_macs=dense, flops=2 * macs + other, other_flops=other)


def _price(
    request: CostRequest,
    which: Pass,
    counted: _Counted,
    plan: list[tuple[Contraction, TiledProduct]],
    tiled: Mapping[TiledProduct, Traffic],
    accelerator: Accelerator | None,
    element_bits: int,
    bits: int,
    dtype: str,
) -> PassCost:
    work = request.workload
    moved_bytes = sum(_least_bytes(one, which, product) for one, product in plan)
    if isinstance(work, Pointwise):
        moved_bytes += work.pass_bytes(which) * bits / element_bits
    if isinstance(work, Attention):
        moved_bytes += work.pass_elements(which) * bits / 8
    if accelerator is None:
        return _cost(counted, dram_bytes=moved_bytes, tags=_TAGS["none", request.sparsity.is_dense])
    if accelerator.roofline is not None:
        made_bytes = _made_bytes(work, which, element_bits) * bits / element_bits
        return _roofline(request, which, counted, moved_bytes, made_bytes, accelerator, dtype)
    array = accelerator.array
    assert array is not None
    parts = [work_on_array(one, which, product, tiled[product], request.sparsity, accelerator, array, bits) for one, product in plan]
    if isinstance(work, Attention) and work.macs(which):
        parts = attention_on_array(work, which, accelerator, array, bits, moved_bytes)
    elif isinstance(work, Pointwise):
        parts = [ArrayWork(dram_bytes=moved_bytes, sram_bytes=moved_bytes, sram_words=moved_bytes * 8 / bits)] if moved_bytes else []
    return _array_cost(request, counted, parts, accelerator, array, bits)


def _array_cost(
    request: CostRequest, counted: _Counted, parts: Sequence[ArrayWork], accelerator: Accelerator, array: Array, bits: int
) -> PassCost:
    memory = accelerator.memory
    compute = sum(part.cycles for part in parts)
    dram_bytes = sum(part.dram_bytes for part in parts)
    sram_bytes = sum(part.sram_bytes for part in parts)
    dram_cycles = dram_bytes / memory.dram_bytes_per_s * array.clock_hz
    sram_cycles = sram_bytes / memory.buffer_bytes_per_cycle if memory.buffer_bytes_per_cycle else 0.0
    cycles = max(compute, dram_cycles, sram_cycles)
    if cycles == 0:
        bound = "nothing"
    elif compute >= cycles:
        bound = "imbalance" if compute > 2 * sum(part.ideal_cycles for part in parts) else "compute"
    elif dram_cycles >= cycles:
        bound = "metadata" if sum(part.metadata_bytes for part in parts) > dram_bytes / 2 else "dram"
    else:
        bound = "sram"
    energy = None
    if accelerator.energy is not None:
        computed, gated = sum(part.computed for part in parts), sum(part.gated for part in parts)
        words = sum(part.sram_words for part in parts)
        # Three register accesses a MAC (two operands, one sum), one for a gated MAC; one hop for each word from the buffer.
        energy = accelerator.energy.energy_pj(
            computed=computed, gated=gated, register=3 * computed + gated, array=words, buffer=words, dram=dram_bytes * 8 / bits
        )
    dense = request.sparsity.is_dense
    kind = (
        "systolic" if accelerator.systolic and bound in ("compute", "nothing") and not isinstance(request.workload, Attention) else "array"
    )
    return _cost(
        counted,
        dram_bytes=dram_bytes,
        sram_bytes=sram_bytes,
        cycles=ceil(cycles - 1e-9),
        energy_pj=energy,
        time_s=cycles / array.clock_hz,
        bound=bound,
        tags=_TAGS[kind, dense],
    )


_NARROW = 64  # channels below which a 1x1 convolution moves more than it multiplies
_SMALL_KERNEL = 25  # positions of the largest kernel whose depthwise convolution does the same


def operator_class(workload: Workload) -> str:
    """The class under which a roofline's efficiencies are kept."""
    if isinstance(workload, Pointwise):
        return workload.operator if workload.operator in PARENTS else "elementwise"
    if isinstance(workload, Attention):
        return "attention"
    if isinstance(workload, Recurrent):
        return "recurrent"
    if not workload.kernel:
        return "gemm"
    kernel = prod(workload.kernel)
    if workload.groups > 1:
        if workload.groups < workload.in_channels:
            return "grouped_conv"
        return "depthwise" if kernel <= _SMALL_KERNEL else "large_depthwise"
    if kernel > 1:
        return "conv"
    return "pointwise_conv" if min(workload.in_channels, workload.out_channels) >= _NARROW else "narrow_conv"


def _made_bytes(work: Workload, which: Pass, element_bits: int) -> float:
    """Bytes of the largest tensor that a pass makes."""
    if isinstance(work, Pointwise):
        return float({"forward": work.made_bytes, "grad_input": work.backward_made_bytes}.get(which, 0) * work.batch)
    made = {"forward": "output_elements", "grad_input": "input_elements", "grad_weight": "weight_elements"}[which]
    return max((getattr(one, made) for one in _products(work)), default=0) * element_bits / 8


def _roofline(
    request: CostRequest, which: Pass, counted: _Counted, moved_bytes: float, made_bytes: float, accelerator: Accelerator, dtype: str
) -> PassCost:
    machine = accelerator.roofline
    assert machine is not None
    if dtype not in machine.peak_flops:
        rates = ", ".join(map(repr, machine.peak_flops))
        raise CostError(f"accelerator {accelerator.name!r} has no peak rate for dtype {dtype!r}; expected one of {rates}")
    work = request.workload
    kind = "calibrated" if machine.calibrated else "roofline"
    flops = 2.0 * work.macs(which) + counted.other_flops
    if not flops and not moved_bytes:
        return _cost(counted, dram_bytes=0.0, cycles=None, energy_pj=0.0, time_s=0.0, bound="nothing", tags=_TAGS[kind, True])
    support, sparsity = accelerator.sparsity, request.sparsity
    peak = machine.peak_flops[dtype]
    if which != "grad_weight" and sparsity.pattern and sparsity.pattern == (support.kept, support.group):
        peak *= support.pattern_speedup or 1.0
    found = roofline_time(
        flops=flops,
        dram_bytes=moved_bytes,
        peak_flops=peak,
        dram_bytes_per_s=accelerator.memory.dram_bytes_per_s,
        efficiency=efficiency_of(machine.efficiency, operator_class(work), backward=which != "forward"),
        overhead_s=machine.overhead_s,
    )
    seconds = found.time_s + (
        made_bytes / machine.new_bytes_per_s if machine.new_bytes_per_s and made_bytes >= machine.new_from_bytes else 0
    )
    return _cost(
        counted,
        dram_bytes=moved_bytes,
        energy_pj=None if machine.power_w is None else seconds * machine.power_w * 1e12,
        time_s=seconds,
        bound=found.bound,
        tags=_TAGS[kind, sparsity.is_dense],
    )


def _cost(
    counted: _Counted,
    *,
    dram_bytes: float,
    tags: Mapping[str, str],
    sram_bytes: float | None = None,
    cycles: int | None = None,
    energy_pj: float | None = None,
    time_s: float | None = None,
    bound: str | None = None,
) -> PassCost:
    return PassCost(
        macs=counted.macs,
        dense_macs=counted.dense_macs,
        flops=counted.flops,
        dram_bytes=dram_bytes,
        sram_bytes=sram_bytes,
        cycles=cycles,
        energy_pj=energy_pj,
        time_s=time_s,
        bound=bound,
        tags=dict(tags),
    )


def _tags(kind: str, dense: bool) -> dict[str, str]:
    counted = "exact" if dense else "expected"
    tags = {"macs": counted, "dense_macs": "exact", "flops": counted, "dram_bytes": "bound"}
    if kind in ("systolic", "array"):
        timed = counted if kind == "systolic" else "bound"
        tags |= {"sram_bytes": timed, "cycles": timed, "energy_pj": "bound", "time_s": timed}
    elif kind != "none":
        tags |= {"time_s": "calibrated" if kind == "calibrated" else "bound", "energy_pj": "bound"}
    return tags


_TAGS = {(kind, dense): _tags(kind, dense) for kind in ("none", "systolic", "array", "roofline", "calibrated") for dense in (True, False)}
