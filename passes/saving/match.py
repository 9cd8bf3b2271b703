"""Finds the nodes of a graph that keep a float tensor for backward, and reads their arguments, whatever way they are written."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..capture.recipes import is_composite
from ..contractions import module_problem
from ..graph import value
from ..ops import OPS
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


def match(gm: fx.GraphModule, node: fx.Node) -> Saver | None:
    """What a node keeps; None if it is none of those that can be rewritten."""
    if node.op == "call_module":
        return _of_module(gm, node)
    if node.op == "call_function":
        found = _FUNCTIONS.get(node.target) if _hashable(node.target) else None
    elif node.op == "call_method":
        found = _METHODS.get(str(node.target))
    else:
        return None
    return found(node) if found is not None else None


def _hashable(target: Any) -> bool:
    return getattr(target, "__hash__", None) is not None


# Arguments


def bind(node: fx.Node, *names: str, **defaults: Any) -> dict[str, Any]:
    """The node's arguments by name."""
    arguments = {**dict.fromkeys(names), **defaults}
    arguments.update(zip([*names, *defaults], node.args, strict=False))
    arguments.update({("x" if key in ("input", "self") else key): item for key, item in node.kwargs.items()})
    return arguments


def _is_tensor(item: Any) -> bool:
    return isinstance(item, fx.Node) and isinstance(value(item), torch.Tensor)


def _rank(item: Any) -> int:
    found = value(item)
    return found.dim() if isinstance(found, torch.Tensor) else -1


# Functions


def _conv(axes: int, transposed: bool) -> Callable[[fx.Node], Saver]:
    def read(node: fx.Node) -> Saver:
        if transposed:
            a = bind(node, "x", "weight", bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)
        else:
            a = bind(node, "x", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
        return _conv_saver(node, a, axes, transposed, "")

    return read


def _conv_saver(node: fx.Node, a: dict[str, Any], axes: int, transposed: bool, module: str) -> Saver:
    settings = ("stride", "padding", "dilation", "groups", "output_padding")
    problem = None
    if any(isinstance(part, fx.Node) for name in settings for part in _parts(a.get(name))):
        problem = "its stride, padding, dilation or groups are computed in forward"
    elif _rank(a["x"]) != axes + 2:
        problem = "its input has no dimension of samples" if _rank(a["x"]) > 0 else "its input's shape is not known; pass example inputs"
    elif isinstance(a["padding"], str):
        a = {**a, "padding": _padding(a, axes)}
        if a["padding"] is None:
            problem = "padding='same' pads one side more than the other"
    facts = {"weight": a["weight"], "bias": a["bias"], "transposed": transposed, "groups": a["groups"]}
    if problem is None:
        facts |= {name: list(each_axis(a.get(name, 0), axes)) for name in ("stride", "padding", "dilation", "output_padding")}
    return Saver(node=node, kind="conv", x=a["x"], module=module, facts=facts, problem=problem)


def _parts(item: Any) -> tuple[Any, ...]:
    return tuple(item) if isinstance(item, (tuple, list)) else (item,)


def _padding(a: dict[str, Any], axes: int) -> list[int] | None:
    if a["padding"] == "valid":
        return [0] * axes
    kernel = a.get("kernel") or (tuple(value(a["weight"]).shape[2:]) if _is_tensor(a["weight"]) else None)
    if kernel is None:
        return None
    totals = [d * (k - 1) for d, k in zip(each_axis(a["dilation"], axes), kernel, strict=True)]
    return None if any(total % 2 for total in totals) else [total // 2 for total in totals]


def _linear(node: fx.Node) -> Saver:
    a = bind(node, "x", "weight", bias=None)
    return Saver(node=node, kind="linear", x=a["x"], facts={"weight": a["weight"], "bias": a["bias"]})


def _matmul(node: fx.Node) -> Saver | None:
    a = bind(node, "x", "other")
    second = a.get("other", a.get("mat2"))
    if not (_is_tensor(a["x"]) and _is_tensor(second)) or _rank(a["x"]) < 2 or _rank(second) < 2:
        return None
    return Saver(node=node, kind="matmul", x=a["x"], second=second)


def _mul(node: fx.Node) -> Saver | None:
    a = bind(node, "x", "other")
    if not (_is_tensor(a["x"]) and _is_tensor(a["other"])):
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
    problem = "the shape it normalises over is computed in forward" if any(isinstance(s, fx.Node) for s in _parts(shape)) else None
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
        if not _is_tensor(a["x"]) or not value(a["x"]).is_floating_point():
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
    if name is None or not _is_tensor(a["x"]) or not value(a["x"]).is_floating_point():
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
    return _max_pool_saver(node, a, "")


def _max_pool_saver(node: fx.Node, a: dict[str, Any], module: str) -> Saver:
    names = ("kernel_size", "stride", "padding", "dilation")
    problem = None
    if any(isinstance(part, fx.Node) for name in names for part in _parts(a[name])):
        problem = "its window is computed in forward"
    elif a["return_indices"]:
        problem = "it returns its indices"
    elif _rank(a["x"]) != 4:
        problem = "its input has no dimension of samples"
    if problem is not None:
        return Saver(node=node, kind="max_pool", x=a["x"], module=module, problem=problem)
    kernel = list(each_axis(a["kernel_size"], 2))
    stride = list(each_axis(a["stride"], 2)) if a["stride"] not in (None, [], ()) else kernel
    facts = {"kernel": kernel, "stride": stride, "padding": list(each_axis(a["padding"], 2)), "dilation": list(each_axis(a["dilation"], 2))}
    if kernel[0] * kernel[1] > 256:
        problem = "its window has more than 256 places"
    return Saver(node=node, kind="max_pool", x=a["x"], module=module, facts={**facts, "ceil_mode": bool(a["ceil_mode"])}, problem=problem)


def _avg_pool(node: fx.Node) -> Saver:
    a = bind(node, "x", "kernel_size", stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None)
    return _avg_pool_saver(node, a, "")


def _avg_pool_saver(node: fx.Node, a: dict[str, Any], module: str) -> Saver:
    if any(isinstance(part, fx.Node) for item in a.values() if item is not a["x"] for part in _parts(item)) or _rank(a["x"]) != 4:
        return Saver(node=node, kind="avg_pool", x=a["x"], module=module, problem="its window is computed in forward")
    kernel = list(each_axis(a["kernel_size"], 2))
    stride = list(each_axis(a["stride"], 2)) if a["stride"] not in (None, [], ()) else kernel
    rest = {name: a[name] for name in ("ceil_mode", "count_include_pad", "divisor_override")}
    facts = {"kernel": kernel, "stride": stride, "padding": list(each_axis(a["padding"], 2)), **rest}
    return Saver(node=node, kind="avg_pool", x=a["x"], module=module, facts=facts)


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
    if problem is None and _rank(a["query"]) < 3:
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
_FUNCTIONS: dict[Any, Callable[[fx.Node], Saver | None]] = {
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
_METHODS: dict[str, Callable[[fx.Node], Saver | None]] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "__matmul__"), _matmul),
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("relu", "relu_"), _RELU),
    **{name: _function(name) for name in ("sigmoid", "tanh", "exp", "sqrt", "rsqrt", "square")},
    "pow": _pow,
    "softmax": _softmax,
}


