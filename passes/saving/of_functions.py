"""Functions and methods that keep a float tensor for backward, whatever way their arguments are written."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ..graph import value
from ..ops import OPS
from .saver import Saver, avg_pool_saver, bind, conv_saver, is_tensor, max_pool_saver, parts, rank


def _conv(axes: int, transposed: bool) -> Callable[[fx.Node], Saver]:
    def read(node: fx.Node) -> Saver:
        if transposed:
            a = bind(node, "x", "weight", bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)
        else:
            a = bind(node, "x", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
        return conv_saver(node, a, axes, transposed, "")

    return read


def _linear(node: fx.Node) -> Saver:
    a = bind(node, "x", "weight", bias=None)
    return Saver(node=node, kind="linear", x=a["x"], facts={"weight": a["weight"], "bias": a["bias"]})


def _matmul(node: fx.Node) -> Saver | None:
    a = bind(node, "x", "other")
    second = a.get("other", a.get("mat2"))
    if not (is_tensor(a["x"]) and is_tensor(second)) or rank(a["x"]) < 2 or rank(second) < 2:
        return None
    return Saver(node=node, kind="matmul", x=a["x"], second=second)


def _mul(node: fx.Node) -> Saver | None:
    a = bind(node, "x", "other")
    if not (is_tensor(a["x"]) and is_tensor(a["other"])):
        return None
    if not all(value(item).is_floating_point() for item in (a["x"], a["other"])):
        return None
    return Saver(node=node, kind="mul", x=a["x"], second=a["other"])


def _batch_norm(node: fx.Node) -> Saver:
    a = bind(node, "x", "running_mean", "running_var", weight=None, bias=None, training=False, momentum=0.1, eps=1e-5)
    facts = {name: a[name] for name in ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")}
    problem = None if isinstance(facts["momentum"], (int, float)) else "its momentum is computed in forward"
    return Saver(node=node, kind="batch_norm", x=a["x"], facts={**facts, "counter": None}, problem=problem)


def _layer_norm(node: fx.Node) -> Saver:
    a = bind(node, "x", "normalized_shape", weight=None, bias=None, eps=1e-5)
    shape = a["normalized_shape"]
    problem = "the shape it normalises over is computed in forward" if any(isinstance(s, fx.Node) for s in parts(shape)) else None
    facts = {"shape": shape, "weight": a["weight"], "bias": a["bias"], "eps": a["eps"]}
    return Saver(node=node, kind="layer_norm", x=a["x"], facts=facts, problem=problem)


def _group_norm(node: fx.Node) -> Saver:
    a = bind(node, "x", "num_groups", weight=None, bias=None, eps=1e-5)
    return Saver(node=node, kind="group_norm", x=a["x"], facts={k: a[k] for k in ("num_groups", "weight", "bias", "eps")})


def _function(name: str, **allowed: Any) -> Callable[[fx.Node], Saver | None]:
    """A function of one tensor, called with no other settings than ``allowed``."""

    def read(node: fx.Node) -> Saver | None:
        a = bind(node, "x", *allowed)
        in_place = bool(a.pop("inplace", False)) or (node.op == "call_method" and str(node.target).endswith("_"))
        if any(a.get(key) is not None and a[key] != given for key, given in allowed.items()):
            return None
        if not is_tensor(a["x"]) or not value(a["x"]).is_floating_point():
            return None
        return Saver(node=node, kind="function", x=a["x"], facts={"name": name}, in_place=in_place)

    return read


def _gelu(node: fx.Node) -> Saver:
    a = bind(node, "x", approximate="none")
    return Saver(node=node, kind="function", x=a["x"], facts={"name": "gelu_tanh" if a["approximate"] == "tanh" else "gelu"})


def _pow(node: fx.Node) -> Saver | None:
    a = bind(node, "x", "exponent")
    exponent = a["exponent"]
    name = {2: "square", 3: "cube"}.get(int(exponent)) if isinstance(exponent, (int, float)) and exponent in (2, 3) else None
    if name is None or not is_tensor(a["x"]) or not value(a["x"]).is_floating_point():
        return None
    return Saver(node=node, kind="function", x=a["x"], facts={"name": name})


def _masked(name: str, low: str | float = 0.0, high: str | float = 0.0, **defaults: Any) -> Callable[[fx.Node], Saver | None]:
    def read(node: fx.Node) -> Saver | None:
        a = bind(node, "x", **defaults, inplace=False)
        bounds = [a[bound] if isinstance(bound, str) else bound for bound in (low, high)]
        if not all(isinstance(bound, (int, float)) for bound in bounds) or (name == "leaky_relu" and bounds[0] < 0):
            return None
        own = str(getattr(node.target, "__name__", node.target))
        in_place = bool(a["inplace"]) or own.endswith("_")
        facts = {"name": name, "low": float(bounds[0]), "high": float(bounds[1])}
        return Saver(node=node, kind="masked", x=a["x"], facts=facts, in_place=in_place)

    return read


def _dropout(node: fx.Node) -> Saver:
    a = bind(node, "x", p=0.5, training=True, inplace=False)
    facts = {"p": a["p"], "training": a["training"]}
    return Saver(node=node, kind="dropout", x=a["x"], facts=facts, problem="it drops in place" if a["inplace"] else None)


def _max_pool(node: fx.Node) -> Saver:
    a = bind(node, "x", "kernel_size", stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False)
    return max_pool_saver(node, a, "")


def _avg_pool(node: fx.Node) -> Saver:
    a = bind(node, "x", "kernel_size", stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None)
    return avg_pool_saver(node, a, "")


def _softmax(node: fx.Node) -> Saver | None:
    a = bind(node, "x", dim=None, _stacklevel=3, dtype=None)
    if node.op == "call_method" or node.target is torch.softmax:
        a = bind(node, "x", dim=None, dtype=None)
    if not isinstance(a["dim"], int) or a["dtype"] is not None:
        return None
    return Saver(node=node, kind="softmax", x=a["x"], facts={"dim": a["dim"]})


def _attention(node: fx.Node) -> Saver:
    a = bind(node, "query", "key", "value", attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False)
    problem = "it shares keys among heads (enable_gqa)" if a["enable_gqa"] else None
    if problem is None and rank(a["query"]) < 3:
        problem = "its operands have no dimension of samples"
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
    return Saver(node=node, kind="attention", x=a["query"], facts={name: a[name] for name in names}, problem=problem)


def _swat(node: fx.Node) -> Saver:
    """The positions and values that a SWAT contraction keeps come from a pack_sparse node."""
    first = node.args[1]
    pack = first.args[0] if isinstance(first, fx.Node) and first.target is operator.getitem else None
    packed = isinstance(pack, fx.Node) and pack.target is OPS.pack_sparse.default
    return Saver(node=node, kind="swat", x=node.args[0], facts={"weight": node.args[2], "packed": packed, "pack": pack})


_RELU = _masked("relu")


FUNCTIONS: dict[Any, Callable[[fx.Node], Saver | None]] = {
    **{getattr(torch, f"conv{n}d"): _conv(n, False) for n in (1, 2, 3)},
    **{getattr(torch, f"conv_transpose{n}d"): _conv(n, True) for n in (1, 2, 3)},
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.bmm, torch.mm, operator.matmul), _matmul),
    **dict.fromkeys((operator.mul, torch.mul, torch.multiply), _mul),
    F.batch_norm: _batch_norm,
    **dict.fromkeys((F.layer_norm, torch.layer_norm), _layer_norm),
    **dict.fromkeys((F.group_norm, torch.group_norm), _group_norm),
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), _RELU),
    F.relu6: _masked("hardtanh", 0.0, 6.0),
    F.hardtanh: _masked("hardtanh", "min_val", "max_val", min_val=-1.0, max_val=1.0),
    F.leaky_relu: _masked("leaky_relu", "negative_slope", negative_slope=0.01),
    F.hardsigmoid: _masked("hardsigmoid"),
    F.gelu: _gelu,
    F.silu: _function("silu", inplace=None),
    F.hardswish: _function("hardswish", inplace=None),
    F.mish: _function("mish", inplace=None),
    **dict.fromkeys((torch.sigmoid, F.sigmoid), _function("sigmoid")),
    **dict.fromkeys((torch.tanh, F.tanh), _function("tanh")),
    F.softplus: _function("softplus", beta=1, threshold=20),
    F.elu: _function("elu", alpha=1.0, inplace=None),
    torch.exp: _function("exp"),
    torch.sqrt: _function("sqrt"),
    torch.rsqrt: _function("rsqrt"),
    torch.square: _function("square"),
    **dict.fromkeys((torch.pow, operator.pow), _pow),
    F.dropout: _dropout,
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool),
    F.avg_pool2d: _avg_pool,
    **dict.fromkeys((F.softmax, torch.softmax), _softmax),
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys((OPS.swat_convolution.default, OPS.swat_linear.default, OPS.swat_einsum.default), _swat),
}


METHODS: dict[str, Callable[[fx.Node], Saver | None]] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "__matmul__"), _matmul),
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("relu", "relu_"), _RELU),
    **{name: _function(name) for name in ("sigmoid", "tanh", "exp", "sqrt", "rsqrt", "square")},
    "pow": _pow,
    "softmax": _softmax,
}
