"""Modules of torch.nn whose call keeps a float tensor for backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from ..capture.recipes import is_composite
from ..contractions import module_problem
from .saver import Saver, avg_pool_saver, conv_saver, max_pool_saver, rank


def of_module(gm: fx.GraphModule, node: fx.Node) -> Saver | None:
    """What a call of a module keeps; None if it is none of those that can be rewritten. A parameter stands as its path."""
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
    found = conv_saver(node, a, len(module.kernel_size), transposed, path)
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
    elif rank(x) < 2:
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
    return Saver(node=node, kind="dropout", x=x, facts={"p": f"{path}.p", "training": f"{path}.training"}, problem=problem)


def _max_pool_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return max_pool_saver(node, {"x": x, **{name: getattr(module, name) for name in names}}, path)


def _avg_pool_module(module: Any, node: fx.Node, x: Any, path: str) -> Saver:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return avg_pool_saver(node, {"x": x, **{name: getattr(module, name) for name in names}}, path)


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
