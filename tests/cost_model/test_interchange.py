"""Files for SCALE-Sim and Timeloop, read back and compared with the contraction they describe."""

from __future__ import annotations

from math import prod

import pytest
import yaml
from hypothesis import given

from fxsparse.cost_model import PASSES, Contraction, OperandSparsity, Pass, scalesim_conv_csv, scalesim_gemm_csv, timeloop_problem_yaml
from fxsparse.errors import CostError

from .networks import bottleneck_resnet
from .test_workload import convolutions

LAYERS = {
    "conv1": Contraction.conv(
        batch=2, in_channels=3, out_channels=8, kernel=(3, 3), stride=(2, 2), padding=(1, 1), input_size=(9, 9), input_needs_grad=False
    ),
    "block.DP, 1": Contraction.conv(batch=1, in_channels=8, out_channels=8, kernel=(3, 3), input_size=(5, 5), groups=8),
    "fc": Contraction.linear(batch=2, in_features=8, out_features=4),
}


def test_gemm_topology_by_hand() -> None:
    assert scalesim_gemm_csv(LAYERS).splitlines() == [
        "Layer, M, N, K,",
        "conv1.forward, 50, 8, 27,",
        "conv1.grad_weight, 27, 8, 50,",
        "block.Dp__1.forward.x8, 9, 1, 9,",
        "block.Dp__1.grad_input.x8, 9, 9, 1,",
        "block.Dp__1.grad_weight.x8, 9, 1, 9,",
        "fc.forward, 2, 4, 8,",
        "fc.grad_input, 2, 8, 4,",
        "fc.grad_weight, 8, 4, 2,",
    ]


def test_gemm_topology_of_a_network_multiplies_what_it_counts() -> None:
    layers = {f"l{index}": layer for index, layer in enumerate(bottleneck_resnet(2))}
    rows = [line.split(",") for line in scalesim_gemm_csv(layers).splitlines()[1:]]
    assert len(rows) == 3 * 54 - 1
    total = sum(int(m) * int(n) * int(k) for _, m, n, k, _ in rows)
    assert total == sum(layer.macs(which) for layer in layers.values() for which in PASSES)


def test_conv_topology_by_hand() -> None:
    text, left_out = scalesim_conv_csv(LAYERS)
    assert text.splitlines()[1:] == ["conv1, 11, 11, 3, 3, 3, 8, 2,"]
    assert left_out == ("block.DP, 1", "fc")


def test_timeloop_problem_by_hand() -> None:
    problem = yaml.safe_load(timeloop_problem_yaml(LAYERS["conv1"], "grad_weight", OperandSparsity(density_activation=0.25)))["problem"]
    assert problem["shape"]["dimensions"] == ["N", "C", "M", "P", "R", "Q", "S"]
    spaces = {space["name"]: space for space in problem["shape"]["data_spaces"]}
    assert [name for name, space in spaces.items() if space.get("read_write")] == ["Weights"]
    found = spaces["Inputs"]["projection"]
    assert found == [
        [["N"]],
        [["C"]],
        [["R", "Pdilation"], ["P", "Pstride"]],
        [["S", "Qdilation"], ["Q", "Qstride"]],
    ]
    assert problem["instance"]["Pstride"] == 2
    assert problem["instance"]["densities"] == {"Inputs": {"distribution": "hypergeometric", "density": 0.25}}


@given(convolutions())
def test_timeloop_loops_multiply_what_every_pass_counts(layer: Contraction) -> None:
    for which, written in (("forward", "Outputs"), ("grad_input", "Inputs"), ("grad_weight", "Weights")):
        problem = yaml.safe_load(timeloop_problem_yaml(layer, which))["problem"]  # type: ignore[arg-type]
        instance = problem["instance"]
        assert prod(instance[name] for name in problem["shape"]["dimensions"]) == layer.macs(which)  # type: ignore[arg-type]
        assert [space["name"] for space in problem["shape"]["data_spaces"] if space.get("read_write")] == [written]
        coefficients = {one["name"] for one in problem["shape"].get("coefficients", [])}
        for space in problem["shape"]["data_spaces"]:
            for axis in space["projection"]:
                for term in axis:
                    assert term[0] in problem["shape"]["dimensions"]
                    assert set(term[1:]) <= coefficients


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize(
    "layer",
    [
        Contraction.matmul(batch=2, m=3, k=4, n=5, heads=6),
        Contraction(operator="recurrent", batch=2, in_channels=3, out_channels=12, repeats=5),
        Contraction.linear(batch=2, rows=7, in_features=3, out_features=4),
    ],
)
def test_timeloop_loops_of_other_products(layer: Contraction, which: Pass) -> None:
    problem = yaml.safe_load(timeloop_problem_yaml(layer, which))["problem"]
    instance = problem["instance"]
    assert prod(instance[name] for name in problem["shape"]["dimensions"]) == layer.macs(which)
    elements = {"Weights": layer.weight_elements, "Inputs": layer.input_elements, "Outputs": layer.output_elements}
    for space in problem["shape"]["data_spaces"]:
        assert prod(instance[term[0]] for axis in space["projection"] for term in axis) == elements[space["name"]]


def test_four_spatial_axes_are_refused() -> None:
    layer = Contraction.conv(batch=1, in_channels=1, out_channels=1, kernel=(1,) * 4, input_size=(2,) * 4)
    with pytest.raises(CostError, match="up to 3 spatial axes"):
        timeloop_problem_yaml(layer, "forward")
