"""A node that keeps a tensor for backward, and what it takes to read one off its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..graph import value
from ..sites import each_axis


@dataclass(frozen=True, kw_only=True)
class Saver:
    """One node that keeps something.

    Attributes:
        kind: "conv", "linear", "matmul", "mul", "batch_norm", "layer_norm", "group_norm", "function", "masked", "dropout",
            "max_pool", "avg_pool", "softmax", "attention", and "swat", a contraction that SWAT has rewritten.
        x: its (first) input. second: the other operand of a product.
        module: path of the module that is called; a parameter of it stands as its path in ``facts``.
        in_place: it overwrites its input. problem: why it cannot be rewritten.
    """

    node: fx.Node
    kind: str
    x: Any
    second: Any = None
    module: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    in_place: bool = False
    problem: str | None = None


_KEEPS_OUTPUT = {"sigmoid", "tanh", "exp", "sqrt", "rsqrt", "relu"}


def kept_in_full(saver: Saver) -> list[Any]:
    """The tensors of the graph that torch keeps for a saver's backward, as long as it is not rewritten."""
    if saver.kind in ("matmul", "mul"):
        pairs = ((saver.x, saver.second), (saver.second, saver.x))
        return [x for x, other in pairs if getattr(value(other), "requires_grad", True)]
    if saver.kind == "softmax" or saver.in_place or saver.facts.get("name") in _KEEPS_OUTPUT:
        return [saver.node]
    if saver.kind == "dropout" or (saver.kind == "swat" and saver.facts["packed"]):
        return []
    if saver.kind == "attention":
        return [*(saver.facts[name] for name in ("query", "key", "value")), saver.node]
    return [saver.x]


def bind(node: fx.Node, *names: str, **defaults: Any) -> dict[str, Any]:
    """The node's arguments by name."""
    arguments = {**dict.fromkeys(names), **defaults}
    arguments.update(zip([*names, *defaults], node.args, strict=False))
    arguments.update({("x" if key in ("input", "self") else key): item for key, item in node.kwargs.items()})
    return arguments


def is_tensor(item: Any) -> bool:
    """Whether an argument is a node whose value is a tensor."""
    return isinstance(item, fx.Node) and isinstance(value(item), torch.Tensor)


def rank(item: Any) -> int:
    """How many dimensions a node's tensor has; -1 where that is not known."""
    found = value(item)
    return found.dim() if isinstance(found, torch.Tensor) else -1


def parts(item: Any) -> tuple[Any, ...]:
    """The elements of a setting that may be given once for all axes."""
    return tuple(item) if isinstance(item, (tuple, list)) else (item,)


def conv_saver(node: fx.Node, a: dict[str, Any], axes: int, transposed: bool, module: str) -> Saver:
    """A convolution, by its arguments."""
    settings = ("stride", "padding", "dilation", "groups", "output_padding")
    problem = None
    if any(isinstance(part, fx.Node) for name in settings for part in parts(a.get(name))):
        problem = "its stride, padding, dilation or groups are computed in forward"
    elif rank(a["x"]) != axes + 2:
        problem = "its input has no dimension of samples" if rank(a["x"]) > 0 else "its input's shape is not known; pass example inputs"
    elif isinstance(a["padding"], str):
        a = {**a, "padding": _padding(a, axes)}
        if a["padding"] is None:
            problem = "padding='same' pads one side more than the other"
    facts = {"weight": a["weight"], "bias": a["bias"], "transposed": transposed, "groups": a["groups"]}
    if problem is None:
        facts |= {name: list(each_axis(a.get(name, 0), axes)) for name in ("stride", "padding", "dilation", "output_padding")}
    return Saver(node=node, kind="conv", x=a["x"], module=module, facts=facts, problem=problem)


def _padding(a: dict[str, Any], axes: int) -> list[int] | None:
    if a["padding"] == "valid":
        return [0] * axes
    kernel = a.get("kernel") or (tuple(value(a["weight"]).shape[2:]) if is_tensor(a["weight"]) else None)
    if kernel is None:
        return None
    totals = [d * (k - 1) for d, k in zip(each_axis(a["dilation"], axes), kernel, strict=True)]
    return None if any(total % 2 for total in totals) else [total // 2 for total in totals]


def max_pool_saver(node: fx.Node, a: dict[str, Any], module: str) -> Saver:
    """A max pooling, by its arguments."""
    names = ("kernel_size", "stride", "padding", "dilation")
    problem = None
    if any(isinstance(part, fx.Node) for name in names for part in parts(a[name])):
        problem = "its window is computed in forward"
    elif a["return_indices"]:
        problem = "it returns its indices"
    elif rank(a["x"]) != 4:
        problem = "its input has no dimension of samples"
    if problem is not None:
        return Saver(node=node, kind="max_pool", x=a["x"], module=module, problem=problem)
    kernel = list(each_axis(a["kernel_size"], 2))
    stride = list(each_axis(a["stride"], 2)) if a["stride"] not in (None, [], ()) else kernel
    facts = {"kernel": kernel, "stride": stride, "padding": list(each_axis(a["padding"], 2)), "dilation": list(each_axis(a["dilation"], 2))}
    if kernel[0] * kernel[1] > 256:
        problem = "its window has more than 256 places"
    return Saver(node=node, kind="max_pool", x=a["x"], module=module, facts={**facts, "ceil_mode": bool(a["ceil_mode"])}, problem=problem)


def avg_pool_saver(node: fx.Node, a: dict[str, Any], module: str) -> Saver:
    """An average pooling, by its arguments."""
    if any(isinstance(part, fx.Node) for item in a.values() if item is not a["x"] for part in parts(item)) or rank(a["x"]) != 4:
        return Saver(node=node, kind="avg_pool", x=a["x"], module=module, problem="its window is computed in forward")
    kernel = list(each_axis(a["kernel_size"], 2))
    stride = list(each_axis(a["stride"], 2)) if a["stride"] not in (None, [], ()) else kernel
    rest = {name: a[name] for name in ("ceil_mode", "count_include_pad", "divisor_override")}
    facts = {"kernel": kernel, "stride": stride, "padding": list(each_axis(a["padding"], 2)), **rest}
    return Saver(node=node, kind="avg_pool", x=a["x"], module=module, facts=facts)
