"""Contractions as the input files of other tools: SCALE-Sim topologies and Timeloop problems, gradients included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fxsparse.errors import CostError

from .gemm import PASSES, Pass
from .operands import DENSE, OperandSparsity
from .workload import Contraction

# Timeloop dimension names of up to three spatial axes: output (or input) position, and kernel tap.
_AXES = (("P", "R"), ("Q", "S"), ("Z", "T"))


def scalesim_gemm_csv(layers: Mapping[str, Contraction], passes: Sequence[Pass] = PASSES) -> str:
    """A SCALE-Sim topology of matrix products (run it with `-i gemm`), one row for each layer and pass that multiplies.

    A row is one group of one execution; a name that ends in ".xN" stands for N such products.
    """
    lines = ["Layer, M, N, K,"]
    for name, layer in layers.items():
        for which in passes:
            if not layer.macs(which):
                continue
            gemm = layer.gemm(which)
            times = gemm.groups * layer.repeats
            label = f"{_plain_name(name)}.{which}" + (f".x{times}" if times > 1 else "")
            lines.append(f"{label}, {gemm.m}, {gemm.n}, {gemm.k},")
    return "\n".join(lines) + "\n"


def scalesim_conv_csv(layers: Mapping[str, Contraction]) -> tuple[str, tuple[str, ...]]:
    """A SCALE-Sim topology of forward convolutions for one sample, and the names it cannot express.

    Padding is written into the input's size, since the simulator has none. Left out: operators that are no two-dimensional
    convolution, groups, dilation, and strides that differ.
    """
    lines = ["Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,"]
    left_out = []
    for name, layer in layers.items():
        plain = layer.operator == "conv" and len(layer.kernel) == 2 and layer.groups == 1
        if not plain or set(layer.dilation) != {1} or len(set(layer.stride)) > 1:
            left_out.append(name)
            continue
        height, width = (size + 2 * pad for size, pad in zip(layer.input_size, layer.padding, strict=True))
        row = (height, width, *layer.kernel, layer.in_channels, layer.out_channels, layer.stride[0])
        lines.append(f"{_plain_name(name)}, {', '.join(map(str, row))},")
    return "\n".join(lines) + "\n", tuple(left_out)


def timeloop_problem(layer: Contraction, which: Pass, sparsity: OperandSparsity = DENSE) -> dict[str, Any]:
    """The Timeloop problem of one pass: the loops of the layer, with the operand that this pass makes marked as written.

    All three passes share one iteration space; grad-input writes Inputs and grad-weight writes Weights, reading Outputs (then the
    output's gradient). Densities below 1 are given as hypergeometric. Raises: CostError beyond three spatial axes.
    """
    if len(layer.kernel) > len(_AXES):
        raise CostError(f"a Timeloop problem takes up to {len(_AXES)} spatial axes; got kernel {layer.kernel!r}")
    sizes = {"N": layer.batch, "C": layer.in_channels // layer.groups, "M": layer.out_channels // layer.groups}
    weights, inputs, outputs = [[["C"]], [["M"]]], [[["N"]], [["C"]]], [[["N"]], [["M"]]]
    if layer.groups > 1:
        sizes["G"] = layer.groups
        for space in (weights, inputs, outputs):
            space.append([["G"]])
    if layer.rows > 1:
        sizes["L"] = layer.rows
        inputs.append([["L"]])
        outputs.append([["L"]])
    if not layer.shared_weight:
        weights.append([["N"]])
    if layer.repeats > 1:
        sizes["I"] = layer.repeats
        inputs.append([["I"]])
        outputs.append([["I"]])
    coefficients = []
    instance: dict[str, Any] = {}
    walked = layer.input_size if layer.transposed else layer.output_size
    for axis, (position, tap) in enumerate(_AXES[: len(layer.kernel)]):
        sizes |= {position: walked[axis], tap: layer.kernel[axis]}
        stride, dilation = f"{position}stride", f"{position}dilation"
        coefficients += [{"name": stride, "default": 1}, {"name": dilation, "default": 1}]
        instance |= {stride: layer.stride[axis], dilation: layer.dilation[axis]}
        weights.append([[tap]])
        plain, sliding = [[position]], [[tap, dilation], [position, stride]]
        inputs.append(plain if layer.transposed else sliding)
        outputs.append(sliding if layer.transposed else plain)
    written = {"forward": "Outputs", "grad_input": "Inputs", "grad_weight": "Weights"}[which]
    spaces = []
    for name, projection in (("Weights", weights), ("Inputs", inputs), ("Outputs", outputs)):
        entry: dict[str, Any] = {"name": name, "projection": projection}
        if name == written:
            entry["read_write"] = True
        spaces.append(entry)
    shape: dict[str, Any] = {"name": f"{layer.operator}_{which}", "dimensions": list(sizes), "data_spaces": spaces}
    if coefficients:
        shape["coefficients"] = coefficients
    operand_of = {"activation": "Inputs", "weight": "Weights", "gradient": "Outputs", "output": "Weights"}
    densities = {
        operand_of[name]: {"distribution": "hypergeometric", "density": density}
        for name, density in sparsity.of(which).items()
        if density < 1
    }
    problem = {"version": "0.4", "shape": shape, "instance": sizes | instance}
    if densities:
        problem["instance"] = {**sizes, **instance, "densities": densities}
    return {"problem": problem}


def timeloop_problem_yaml(layer: Contraction, which: Pass, sparsity: OperandSparsity = DENSE) -> str:
    """The text of a Timeloop problem file; see `timeloop_problem`."""
    return yaml.safe_dump(timeloop_problem(layer, which, sparsity), sort_keys=False, default_flow_style=None)


def _plain_name(name: str) -> str:
    """A layer's name without what SCALE-Sim reads as a separator or as a mark of its own."""
    return name.replace(",", "_").replace(" ", "_").replace("DP", "Dp")
