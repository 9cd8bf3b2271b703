"""Writes what a recorded call does as nodes: which node stands for which tensor, and how arguments and results become a graph's."""

from __future__ import annotations

import operator
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

import torch
from torch import fx, nn

from ..graph import reserve_self
from .flags import TrainingFlag
from .origin import stack_trace_of
from .readings import BatchSize
from .rebuild import Template, constructor_of, parts_of, tensors_in
from .refusals import MADE_ELSEWHERE, Diverged

_GETITEM = operator.getitem
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.layout, torch.memory_format, type(...), type)
_NUMBERS: tuple[Callable[[Any], Any], ...] = (bool, int, float, complex, str)  # in this order: a bool is an int


class NodeWriter:
    """A graph that grows with a module's call. Tensors are known by identity.

    Args:
        root: the module that is called. modules: those below it, by path.
        stack: the paths of the modules that run, the innermost last; the recorder changes it.
        like: a graph that this one is to follow.
        refuse: raises, with a reason. branched: is told of a ``training`` flag whose value became part of the graph.
        stop: the code in whose frame the model's own Python begins.
    """

    def __init__(
        self,
        root: nn.Module,
        modules: dict[str, nn.Module],
        stack: list[str],
        like: fx.Graph | None,
        refuse: Callable[[str], NoReturn],
        branched: Callable[[str, bool], None],
        stop: types.CodeType,
    ) -> None:
        self.graph = fx.Graph()
        reserve_self(self.graph)
        self.nodes: dict[int, fx.Node] = {}
        self.attributes = attributes_of(root)
        self.device: tuple[torch.device, fx.Node] | None = None
        self._alive: list[Any] = []
        self._modules = modules
        self._stack = stack
        self._expected: Iterator[fx.Node] | None = iter(like.nodes) if like is not None else None
        self._refuse = refuse
        self._branched = branched
        self._stop = stop

    def emit(self, op: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        if self._expected is not None:
            expected = next(self._expected, None)
            if expected is None or expected.op != op or not (expected.target is target or expected.target == target):
                raise Diverged
        node = self.graph.create_node(op, target, args, kwargs)
        if op not in ("placeholder", "output"):
            node.meta["nn_module_stack"] = {path: (path, type(self._modules[path])) for path in self._stack[1:]}
            node.stack_trace = stack_trace_of(sys._getframe(1), self._stop)
        return node

    def bind(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self.nodes[id(tensor)] = node
        self._alive.append(tensor)

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        known = self.nodes.get(id(tensor))
        if known is not None:
            return known
        if id(tensor) not in self.attributes:
            self._refuse(MADE_ELSEWHERE)
        target, keys = self.attributes[id(tensor)]
        node = self.emit("get_attr", target, (), {})
        for key in keys:
            node = self.emit("call_function", _GETITEM, (node, key), {})
        node.meta["val"] = tensor
        self.bind(tensor, node)
        return node

    def argument(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.node_of(value)
        if isinstance(value, TrainingFlag):
            return self.emit("get_attr", f"{value.path}.training" if value.path else "training", (), {})
        if isinstance(value, BatchSize):
            return int(value)
        if isinstance(value, torch.device):
            is_live = self.device is not None and value == self.device[0]
            return self.emit("call_function", getattr, (self.device[1], "device"), {}) if self.device and is_live else value
        if isinstance(value, slice):
            return slice(self.argument(value.start), self.argument(value.stop), self.argument(value.step))
        if isinstance(value, torch.Size):
            return tuple(self.argument(item) for item in value)
        if isinstance(value, tuple):
            items = [self.argument(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if isinstance(value, list):
            return [self.argument(item) for item in value]
        if type(value) is dict:
            return {key: self.argument(item) for key, item in value.items()}
        if isinstance(value, range):
            return list(value)
        for kind in _NUMBERS:
            if isinstance(value, cast(type, kind)):
                return value if type(value) is kind else kind(value)
        if isinstance(value, _PLAIN):
            return value
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            return value.item()
        return self._refuse(f"it passes an object of type {type(value).__name__} to an operator")

    def note(self, value: Any, node: fx.Node) -> None:
        """Lets the tensors in a result stand for the node, or for items of it."""
        node.meta["val"] = value
        if isinstance(value, torch.Tensor):
            self.bind(value, node)
            return
        for how, key, part in parts_of(value) or []:
            if tensors_in(part):
                target = _GETITEM if how == "item" else getattr
                self.note(part, self.emit("call_function", target, (node, key), {}))

    def returned(self, value: Any) -> Any:
        if isinstance(value, (torch.Tensor, BatchSize, TrainingFlag)):
            if isinstance(value, TrainingFlag):
                self._branched(value.path, bool(value))
                return bool(value)
            return self.argument(value)
        if isinstance(value, (*_PLAIN, torch.device, torch.Size)) and not isinstance(value, type):
            return tuple(value) if isinstance(value, torch.Size) else value
        if type(value) in (tuple, list, dict) or hasattr(value, "_fields"):
            if type(value) is dict:
                return {key: self.returned(part) for key, part in value.items()}
            items = [self.returned(part) for part in value]
            return items if type(value) is list else type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if type(value) is OrderedDict and all(isinstance(key, (str, int)) for key in value):
            return self.emit("call_function", OrderedDict, ([(key, self.returned(part)) for key, part in value.items()],), {})
        made = constructor_of(value)
        if made is not None:
            kind, fields = made
            return self.emit("call_function", kind, (), {key: self.returned(part) for key, part in fields.items()})
        return self._from_template(value)

    def _from_template(self, value: Any) -> fx.Node:
        tensors = tensors_in(value)
        try:
            template = Template(value, tensors)
        except Exception:  # whatever a foreign class raises when it is copied or pickled
            self._refuse(f"it returns an object of type {type(value).__name__}")
        if not template.holds_no_tensor():
            self._refuse(f"it returns an object of type {type(value).__name__}, whose tensors cannot be found")
        return self.emit("call_function", template, ([self.node_of(tensor) for tensor in tensors],), {})


def attributes_of(root: nn.Module) -> dict[int, tuple[str, tuple[Any, ...]]]:
    """For each tensor that a module tree holds, by id: the attribute's path, and the keys into lists and dictionaries there."""
    found: dict[int, tuple[str, tuple[Any, ...]]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if isinstance(module, torch.jit.ScriptModule):
            continue
        own = {**module._parameters, **module._buffers, **module.__dict__}
        for name, value in own.items():
            if isinstance(value, torch.Tensor):
                found.setdefault(id(value), (f"{prefix}{name}", ()))
            elif not name.startswith("_") and isinstance(value, (list, tuple, dict)):
                for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                    if isinstance(item, torch.Tensor) and isinstance(key, (str, int)):
                        found.setdefault(id(item), (f"{prefix}{name}", (key,)))
    return found
