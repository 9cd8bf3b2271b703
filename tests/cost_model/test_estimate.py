"""Costs of workloads on accelerators: hand-counted small cases, limits, monotony, and the papers' networks."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxsparse.cost_model import (
    PASSES,
    TAGS,
    Accelerator,
    Array,
    Attention,
    Contraction,
    CostRequest,
    CountedWorkload,
    EnergyTable,
    Memory,
    OperandSparsity,
    PassCost,
    Pointwise,
    Recurrent,
    SparseSupport,
    Workload,
    accelerators,
    array_cycles,
    compressed_k,
    estimate,
    estimate_all,
    imbalance_factor,
    operator_class,
    reduction,
    sum_costs,
    systolic_cycles,
    total_cost,
)
from fxsparse.cost_model.roofline import efficiency_of
from fxsparse.errors import CostError

from .networks import bottleneck_resnet

RESNET50 = bottleneck_resnet(4)
SMALL = Accelerator(
    name="small",
    array=Array(dataflow="ws", rows=8, columns=8, clock_hz=1e9),
    memory=Memory(dram_bytes_per_s=1e12, buffer_bytes=1 << 20, double_buffered=False, operand_bits=8, accumulator_bits=32),
    energy=EnergyTable(mac_pj=1, register_pj=1, array_pj=2, buffer_pj=6, dram_pj=200),
)
LAYER = Contraction.linear(batch=16, in_features=32, out_features=24, bias=False)


def swat_requests(density: float, layers: list[Contraction] = RESNET50) -> list[CostRequest]:
    """The first layer dense, all others with the same density of weights and activations."""
    found = []
    for index, layer in enumerate(layers):
        kept = density if index else 1.0
        found.append(
            CostRequest(workload=layer, sparsity=OperandSparsity(density_weight=kept, density_activation=kept), is_first=not index)
        )
    return found


def test_a_dense_layer_by_hand() -> None:
    forward = estimate(LAYER, SMALL).forward
    macs = 16 * 32 * 24
    assert (forward.macs, forward.dense_macs, forward.flops) == (macs, macs, 2 * macs)
    assert forward.dram_bytes == 16 * 32 + 32 * 24 + 16 * 24
    assert forward.cycles == systolic_cycles(dataflow="ws", rows=8, columns=8, m=16, k=32, n=24) == 4 * 3 * (16 + 16 + 8 - 2)
    words = 16 * 32 * 3 + 32 * 24 + 16 * 24 * 4
    assert forward.sram_bytes == words
    assert forward.energy_pj == pytest.approx(macs * (1 + 3) + words * (6 + 2) + forward.dram_bytes * 200)
    assert forward.time_s == pytest.approx(forward.cycles / 1e9)
    assert forward.bound == "compute"
    assert forward.tags["cycles"] == "exact"


def test_gradients_are_products_of_the_same_size_turned_around() -> None:
    cost = estimate(LAYER, SMALL)
    assert cost.grad_input.cycles == systolic_cycles(dataflow="ws", rows=8, columns=8, m=16, k=24, n=32)
    assert cost.grad_weight.cycles == systolic_cycles(dataflow="ws", rows=8, columns=8, m=32, k=16, n=24)
    assert cost.forward.macs == cost.grad_input.macs == cost.grad_weight.macs


def test_without_an_accelerator_only_counts_and_least_bytes() -> None:
    cost = estimate(LAYER).forward
    assert cost.dram_bytes == 4 * (16 * 32 + 32 * 24 + 16 * 24)
    assert (cost.sram_bytes, cost.cycles, cost.energy_pj, cost.time_s, cost.bound) == (None, None, None, None, None)


def test_a_convolution_moves_its_input_once_unless_told_to_unfold() -> None:
    layer = Contraction.conv(batch=1, in_channels=4, out_channels=8, kernel=(3, 3), padding=(1, 1), input_size=(8, 8))
    assert estimate(layer, SMALL).forward.dram_bytes == 4 * 64 + 8 * 36 + 8 * 64
    unfolding = replace(SMALL, memory=replace(SMALL.memory, unfold=True))
    assert estimate(layer, unfolding).forward.dram_bytes == 64 * 36 + 8 * 36 + 8 * 64
    for which in ("grad_input", "grad_weight"):
        assert estimate(layer, SMALL).of(which).dram_bytes == 4 * 64 + 8 * 36 + 8 * 64  # type: ignore[arg-type]


def test_a_transposed_convolution_moves_its_output_once() -> None:
    layer = Contraction(
        operator="conv_transpose",
        batch=2,
        in_channels=8,
        out_channels=4,
        kernel=(2, 2),
        stride=(2, 2),
        input_size=(4, 4),
        output_size=(8, 8),
    )
    for which in PASSES:
        assert estimate(layer, SMALL).of(which).dram_bytes == 2 * 8 * 16 + 8 * 4 * 4 + 2 * 4 * 64


def test_a_slow_memory_bounds() -> None:
    slow = replace(SMALL, memory=replace(SMALL.memory, dram_bytes_per_s=1e6))
    cost = estimate(LAYER, slow).forward
    assert cost.bound == "dram"
    assert cost.cycles == cost.dram_bytes * 1000
    assert cost.tags["cycles"] == "bound"


def test_a_narrow_buffer_bounds() -> None:
    narrow = replace(SMALL, memory=replace(SMALL.memory, buffer_bytes_per_cycle=0.5))
    cost = estimate(LAYER, narrow).forward
    assert cost.bound == "sram"
    assert cost.sram_bytes is not None
    assert cost.cycles == cost.sram_bytes * 2


@pytest.mark.parametrize("name", [None, *accelerators()])
def test_more_sparsity_never_costs_more(name: str | None) -> None:
    machine = Accelerator.load(name) if name else None
    rows = [total_cost(estimate_all(swat_requests(density), machine)).total for density in (1.0, 0.5, 0.2, 0.1, 0.0)]
    for dense, sparse in itertools.pairwise(rows):
        assert sparse.macs < dense.macs
        for figure in ("dram_bytes", "sram_bytes", "cycles", "energy_pj", "time_s"):
            before, after = getattr(dense, figure), getattr(sparse, figure)
            assert (before is None) == (after is None)
            assert before is None or after <= before * (1 + 1e-9), figure


@pytest.mark.parametrize("name", [name for name in accelerators() if Accelerator.load(name).array])
def test_no_machine_multiplies_faster_than_it_can(name: str) -> None:
    machine = Accelerator.load(name)
    assert machine.array is not None
    for layer in RESNET50[::9]:
        cost = estimate(layer, machine)
        for which in PASSES:
            found = cost.of(which)
            assert found.cycles is not None
            assert found.cycles * machine.array.multipliers >= found.dense_macs


def test_a_systolic_array_gains_no_time_from_random_zeros() -> None:
    machine = Accelerator.load("tpu-v1")
    dense, sparse = (total_cost(estimate_all(swat_requests(d), machine)) for d in (1.0, 0.1))
    assert sparse.forward.cycles == dense.forward.cycles
    assert sparse.forward.macs < 0.2 * dense.forward.macs


def test_skipping_takes_the_mean_times_the_imbalance() -> None:
    machine = replace(Accelerator.load("swat-array"), memory=Memory(dram_bytes_per_s=1e15, buffer_bytes=1 << 30))
    layer = Contraction.linear(batch=256, in_features=256, out_features=256, bias=False)
    cost = estimate(layer, machine, sparsity=OperandSparsity(density_weight=0.1, density_activation=0.3))
    mean = layer.forward_macs / 256
    for which, density in (("forward", 0.1), ("grad_input", 0.1), ("grad_weight", 0.3)):
        expected = mean * density * imbalance_factor(candidates=256, density=density, elements=256)
        assert cost.of(which).cycles == pytest.approx(expected, abs=1)  # type: ignore[arg-type]
        assert cost.of(which).tags["macs"] == "expected"  # type: ignore[arg-type]


def test_waiting_is_reported_as_the_bound() -> None:
    layer = Contraction.linear(batch=256, in_features=256, out_features=256, bias=False)
    machine = Accelerator.load("swat-array")
    assert machine.array is not None
    short = replace(machine, array=replace(machine.array, chunk=16), memory=Memory(dram_bytes_per_s=1e15, buffer_bytes=1 << 30))
    assert estimate(layer, short, sparsity=OperandSparsity(density_weight=0.05)).forward.bound == "imbalance"


def test_indices_that_outweigh_the_values_are_reported_as_the_bound() -> None:
    layer = Contraction.linear(batch=1, in_features=4096, out_features=4096, bias=False)
    machine = replace(SMALL, array=Array(dataflow="skip", rows=64, columns=64, clock_hz=1e9), sparsity=SparseSupport(format="bitmask"))
    starved = replace(machine, memory=replace(SMALL.memory, dram_bytes_per_s=1e6))
    assert estimate(layer, starved, sparsity=OperandSparsity(density_weight=0.02)).forward.bound == "metadata"
    assert estimate(layer, starved).forward.bound == "dram"


def test_gating_saves_energy_only() -> None:
    machine = Accelerator.load("nvdla-full")
    dense = estimate(LAYER, machine).forward
    sparse = estimate(LAYER, machine, sparsity=OperandSparsity(density_weight=0.1)).forward
    assert sparse.cycles == dense.cycles
    assert sparse.energy_pj is not None
    assert dense.energy_pj is not None
    assert sparse.energy_pj < dense.energy_pj


def test_the_swat_array_beside_the_authors_poster() -> None:
    # Compared, not fitted: the poster reports 3.3x and 3.4x at 80 %, 5.6x and 6.3x at 90 %, of an unpublished configuration.
    machine = Accelerator.load("swat-array")
    dense = total_cost(estimate_all(swat_requests(1.0), machine))
    for density, forward, backward in ((0.2, 3.3, 3.4), (0.1, 5.6, 6.3)):
        sparse = total_cost(estimate_all(swat_requests(density), machine))
        assert dense.forward.time_s is not None
        assert sparse.forward.time_s is not None
        times = [(cost.grad_input.time_s or 0) + (cost.grad_weight.time_s or 0) for cost in (dense, sparse)]
        assert dense.forward.time_s / sparse.forward.time_s == pytest.approx(forward, rel=0.2)
        assert times[0] / times[1] == pytest.approx(backward, rel=0.2)


def test_patterns_speed_up_two_of_three_products_on_a_gpu() -> None:
    machine = Accelerator.load("h100-sxm")
    layer = Contraction.linear(batch=4096, in_features=4096, out_features=4096, bias=False)
    sparsity = OperandSparsity(density_weight=0.5, pattern=(2, 4))
    dense, sparse = (estimate(layer, machine, sparsity=s, dtype="bfloat16", element_bits=16) for s in (OperandSparsity(), sparsity))
    assert dense.forward.time_s is not None
    assert sparse.forward.time_s is not None
    assert dense.forward.time_s / sparse.forward.time_s == pytest.approx(1.43)
    assert sparse.grad_weight.time_s == dense.grad_weight.time_s
    assert dense.total.time_s is not None
    assert sparse.total.time_s is not None
    assert dense.total.time_s / sparse.total.time_s == pytest.approx(1.25, abs=0.005)


def test_random_zeros_do_not_pay_on_a_gpu() -> None:
    machine = Accelerator.load("a100-80g")
    dense, sparse = (total_cost(estimate_all(swat_requests(d), machine)).total for d in (1.0, 0.1))
    assert sparse.time_s == dense.time_s


def test_patterns_shorten_a_weight_stationary_contraction() -> None:
    machine = replace(SMALL, sparsity=SparseSupport(kept=2, group=4))
    cost = estimate(LAYER, machine, sparsity=OperandSparsity(density_weight=0.5, pattern=(2, 4)))
    assert cost.forward.cycles == systolic_cycles(dataflow="ws", rows=8, columns=8, m=16, k=compressed_k(32, 2, 4), n=24)
    other = estimate(LAYER, machine, sparsity=OperandSparsity(density_weight=0.25, pattern=(1, 4)))
    assert other.forward.cycles == estimate(LAYER, SMALL).forward.cycles


def test_masked_gradients_are_made_for_kept_weights_only() -> None:
    machine = Accelerator.load("swat-array")
    layer = Contraction.linear(batch=256, in_features=256, out_features=256, bias=False)
    swat, masked, growing = (
        estimate(layer, machine, sparsity=OperandSparsity(density_weight=0.1, rule=rule)).grad_weight
        for rule in ("swat", "masked", "growing")
    )
    assert masked.macs == pytest.approx(0.1 * layer.forward_macs)
    assert growing.macs == swat.macs == layer.forward_macs
    assert masked.cycles is not None
    assert growing.cycles is not None
    assert masked.cycles < growing.cycles
    assert masked.dram_bytes < growing.dram_bytes


def test_totals_follow_the_conventions() -> None:
    costs = total_cost(estimate_all(swat_requests(0.2), convention="swat"))
    saved = reduction(
        [
            CountedWorkload(
                workload=one.workload,
                density_weight=one.sparsity.density_weight,
                density_activation=one.sparsity.density_activation,
                is_first=one.is_first,
            )
            for one in swat_requests(0.2)
        ],
        "swat",
    )
    assert 1 - costs.total.macs / costs.total.dense_macs == pytest.approx(saved["training"])
    assert f"{100 * saved['training']:.1f}" == "76.1"


def test_the_first_layer_takes_no_gradient_for_its_input() -> None:
    for machine in (None, SMALL, Accelerator.load("cpu")):
        cost = estimate(RESNET50[1], machine, is_first=True)
        assert (cost.grad_input.macs, cost.grad_input.dram_bytes) == (0, 0)
        assert (cost.grad_input.time_s or 0.0) == 0.0
        assert cost.grad_weight.macs > 0


MANY: list[Workload] = [
    LAYER,
    Contraction.matmul(batch=2, m=8, k=4, n=6, heads=3),
    Attention(batch=2, heads=4, query_length=16, key_length=16, head_size=8, value_size=8, causal=True),
    Attention(batch=2, heads=4, query_length=16, key_length=16, head_size=8, value_size=8, backward="math"),
    Recurrent(cell="lstm", batch=2, steps=5, input_size=6, hidden_size=7, bidirectional=True),
    Pointwise.of("relu", batch=2, input_elements=100, output_elements=100),
    Pointwise.of("reshape", batch=2, input_elements=100, output_elements=100),
    Contraction.conv(batch=2, in_channels=8, out_channels=8, kernel=(3,), input_size=(9,), groups=8),
]


@pytest.mark.parametrize("name", [None, *accelerators()])
@pytest.mark.parametrize("workload", MANY, ids=lambda workload: type(workload).__name__)
def test_every_workload_is_priced_on_every_machine(name: str | None, workload: Workload) -> None:
    machine = Accelerator.load(name) if name else None
    cost = estimate(workload, machine)
    json.dumps(cost.to_dict())
    assert pickle.loads(pickle.dumps(cost)) == copy.deepcopy(cost) == cost
    for which in PASSES:
        found = cost.of(which)
        assert found.macs == found.dense_macs == workload.macs(which)
        assert set(found.tags.values()) <= set(TAGS)
        if found.macs:
            assert found.dram_bytes > 0
        if machine is not None:
            assert found.time_s is not None
            assert (found.time_s > 0) == (found.bound != "nothing")
        figures = ("macs", "dense_macs", "flops", "dram_bytes", "sram_bytes", "cycles", "energy_pj", "time_s")
        untagged = [figure for figure in figures if getattr(found, figure) is not None and figure not in found.tags]
        assert not untagged


def test_a_free_operator_is_free_everywhere() -> None:
    view = Pointwise.of("reshape", batch=2, input_elements=100, output_elements=100)
    for machine in (SMALL, Accelerator.load("cpu")):
        cost = estimate(view, machine).total
        assert (cost.flops, cost.dram_bytes, cost.time_s, cost.energy_pj or 0) == (0, 0, 0, 0)


def test_a_pointwise_operator_takes_its_bytes_over_the_bandwidth() -> None:
    relu = Pointwise.of("relu", batch=1, input_elements=1000, output_elements=1000)
    cost = estimate(relu, SMALL).forward
    assert cost.dram_bytes == 2000  # 8-bit words on this machine
    assert cost.bound == "dram"
    assert cost.cycles == 2


def test_one_layer_at_a_time_equals_all_at_once() -> None:
    machine = Accelerator.load("eyeriss")
    together = estimate_all(swat_requests(0.3)[:8], machine)
    for request, cost in zip(swat_requests(0.3)[:8], together, strict=True):
        assert estimate(request.workload, machine, sparsity=request.sparsity, is_first=request.is_first) == cost


def test_a_small_recurrent_weight_stays_in_the_buffer() -> None:
    step = Contraction(operator="recurrent", batch=2, in_channels=16, out_channels=64, repeats=10)
    moved = 10 * (2 * 16 + 2 * 64)
    assert estimate(step).forward.dram_bytes == 4 * (moved + 16 * 64)
    assert estimate(step).grad_weight.dram_bytes == 4 * (moved + 16 * 64)
    assert estimate(step, SMALL).forward.dram_bytes == moved + 16 * 64
    tight = replace(SMALL, memory=replace(SMALL.memory, buffer_bytes=1500))
    assert estimate(step, tight).forward.dram_bytes == moved + 10 * 16 * 64


@pytest.mark.parametrize("batch", [2, 8])
def test_macs_scale_with_the_batch(batch: int) -> None:
    for workload in MANY:
        one, many = estimate(workload.with_batch(1), SMALL), estimate(workload.with_batch(batch), SMALL)
        assert many.total.macs == batch * one.total.macs
        assert many.total.dram_bytes <= batch * one.total.dram_bytes * (1 + 1e-9)


@pytest.mark.parametrize(
    ("workload", "kind"),
    [
        (LAYER, "gemm"),
        (RESNET50[0], "conv"),
        (RESNET50[1], "pointwise_conv"),
        (replace(RESNET50[1], groups=4), "grouped_conv"),
        (MANY[-1], "depthwise"),
        (MANY[2], "attention"),
        (MANY[4], "recurrent"),
        (Pointwise(operator="batch_norm", batch=1), "batch_norm"),
        (Pointwise(operator="loss", batch=1), "elementwise"),
    ],
)
def test_classes_of_operators(workload: Workload, kind: str) -> None:
    assert operator_class(workload) == kind


@pytest.mark.parametrize(
    ("measured", "kind", "backward", "expected"),
    [
        ({"conv": 0.5, "conv_backward": 0.4, "pointwise_conv": 0.3}, "pointwise_conv", False, 0.3),
        ({"conv": 0.5, "conv_backward": 0.4, "pointwise_conv": 0.3}, "pointwise_conv", True, 0.4),
        ({"conv": 0.5, "depthwise": 0.1, "conv_backward": 0.4}, "depthwise", True, 0.1),
        ({"elementwise": 0.6}, "batch_norm", True, 0.6),
        ({"elementwise": 0.6, "batch_norm_backward": 0.2}, "batch_norm", True, 0.2),
        ({"gemm": 0.9}, "attention", False, 0.9),
        ({"conv": 0.5, "conv_backward": 0.4}, "narrow_conv", True, 0.4),
        ({}, "gemm", True, 1.0),
    ],
)
def test_a_class_that_was_not_measured_has_one_that_stands_in(
    measured: dict[str, float], kind: str, backward: bool, expected: float
) -> None:
    assert efficiency_of(measured, kind, backward=backward) == expected


def test_sums_keep_the_least_certain_tag_and_the_longest_bound() -> None:
    first = PassCost(macs=1, time_s=1.0, bound="dram", tags={"macs": "exact", "time_s": "expected"})
    second = PassCost(macs=2, time_s=3.0, bound="compute", cycles=5, tags={"macs": "bound"})
    found = sum_costs([first, second])
    assert (found.macs, found.time_s, found.cycles, found.bound) == (3, 4.0, 5, "compute")
    assert found.tags == {"macs": "bound", "time_s": "expected"}
    assert sum_costs([]) == PassCost()


@given(
    weight=st.floats(0, 1),
    activation=st.floats(0, 1),
    inputs=st.floats(0, 1),
    gradient=st.floats(0, 1),
    dataflow=st.sampled_from(["skip", "cartesian"]),
)
def test_skipping_stays_between_nothing_and_dense(weight: float, activation: float, inputs: float, gradient: float, dataflow: str) -> None:
    machine = replace(
        SMALL,
        array=Array(dataflow=dataflow, rows=4, columns=4, clock_hz=1e9, lanes_activation=2, lanes_weight=2),
        sparsity=SparseSupport(skip=("weight", "activation", "gradient", "output"), format="bitmask"),
    )
    sparsity = OperandSparsity(density_weight=weight, density_activation=activation, density_input=inputs, density_gradient=gradient)
    for which in PASSES:
        assert 0 <= array_cycles(LAYER, which, sparsity, machine) <= array_cycles(LAYER, which, OperandSparsity(), machine) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: estimate(LAYER, SMALL, convention="flops"), "convention is 'flops'"),
        (
            lambda: estimate(LAYER, Accelerator.load("cpu"), dtype="float8"),
            "'cpu' has no peak rate for dtype 'float8'; expected .*'float32'",
        ),
        (lambda: OperandSparsity(density_weight=-0.5), r"density_weight is -0\.5"),
        (lambda: OperandSparsity(pattern=(4, 2)), r"pattern is \(4, 2\)"),
        (lambda: OperandSparsity(rule="mask"), "rule is 'mask'.*did you mean 'masked'"),
        (lambda: array_cycles(LAYER, "forward", OperandSparsity(), Accelerator.load("cpu")), "'cpu' is a roofline and has no cycles"),
        (lambda: estimate(LAYER, replace(SMALL, memory=replace(SMALL.memory, buffer_bytes=2))), "the buffer has 16 usable bits"),
    ],
)
def test_bad_questions_are_refused(make: object, message: str) -> None:
    with pytest.raises(CostError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["eyeriss", "tpu-v1", "cpu", "swat-array"])
def test_resnet50_takes_under_fifty_milliseconds(name: str) -> None:
    machine = Accelerator.load(name)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        estimate_all(swat_requests(0.1), machine)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.05


def test_large_tensors_wait_for_new_pages() -> None:
    """A convolution's result, its input's gradient, a ReLU's result and its gradient: each from 32 MiB on, at the rate of new pages."""
    values = Accelerator.load("cpu").to_dict()
    values["roofline"] |= {"new_bytes_per_s": 1e9, "new_from_bytes": 1 << 25}
    kept, anew = Accelerator.load("cpu"), Accelerator.from_dict(values)
    conv = Contraction.conv(batch=8, in_channels=16, out_channels=96, input_size=(112, 112), kernel=(1, 1))
    relu = Pointwise.of("relu", batch=8, input_elements=1 << 20, output_elements=1 << 20)
    for work, which, pages in (
        (conv, "forward", 4 * conv.output_elements),
        (conv, "grad_input", 0),
        (replace(conv, batch=64), "grad_input", 8 * 4 * conv.input_elements),
        (conv, "grad_weight", 0),
        (relu, "forward", 1 << 25),
        (relu, "grad_input", 1 << 25),
        (replace(relu, batch=7), "forward", 0),
        (replace(relu, made_bytes=0), "forward", 0),
    ):
        before, after = (estimate(work, machine).of(which).time_s for machine in (kept, anew))
        assert before is not None
        assert after is not None
        assert after - before == pytest.approx(pages / 1e9, abs=1e-12), (work, which)