# Modules


def _of_module(gm: fx.GraphModule, node: fx.Node) -> Saver | None:
    module = gm.get_submodule(str(node.target))
    read = next((reader for kinds, reader in _MODULES if type(module) in kinds or _is_plain_subclass(module, kinds)), None)
    if read is None or is_composite(module):
        return None
    x = node.args[0] if node.args else node.kwargs.get("input")
    path = str(node.target)
    found = read(module, node, x, path)
    if found is None:
        return None
    problem = (
        found.problem
        or _module_problem(module)
        or (None if len(node.args) + len(node.kwargs) == 1 else "it is called with more than its input")
    )
    return Saver(**{**found.__dict__, "module": path, "problem": problem})


def _is_plain_subclass(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _module_problem(module: nn.Module) -> str | None:
    if "weight" in dict(module.named_parameters(recurse=False)) or hasattr(module, "parametrizations"):
        return module_problem(module)
    if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
        return "it has forward or backward hooks, which a rewritten node would not call"
    return None


def _parameters(module: nn.Module, path: str, *names: str) -> dict[str, str | None]:
    return {name: f"{path}.{name}" if getattr(module, name, None) is not None else None for name in names}


def _conv_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver:
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    names = ("stride", "padding", "dilation", "groups", "output_padding")
    a = {
        "x": x,
        **_parameters(module, path, "weight", "bias"),
        **{name: getattr(module, name) for name in names},
        "kernel": module.kernel_size,
    }
    found = _conv_saver(node, a, len(module.kernel_size), transposed, path)
    if module.padding_mode != "zeros":
        return Saver(**{**found.__dict__, "problem": f"padding_mode={module.padding_mode!r}"})
    return found


def _linear_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver:
    return Saver(node=node, kind="linear", x=x, facts=_parameters(module, path, "weight", "bias"))


def _batch_norm_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver:
    facts: dict[str, Any] = _parameters(module, path, "weight", "bias", "running_mean", "running_var")
    problem = None
    if module.momentum is None:
        problem = "its running statistics are a cumulative average (momentum=None)"
    elif module.track_running_stats != (module.running_mean is not None):
        problem = "it has running statistics that it does not track"
    elif _rank(x) < 2:
        problem = "its input's shape is not known; pass example inputs"
    counter = f"{path}.num_batches_tracked" if module.num_batches_tracked is not None else None
    facts |= {"training": f"{path}.training", "momentum": module.momentum, "eps": module.eps, "counter": counter}
    return Saver(node=node, kind="batch_norm", x=x, facts=facts, problem=problem)


def _layer_norm_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver:
    facts = {**_parameters(module, path, "weight", "bias"), "shape": list(module.normalized_shape), "eps": module.eps}
    return Saver(node=node, kind="layer_norm", x=x, facts=facts)


def _group_norm_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver:
    facts = {**_parameters(module, path, "weight", "bias"), "num_groups": module.num_groups, "eps": module.eps}
    return Saver(node=node, kind="group_norm", x=x, facts=facts)


def _function_module(name: str, *settings: tuple[str, Any]) -> Callable[[Any, fx.Node, Any, str], Saver | None]:
    def read(module: Any, node: fx.Node, x: Any, path: str) -> Saver | None:
        if any(getattr(module, key) != given for key, given in settings):
            return None
        return Saver(node=node, kind="function", x=x, facts={"name": name}, in_place=bool(getattr(module, "inplace", False)))

    return read


def _gelu_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver:
    return Saver(node=node, kind="function", x=x, facts={"name": "gelu_tanh" if module.approximate == "tanh" else "gelu"})


def _masked_module(name: str, low: str | None = None, high: str | None = None) -> Callable[[Any, fx.Node, Any, str], Saver | None]:
    def read(module: Any, node: fx.Node, x: Any, path: str) -> Saver | None:
        bounds = [0.0 if bound is None else float(getattr(module, bound)) for bound in (low, high)]
        if name == "leaky_relu" and bounds[0] < 0:
            return None
        facts = {"name": name, "low": bounds[0], "high": bounds[1]}
        return Saver(node=node, kind="masked", x=x, facts=facts, in_place=bool(getattr(module, "inplace", False)))

    return read


def _dropout_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver:
    problem = "it drops in place" if module.inplace else None
    return Saver(node=node, kind="dropout", x=x, facts={"p": module.p, "training": f"{path}.training"}, problem=problem)


def _max_pool_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return _max_pool_saver(node, {"x": x, **{name: getattr(module, name) for name in names}}, path)


def _avg_pool_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return _avg_pool_saver(node, {"x": x, **{name: getattr(module, name) for name in names}}, path)


def _softmax_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver | None:
    return Saver(node=node, kind="softmax", x=x, facts={"dim": module.dim}) if isinstance(module.dim, int) else None


_MODULES: tuple[tuple[tuple[type[nn.Module], ...], Callable[..., Saver | None]], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_module),
    ((nn.Linear,), _linear_module),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm_module),
    ((nn.LayerNorm,), _layer_norm_module),
    ((nn.GroupNorm,), _group_norm_module),
    ((nn.ReLU,), _masked_module("relu")),
    ((nn.ReLU6, nn.Hardtanh), _masked_module("hardtanh", "min_val", "max_val")),
    ((nn.LeakyReLU,), _masked_module("leaky_relu", "negative_slope")),
    ((nn.Hardsigmoid,), _masked_module("hardsigmoid")),
    ((nn.GELU,), _gelu_module),
    ((nn.SiLU,), _function_module("silu")),
    ((nn.Hardswish,), _function_module("hardswish")),
    ((nn.Mish,), _function_module("mish")),
    ((nn.Sigmoid,), _function_module("sigmoid")),
    ((nn.Tanh,), _function_module("tanh")),
    ((nn.Softplus,), _function_module("softplus", ("beta", 1), ("threshold", 20))),
    ((nn.ELU,), _function_module("elu", ("alpha", 1.0))),
    ((nn.Dropout,), _dropout_module),
    ((nn.MaxPool2d,), _max_pool_module),
    ((nn.AvgPool2d,), _avg_pool_module),
    ((nn.Softmax,), _softmax_module),
)
