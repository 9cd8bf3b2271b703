"""Contractions against counting loops, and the ways in and out of JSON."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import replace
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxsparse.cost_model import Attention, Contraction, Pointwise, Recurrent, Workload, contractions_of, workload_from_dict
from fxsparse.errors import CostError


def counted(layer: Contraction) -> dict[str, int]:
    """MACs by walking every loop: all taps, those that meet real data, and the operand elements touched."""
    taps = real = 0
    walked = layer.input_size if layer.transposed else layer.output_size
    limit = layer.output_size if layer.transposed else layer.input_size
    for _ in range(layer.batch * layer.rows * layer.repeats):
        for place in itertools.product(*(range(size) for size in walked)):
            for tap in itertools.product(*(range(size) for size in layer.kernel)):
                other = [p * s - e + t * d for p, s, e, t, d in zip(place, layer.stride, layer.padding, tap, layer.dilation, strict=True)]
                inside = all(0 <= o < size for o, size in zip(other, limit, strict=True))
                for group in range(layer.groups):
                    del group
                    for _ in range(layer.in_channels // layer.groups):
                        for _ in range(layer.out_channels // layer.groups):
                            taps += 1
                            real += inside
    return {"all": taps, "real": real}


@st.composite
def convolutions(draw: st.DrawFn) -> Contraction:
    """Small convolutions of one or two axes with any stride, dilation, padding and groups."""
    axes = draw(st.integers(1, 2))
    small = st.tuples(*[st.integers(1, 3)] * axes)
    kernel, stride, dilation = draw(small), draw(small), draw(small)
    padding = draw(st.tuples(*[st.integers(0, 2)] * axes))
    groups = draw(st.integers(1, 3))
    output_size = draw(st.tuples(*[st.integers(1, 3)] * axes))
    rest = draw(st.tuples(*[st.integers(0, 2)] * axes))
    input_size = tuple(
        max(1, (o - 1) * s + d * (k - 1) + 1 - 2 * p + min(r, s - 1))
        for o, s, d, k, p, r in zip(output_size, stride, dilation, kernel, padding, rest, strict=True)
    )
    output_size = tuple(
        (i + 2 * p - d * (k - 1) - 1) // s + 1 for i, s, d, k, p in zip(input_size, stride, dilation, kernel, padding, strict=True)
    )
    sizes = (input_size, output_size)
    transposed = draw(st.booleans())
    return Contraction(
        operator="conv_transpose" if transposed else "conv",
        batch=draw(st.integers(1, 2)),
        in_channels=groups * draw(st.integers(1, 2)),
        out_channels=groups * draw(st.integers(1, 2)),
        groups=groups,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        padding=padding,
        input_size=sizes[1] if transposed else sizes[0],
        output_size=sizes[0] if transposed else sizes[1],
    )


@given(convolutions())
def test_conv_macs_equal_the_counting_loop(layer: Contraction) -> None:
    loop = counted(layer)
    assert layer.forward_macs == loop["all"]
    assert layer.unpadded_forward_macs == loop["real"]


@given(convolutions())
def test_the_three_gemms_multiply_what_the_passes_count(layer: Contraction) -> None:
    for which in ("forward", "grad_input", "grad_weight"):
        assert layer.gemm(which).macs * layer.repeats == layer.macs(which)
    assert layer.gemm("grad_weight").result_elements == layer.weight_elements


@given(convolutions())
def test_conv_survives_json_and_pickle(layer: Contraction) -> None:
    assert Contraction.from_dict(json.loads(json.dumps(layer.to_dict()))) == layer
    assert pickle.loads(pickle.dumps(layer)) == layer
    assert workload_from_dict(layer.to_dict()) == layer


@pytest.mark.parametrize(
    ("layer", "macs", "weights", "inputs", "outputs"),
    [
        # 2 samples x 2x2 outputs x 4 out x (6 in / 2 groups) x 3x3 taps
        (
            Contraction.conv(
                batch=2, in_channels=6, out_channels=4, kernel=(3, 3), stride=(2, 2), padding=(1, 1), input_size=(4, 4), groups=2
            ),
            864,
            108,
            192,
            32,
        ),
        # depthwise 3x3 on 5 channels, dilation 2: 4x4 outputs of an 8x8 input
        (
            Contraction.conv(batch=1, in_channels=5, out_channels=5, kernel=(3, 3), dilation=(2, 2), input_size=(8, 8), groups=5),
            720,
            45,
            320,
            80,
        ),
        # transposed: 3 samples x 2x2 inputs x 4 in x (6 out / 2 groups) x 2x2 taps
        (
            Contraction(
                operator="conv_transpose",
                batch=3,
                in_channels=4,
                out_channels=6,
                groups=2,
                kernel=(2, 2),
                stride=(2, 2),
                input_size=(2, 2),
                output_size=(4, 4),
            ),
            576,
            48,
            48,
            288,
        ),
        (Contraction.linear(batch=2, rows=3, in_features=4, out_features=5), 120, 20, 24, 30),
        (Contraction.matmul(batch=2, m=3, k=4, n=5, heads=7), 840, 280, 168, 210),
        (Contraction(operator="recurrent", batch=2, in_channels=3, out_channels=12, repeats=5), 360, 36, 30, 120),
        (
            Contraction(
                operator="conv", batch=1, in_channels=1, out_channels=1, kernel=(3, 1, 2), input_size=(4, 4, 4), output_size=(2, 4, 3)
            ),
            144,
            6,
            64,
            24,
        ),
    ],
)
def test_sizes_by_hand(layer: Contraction, macs: int, weights: int, inputs: int, outputs: int) -> None:
    assert (layer.forward_macs, layer.weight_elements, layer.input_elements, layer.output_elements) == (macs, weights, inputs, outputs)
    assert layer.macs("grad_input") == layer.macs("grad_weight") == macs


def test_gemms_by_hand() -> None:
    layer = Contraction.conv(
        batch=2, in_channels=6, out_channels=4, kernel=(3, 3), stride=(2, 2), padding=(1, 1), input_size=(4, 4), groups=2
    )
    found = [layer.gemm(which) for which in ("forward", "grad_input", "grad_weight")]
    assert [(gemm.m, gemm.k, gemm.n, gemm.groups) for gemm in found] == [(8, 27, 2, 2), (8, 2, 27, 2), (27, 8, 2, 2)]
    product = Contraction.matmul(batch=2, m=3, k=4, n=5, heads=7).gemm("grad_weight")
    assert (product.m, product.k, product.n, product.groups) == (4, 3, 5, 14)


def test_alexnet_conv2_gemm() -> None:
    layer = Contraction.conv(batch=1, in_channels=96, out_channels=256, kernel=(5, 5), input_size=(27, 27))
    gemm = layer.gemm("forward")
    assert (gemm.m, gemm.k, gemm.n) == (529, 2400, 256)


def test_gradients_that_nobody_needs_cost_nothing() -> None:
    frozen = Contraction(operator="linear", batch=2, in_channels=3, out_channels=4, input_needs_grad=False, weight_needs_grad=False)
    assert (frozen.macs("forward"), frozen.macs("grad_input"), frozen.macs("grad_weight")) == (24, 0, 0)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_macs_are_linear_in_the_batch(batch: int) -> None:
    workloads: list[Workload] = [
        Contraction.linear(batch=1, in_features=4, out_features=5),
        Contraction.matmul(batch=1, m=3, k=4, n=5),
        Attention(batch=1, heads=2, query_length=3, key_length=5, head_size=4, value_size=6),
        Recurrent(cell="gru", batch=1, steps=3, input_size=4, hidden_size=5, bidirectional=True),
    ]
    for workload in workloads:
        for which in ("forward", "grad_input", "grad_weight"):
            assert workload.with_batch(batch).macs(which) == batch * workload.macs(which)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operator": "convolve"}, r"operator is 'convolve'.*'conv'"),
        ({"batch": -1}, r"batch is -1; expected an integer >= 0"),
        ({"groups": 2}, r"in_channels is 3; expected a multiple of groups = 2"),
        ({"kernel": (0,)}, r"kernel\[0\] is 0"),
        ({"stride": (1, 1)}, r"stride is \(1, 1\); expected 1 entries"),
        ({"input_size": ()}, r"input_size is \(\); expected 1 entries"),
        ({"in_channels": 3.0}, r"in_channels is 3\.0; expected an integer"),
    ],
)
def test_bad_contractions_are_refused(changes: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"operator": "conv", "batch": 1, "in_channels": 3, "out_channels": 4, "kernel": (3,)}
    good |= {"input_size": (5,), "output_size": (3,)}
    Contraction(**good)  # type: ignore[arg-type]
    with pytest.raises(CostError, match=message):
        Contraction(**(good | changes))  # type: ignore[arg-type]


def test_a_conv_that_does_not_fit_its_input_is_refused() -> None:
    with pytest.raises(CostError, match=r"output_size\[0\] is -1"):
        Contraction.conv(batch=1, in_channels=1, out_channels=1, kernel=(5,), input_size=(3,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "contraction", "operator": "linear", "batch": 1, "in_channels": 2}, "lacks out_channels"),
        ({"kind": "contraction", "operater": "linear"}, r"no field 'operater'; did you mean 'operator'"),
        ({"kind": "contractions"}, r"kind is 'contractions'.*did you mean 'contraction'"),
        ({}, "kind is None"),
    ],
)
def test_bad_dictionaries_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(CostError, match=message):
        workload_from_dict(values)


@pytest.mark.parametrize(
    "workload",
    [
        Attention(batch=2, heads=4, key_heads=2, query_length=3, key_length=5, head_size=8, value_size=8, backward="math"),
        Recurrent(cell="lstm", batch=2, steps=3, input_size=4, hidden_size=5, layers=2, bidirectional=True, projection_size=3),
        Pointwise.of("batch_norm", batch=2, input_elements=10, output_elements=10, parameter_elements=4, saved_elements=10),
    ],
)
def test_other_workloads_survive_json(workload: Workload) -> None:
    assert workload_from_dict(json.loads(json.dumps(workload.to_dict()))) == workload


def test_attention_by_hand() -> None:
    plain = Attention(batch=2, heads=3, query_length=4, key_length=5, head_size=6, value_size=8)
    pairs = 2 * 3 * 4 * 5
    assert plain.macs("forward") == pairs * 14
    assert plain.macs("grad_input") == pairs * (28 + 6)
    assert plain.macs("grad_weight") == 0
    kept = Attention(batch=2, heads=3, query_length=4, key_length=5, head_size=6, value_size=8, backward="math")
    assert kept.macs("grad_input") == 2 * kept.macs("forward")


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (4, 4), (4, 7), (7, 4)])
def test_causal_pairs_equal_the_counting_loop(queries: int, keys: int) -> None:
    loop = sum(key <= query for query in range(queries) for key in range(keys))
    found = Attention(batch=1, heads=1, query_length=queries, key_length=keys, head_size=1, value_size=1, causal=True)
    assert found.score_pairs == loop
    if queries == keys:
        assert found.score_pairs == queries * keys * (queries + 1) // (2 * queries)


def test_flash_backward_is_two_and_a_half_forwards_for_equal_heads() -> None:
    flash = Attention(batch=1, heads=2, query_length=4, key_length=4, head_size=8, value_size=8)
    assert 2 * flash.macs("grad_input") == 5 * flash.macs("forward")


def test_attention_moves_less_without_its_scores() -> None:
    sizes = {"batch": 1, "heads": 2, "query_length": 64, "key_length": 64, "head_size": 8, "value_size": 8}
    flash, kept = Attention(**sizes), Attention(**sizes, backward="math")
    for which in ("forward", "grad_input"):
        assert flash.pass_elements(which) < kept.pass_elements(which)
    assert flash.pass_elements("forward") == 4 * 1024


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        # (4 + 5) inputs into 4 x 5 gates, 3 steps, 2 samples
        (Recurrent(cell="lstm", batch=2, steps=3, input_size=4, hidden_size=5), 2 * 3 * (4 + 5) * 20),
        (Recurrent(cell="gru", batch=2, steps=3, input_size=4, hidden_size=5), 2 * 3 * (4 + 5) * 15),
        (Recurrent(cell="rnn", batch=1, steps=1, input_size=4, hidden_size=5), (4 + 5) * 5),
        # second layer reads both directions
        (
            Recurrent(cell="rnn", batch=1, steps=2, input_size=4, hidden_size=5, layers=2, bidirectional=True),
            2 * 2 * 5 * ((4 + 5) + (10 + 5)),
        ),
        # projected: gates read 4 inputs and 3 states, then 5 units become 3
        (Recurrent(cell="lstm", batch=1, steps=2, input_size=4, hidden_size=5, projection_size=3), 2 * ((4 + 3) * 20 + 15)),
    ],
)
def test_recurrent_by_hand(layer: Recurrent, macs: int) -> None:
    assert layer.macs("forward") == layer.macs("grad_weight") == macs
    assert sum(product.forward_macs for product in contractions_of(layer)) == macs


def test_the_first_recurrent_product_needs_no_gradient_for_a_network_input() -> None:
    layer = Recurrent(cell="lstm", batch=2, steps=3, input_size=4, hidden_size=5, input_needs_grad=False)
    assert layer.macs("grad_input") == 2 * (3 - 1) * 5 * 20  # nor does the first step's state, which is given
    assert replace(layer, state_needs_grad=True).macs("grad_input") == 2 * 3 * 5 * 20


def test_pointwise_bytes_by_hand() -> None:
    norm = Pointwise.of("batch_norm", batch=2, input_elements=10, output_elements=10, parameter_elements=4, saved_elements=10)
    assert norm.pass_bytes("forward") == 2 * 80 + 16
    assert norm.pass_bytes("grad_input") == 2 * (80 + 40)
    assert norm.pass_bytes("grad_weight") == 32
    assert norm.pass_flops("forward") == 2 * 70
    assert norm.macs("forward") == 0


def test_a_free_operator_moves_nothing() -> None:
    view = Pointwise.of("reshape", batch=2, input_elements=10, output_elements=10)
    assert view.free
    assert all(view.pass_bytes(which) == 0 for which in ("forward", "grad_input", "grad_weight"))
    with pytest.raises(CostError, match="declared free but moves bytes"):
        Pointwise(operator="copy", batch=1, read_bytes=4, free=True)


def test_a_contraction_of_the_reference_shape_counts_its_product() -> None:
    layer = Contraction.conv(batch=2, in_channels=4, out_channels=8, kernel=(3, 3), padding=(1, 1), input_size=(5, 5))
    assert layer.forward_macs == 2 * prod(layer.output_size) * 8 * 4 * 9
