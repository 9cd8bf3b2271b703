"""The nodes of a graph that can work on tensors that are batch innermost."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..contractions import is_masked
from ..graph import value
from ..ops import OPS
from ..saving.match import match
from ..saving.saver import Saver, bind
from ..sites import each_axis

_POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.ELU, nn.Mish,
    nn.Softplus, nn.Identity, nn.Dropout,
)  # fmt: skip
_POINTWISE = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul, operator.neg),
    *(torch.add, torch.sub, torch.mul, torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.exp),
    *(F.relu, F.relu_, F.relu6, F.hardtanh, F.leaky_relu, F.hardswish, F.hardsigmoid, F.silu, F.sigmoid, F.tanh, F.gelu, F.elu, F.mish),
    *(F.softplus, F.dropout),
}
_POINTWISE_METHODS = {"add", "add_", "sub", "sub_", "mul", "mul_", "relu", "relu_", "sigmoid", "tanh", "neg", "abs", "clone"}
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, F.relu_}
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_POOL_MODULES = (nn.AdaptiveAvgPool2d, nn.AvgPool2d)
_POOLS = {F.adaptive_avg_pool2d, F.avg_pool2d}
_READS_ANY_ORDER = {OPS.refresh_threshold.default, OPS.pack_sparse.default, OPS.count_kept.default}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A node that can be in a region.

    Attributes:
        kind: "conv", "norm", "pointwise", "cat", "max_pool" or "pool".
        inputs: the tensors that it wants batch innermost. in_place: it overwrites the first of them.
        saver: what a norm or a max pool is called with. facts: a convolution's geometry, weight and bias.
    """

    node: fx.Node
    kind: str
    inputs: tuple[fx.Node, ...]
    in_place: bool = False
    saver: Saver | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def part_of(gm: fx.GraphModule, node: fx.Node) -> Part | None:
    """What a node is in a region; None if it can be in none."""
    if node.op not in ("call_function", "call_method", "call_module") or not is_image(node):
        return None
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    return _conv(gm, node) or _saver_part(gm, node) or _pointwise(node, module) or _cat(node) or _pool(node, module)


def is_image(node: Any) -> bool:
    """Whether a node's value is a float32 tensor of four dimensions on the CPU."""
    found = value(node) if isinstance(node, fx.Node) else None
    return isinstance(found, torch.Tensor) and found.dim() == 4 and found.dtype == torch.float32 and found.device.type == "cpu"


def reads_any_order(node: fx.Node) -> bool:
    """Whether a node does not mind in what order the tensors that it reads lie in memory."""
    if node.op == "call_method" and node.target == "detach":
        return all(reads_any_order(user) for user in node.users)
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return True
    return node.target in _READS_ANY_ORDER or (node.target is getattr and node.args[1] in ("shape", "ndim", "requires_grad"))


def is_relu(part: Part) -> bool:
    """Whether a part is a ReLU."""
    return part.saver is not None and part.saver.kind == "masked" and part.saver.facts["name"] == "relu"


def is_addition(part: Part) -> bool:
    """Whether a part adds two tensors of one shape."""
    node = part.node
    if node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2 or len(part.inputs) != 2:
        return False
    return bool(value(part.inputs[0]).shape == value(part.inputs[1]).shape)


def readers_of(pack: fx.Node) -> list[fx.Node]:
    """The contractions that keep what a node packs."""
    items = [user for user in pack.users if user.target is operator.getitem and user.args[1] == 0]
    return [user for item in items for user in item.users]


def _conv(gm: fx.GraphModule, node: fx.Node) -> Part | None:
    if node.target is OPS.swat_convolution.default:
        x, _, w, bias, *geometry = node.args[:10]
        if geometry[3] or not is_image(x) or any(isinstance(item, fx.Node) for item in geometry):
            return None
        names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
        return Part(node=node, kind="conv", inputs=(x,), facts={"weight": w, "bias": bias, **dict(zip(names, geometry, strict=True))})  # type: ignore[arg-type]
    saver = match(gm, node)
    if saver is None or saver.kind != "conv" or saver.problem is not None or saver.facts["transposed"] or not is_image(saver.x):
        return None
    weight = saver.facts["weight"]
    if node.op != "call_function" or not isinstance(weight, fx.Node) or not is_masked(weight):
        return None
    facts = {**saver.facts, "padding": list(each_axis(saver.facts["padding"], 2)), "mask": weight.args[1], "growing": weight.args[2]}
    return Part(node=node, kind="conv", inputs=(saver.x,), facts=facts)


def _saver_part(gm: fx.GraphModule, node: fx.Node) -> Part | None:
    saver = match(gm, node)
    if saver is None or saver.problem is not None or not is_image(saver.x):
        return None
    if saver.kind == "masked":
        return Part(node=node, kind="pointwise", inputs=(saver.x,), in_place=saver.in_place, saver=saver)
    kind = {"batch_norm": "norm", "max_pool": "max_pool"}.get(saver.kind)
    return None if kind is None else Part(node=node, kind=kind, inputs=(saver.x,), saver=saver)


def _pointwise(node: fx.Node, module: nn.Module | None) -> Part | None:
    tensors = [item for item in node.all_input_nodes if isinstance(value(item), torch.Tensor)]
    if not tensors or not all(is_image(item) or value(item).dim() == 0 for item in tensors):
        return None
    images = tuple(item for item in tensors if is_image(item))
    if not images:
        return None
    if module is not None:
        fits, in_place = type(module) in _POINTWISE_MODULES, bool(getattr(module, "inplace", False))
    elif node.op == "call_method":
        fits, in_place = node.target in _POINTWISE_METHODS, str(node.target).endswith("_")
    else:
        fits = node.target in _POINTWISE
        in_place = node.target in _IN_PLACE or bool(node.kwargs.get("inplace", False)) or True in node.args[1:]
    return Part(node=node, kind="pointwise", inputs=images, in_place=in_place) if fits else None


def _cat(node: fx.Node) -> Part | None:
    if node.target not in (torch.cat, torch.concat):
        return None
    arguments = bind(node, "tensors", dim=0)
    tensors = arguments["tensors"]
    if arguments["dim"] not in (1, -3) or not isinstance(tensors, (tuple, list)) or not all(is_image(item) for item in tensors):
        return None
    return Part(node=node, kind="cat", inputs=tuple(tensors))


def _pool(node: fx.Node, module: nn.Module | None) -> Part | None:
    fits = type(module) in _POOL_MODULES if module is not None else node.target in _POOLS
    x = node.args[0] if node.args else node.kwargs.get("input")
    return Part(node=node, kind="pool", inputs=(x,)) if fits and is_image(x) else None  # type: ignore[arg-type]
