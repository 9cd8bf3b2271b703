"""Follows channels through a graph of a plain model in eval mode. What is not listed here keeps its channels, and those it reads."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from .channels import Array, ChannelMap, Channels, Reader, shape_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Mish),
    *(nn.Softplus, nn.Identity),
)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_POINTWISE_CALLS: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys((torch.relu, F.relu, torch.relu_, "relu", "relu_"), torch.relu),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), torch.sigmoid),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), torch.tanh),
    F.relu6: F.relu6,
    F.hardswish: F.hardswish,
    F.hardsigmoid: F.hardsigmoid,
    F.silu: F.silu,
}
_SAME_CALLS = {F.dropout, F.dropout2d, "contiguous", "clone"}
_POOL_CALLS = {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d}
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_", "__add__", "__iadd__"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_", "__mul__", "__imul__"}
_ASK_SHAPE = {"size", "dim"}


def follow_channels(graph: fx.Graph, root: nn.Module) -> ChannelMap:
    """The channels of every tensor of a graph whose nodes have shapes in their metadata."""
    return _Walk(graph, root).run()


class _Walk:
    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph = graph
        self.root = root
        self.map = ChannelMap()
        self.known: dict[fx.Node, Channels] = {}
        self.shared = _shared_modules(graph, root)

    def run(self) -> ChannelMap:
        for node in self.graph.nodes:
            made = None
            if node.op == "call_module" and node.target not in self.shared:
                made = self._module(node, str(node.target), self.root.get_submodule(str(node.target)))
            elif node.op in ("call_function", "call_method"):
                made = self._call(node)
            if made is not None:
                self.known[node] = made
            elif not _asks_shape(node):
                self.map.fix(self.known.get(source) for source in node.all_input_nodes)
        return self.map

    def _of(self, node: Any) -> Channels | None:
        return self.known.get(node) if isinstance(node, fx.Node) else None

    # Modules

    def _module(self, node: fx.Node, name: str, module: Any) -> Channels | None:
        x = node.args[0] if node.args else None
        read, shape = self._of(x), shape_of(x)
        kind = type(module)
        if kind in _CONVOLUTIONS and shape is not None and len(shape) == module.weight.dim():
            return self._convolution(name, module, read)
        if kind is nn.Linear and shape is not None and (read is None or read.axis == len(shape) - 1):
            return self._summing(name, module, read, len(shape) - 1, padded=False)
        if read is None:
            return None
        if kind in _NORMS and module.running_mean is not None and read.axis == 1:
            self.map.per_channel.append((name, module, read.ids))
            return _with(read, _normalised(module, read.constant))
        if kind in _POINTWISE:
            return _with(read, _applied(module, read.constant))
        if kind in _DROPOUTS:
            return read
        if kind in _POOLS and read.axis == 1:
            return read
        if kind in _AVERAGES and read.axis == 1:
            return read if not any(_each(module.padding)) and not module.ceil_mode else _with(read, _only_zero(read.constant))
        if kind is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
            return _flattened(read, shape)
        return None

    def _convolution(self, name: str, module: Any, read: Channels | None) -> Channels | None:
        padded = module.padding == "same" or (module.padding != "valid" and any(module.padding))
        if module.padding_mode != "zeros":
            padded = False
        if module.groups == 1:
            return self._summing(name, module, read, 1, padded=padded)
        if module.groups == module.in_channels == module.out_channels and read is not None:
            self.map.per_channel.append((name, module, read.ids))
            total = module.weight.detach().double().flatten(1).sum(1).cpu().numpy()
            dead = ~module.weight.detach().flatten(1).any(1).cpu().numpy()
            scaled = (_only_zero(read.constant) if padded else read.constant) * total
            return _with(read, np.where(dead, 0.0, scaled) + _bias(module))
        self.map.reasons[name] = f"a convolution of {module.groups} groups"
        return None

    def _summing(self, name: str, module: Any, read: Channels | None, axis: int, *, padded: bool) -> Channels:
        weight = module.weight.detach().double().flatten(2).sum(2) if module.weight.dim() > 2 else module.weight.detach().double()
        total = weight.cpu().numpy()
        used = module.weight.detach().flatten(2).any(2) if module.weight.dim() > 2 else module.weight.detach() != 0
        uses = used.cpu().numpy()
        if read is None:
            constant = np.where(uses.any(1), np.nan, 0.0)
        else:
            given = _only_zero(read.constant) if padded else read.constant
            unknown = np.isnan(given)
            constant = np.where(uses[:, unknown].any(1), np.nan, total @ np.where(unknown, 0.0, given))
        made = self.map.new(module.weight.shape[0])
        self.map.readers.append(Reader(name=name, module=module, read=read, made=made, padded=padded))
        return Channels(axis=axis, ids=made, constant=constant + _bias(module))

    # Functions and methods

    def _call(self, node: fx.Node) -> Channels | None:
        target: Any = node.target
        first = self._of(node.args[0]) if node.args else None
        if target in (torch.cat, torch.concat):
            return self._concatenated(node)
        if target in _SUMS or target in _PRODUCTS:
            return self._combined(node, is_product=target in _PRODUCTS)
        if first is None:
            return None
        if target in _POINTWISE_CALLS:
            return _with(first, _applied(_POINTWISE_CALLS[target], first.constant))
        if target is F.gelu:
            approximate = node.kwargs.get("approximate", "none")
            return _with(first, _applied(lambda x: F.gelu(x, approximate=str(approximate)), first.constant))
        if target in _SAME_CALLS:
            return first
        if target in _POOL_CALLS and first.axis == 1:
            return first
        if target in ("mean", torch.mean):
            return self._mean(node, first)
        if target in (torch.flatten, "flatten"):
            return _flattened(first, shape_of(node.args[0])) if node.args[1:] == (1,) and not node.kwargs else None
        if target in ("view", "reshape", torch.reshape):
            return _viewed(node, first)
        if target in ("permute", torch.permute):
            return _permuted(node, first)
        return None

    def _concatenated(self, node: fx.Node) -> Channels | None:
        parts: Any = node.args[0]
        axis: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        shapes = [shape_of(part) for part in parts]
        found = [self._of(part) for part in parts]
        if any(shape is None for shape in shapes) or all(part is None for part in found) or not isinstance(axis, int):
            return None
        axis = axis % len(shapes[0] or ())
        pieces = []
        for part, shape in zip(found, shapes, strict=True):
            assert shape is not None
            if part is not None and part.axis != axis:
                return None
            if part is None:
                part = Channels(axis=axis, ids=self.map.new(shape[axis]), constant=np.full(shape[axis], np.nan))
                self.map.fix([part])
            pieces.append(part)
        return Channels(
            axis=axis, ids=np.concatenate([part.ids for part in pieces]), constant=np.concatenate([part.constant for part in pieces])
        )

    def _combined(self, node: fx.Node, *, is_product: bool) -> Channels | None:
        if len(node.args) != 2 or node.kwargs:
            return None
        left, right = (self._of(arg) for arg in node.args)
        if left is None or right is None:
            known, other = (left, node.args[1]) if right is None else (right, node.args[0])
            if known is None or not isinstance(other, (int, float)):
                return None
            return _with(known, known.constant * other if is_product else known.constant + other)
        shapes = [shape_of(arg) for arg in node.args]
        if left.axis != right.axis or len(left.ids) != len(right.ids) or len(shapes[0] or ()) != len(shapes[1] or ()):
            return None
        self.map.join(left.ids, right.ids)
        if is_product:
            nothing = (left.constant == 0) | (right.constant == 0)
            return _with(left, np.where(nothing, 0.0, left.constant * right.constant))
        return _with(left, left.constant + right.constant)

    def _mean(self, node: fx.Node, read: Channels) -> Channels | None:
        dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        shape = shape_of(node.args[0])
        if dims is None or shape is None:
            return None
        reduced = {dim % len(shape) for dim in ((dims,) if isinstance(dims, int) else dims)}
        return read if all(dim > read.axis for dim in reduced) else None


def _asks_shape(node: fx.Node) -> bool:
    return node.target in _ASK_SHAPE or (node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device"))


def _shared_modules(graph: fx.Graph, root: nn.Module) -> set[Any]:
    """Targets of modules with tensors of their own that are called twice, or share a parameter with another name."""
    calls: dict[Any, int] = {}
    for node in graph.nodes:
        if node.op == "call_module" and _has_tensors(root.get_submodule(str(node.target))):
            calls[node.target] = calls.get(node.target, 0) + 1
        elif node.op == "get_attr":
            calls[str(node.target).rpartition(".")[0]] = 2
    owners: dict[int, set[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    for names in owners.values():
        if len(names) > 1:
            calls.update(dict.fromkeys(names, 2))
    return {target for target, count in calls.items() if count > 1}


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(), *module.buffers()))


def _with(read: Channels, constant: Array) -> Channels:
    return Channels(axis=read.axis, ids=read.ids, constant=constant)


def _only_zero(constant: Array) -> Array:
    """Constants that are still constant where zeros are put around them."""
    return np.where(constant == 0, 0.0, np.nan)


def _bias(module: Any) -> Any:
    return 0.0 if module.bias is None else module.bias.detach().double().cpu().numpy()


def _normalised(module: Any, constant: Array) -> Array:
    mean, var = (buffer.detach().double().cpu().numpy() for buffer in (module.running_mean, module.running_var))
    scale = 1.0 / np.sqrt(var + module.eps)
    if module.weight is None:
        plain: Array = (constant - mean) * scale
        return plain
    weight, bias = module.weight.detach().double().cpu().numpy(), _bias(module)
    made: Array = np.where(weight == 0, 0.0, (constant - mean) * scale * weight) + bias
    return made


def _applied(function: Callable[[torch.Tensor], torch.Tensor], constant: Array) -> Array:
    with torch.no_grad():
        made = function(torch.from_numpy(np.nan_to_num(constant))).numpy()
    return np.where(np.isnan(constant), np.nan, made)


def _each(setting: Any) -> tuple[Any, ...]:
    return tuple(setting) if isinstance(setting, (tuple, list)) else (setting,)


def _flattened(read: Channels, shape: tuple[int, ...] | None) -> Channels | None:
    if shape is None or read.axis != 1:
        return None
    places = math.prod(shape[2:])
    return Channels(axis=1, ids=np.repeat(read.ids, places), constant=np.repeat(read.constant, places))


def _viewed(node: fx.Node, read: Channels) -> Channels | None:
    """A view that flattens all but the samples, without naming the number of features."""
    shape, made = shape_of(node.args[0]), shape_of(node)
    sizes = node.args[1:] if len(node.args) > 2 else node.args[1] if len(node.args) > 1 else ()
    is_flat = isinstance(sizes, (tuple, list)) and len(sizes) == 2 and sizes[1] == -1
    if shape is None or made != (shape[0], math.prod(shape[1:])) or not is_flat:
        return None
    return _flattened(read, shape)


def _permuted(node: fx.Node, read: Channels) -> Channels | None:
    order: Any = node.args[1:] if len(node.args) > 2 else node.args[1]
    if not all(isinstance(dim, int) for dim in order):
        return None
    order = [dim % len(order) for dim in order]
    return Channels(axis=order.index(read.axis), ids=read.ids, constant=read.constant)
