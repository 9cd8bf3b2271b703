"""What flows through a model while it is traced: proxies that know the value that they stand for."""

from __future__ import annotations

import dis
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .fake_twin import UNKNOWN
from .watch import is_in_assertion

if TYPE_CHECKING:
    from .tracer import CaptureTracer

_TORCH_ROOT = torch.__path__[0]
_OWN_ROOT = os.path.dirname(__file__)
_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor", "ilshift", "irshift")


_OWN_ATTRIBUTES = frozenset({"tracer", "node", "root", "attribute", "path", "flag", "_node"})


class ValueProxy(fx.Proxy):
    """A proxy that answers ``isinstance``, ``dim()`` and, where no batch size is baked in, ``bool``, ``int`` and ``len``."""

    tracer: CaptureTracer

    @property
    def value(self) -> Any:
        return self.node.meta.get("val", UNKNOWN)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class of the value, so that ``isinstance(x, Tensor)`` decides as it would in the model's own run.

        Only Python that asks gets it: native code that takes the proxy for a tensor would read memory that is not one.
        """
        if not asks_for_class(sys._getframe(1).f_code):
            return type(self)
        value = self.value
        if value is UNKNOWN:
            if not sys._getframe(1).f_code.co_filename.startswith((_TORCH_ROOT, _OWN_ROOT)):
                self.tracer.refuse("it asks for the type of a value that is not known before it runs")
            return torch.Tensor
        return torch.Tensor if isinstance(value, torch.Tensor) else type(value)

    def __getattr__(self, name: str) -> Any:
        if name == "_is_param":
            return isinstance(self.value, torch.nn.Parameter)
        if name == "_is_buffer":
            return False
        if name == "ndim" and isinstance(self.value, torch.Tensor):
            return self.dim()
        return ValueAttribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN_ATTRIBUTES:
            self.tracer.refuse(f"it assigns to the attribute {name!r} of a tensor")
        object.__setattr__(self, name, value)

    def dim(self) -> Any:
        if isinstance(self.value, torch.Tensor):
            self.tracer.rank_was_read = True
            return self.value.dim()
        return self.tracer.create_proxy("call_method", "dim", (self,), {})

    def __len__(self) -> int:
        if isinstance(self.value, torch.Size):
            self.tracer.rank_was_read = True
            return len(self.value)
        if isinstance(self.value, torch.Tensor):
            return int(self.tracer.concrete(self.size(0), "len()"))
        return len(self.tracer.concrete(self, "len()"))

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.value, torch.Size):
            self.tracer.rank_was_read = True
            return self._items(len(self.value))
        unpacked = _unpacked_into(sys._getframe(1))
        if isinstance(self.value, torch.Tensor):
            length = unpacked or int(self.tracer.concrete(self.size(0), "iterating over a tensor"))
            rows: ValueProxy = self.unbind(0)
            return rows._items(length)
        if unpacked is not None:
            return self._items(unpacked)
        if isinstance(self.value, (tuple, list)):
            return self._items(len(self.tracer.concrete(self, "iteration")))
        return self.tracer.refuse("it iterates over something whose length is not known before it runs")

    def _items(self, count: int) -> Iterator[Any]:
        return (self.tracer.create_proxy("call_function", operator.getitem, (self, index), {}) for index in range(count))

    def __bool__(self) -> bool:
        return bool(self.tracer.concrete(self, "a branch"))

    def __int__(self) -> int:
        return int(self.tracer.concrete(self, "int()"))

    def __float__(self) -> float:
        return float(self.tracer.concrete(self, "float()"))

    def __index__(self) -> int:
        return operator.index(self.tracer.concrete(self, "an index"))

    def __hash__(self) -> int:
        """A tensor's hash is its identity; a number's is its value."""
        if isinstance(self.value, torch.Tensor):
            return object.__hash__(self)
        return hash(self.tracer.concrete(self, "looking it up"))

    def __format__(self, spec: str) -> str:
        if is_in_assertion(sys._getframe(1)):
            return "?"
        return format(self.tracer.concrete(self, "writing a value as text"), spec)

    def __str__(self) -> str:
        if is_in_assertion(sys._getframe(1)):
            return "?"
        return str(self.tracer.concrete(self, "writing a value as text"))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __contains__(self, _item: Any) -> bool:
        self.tracer.refuse("it asks whether a value is contained in a tensor")


def _in_place(name: str) -> Callable[[ValueProxy, Any], Any]:
    target = getattr(operator, name)

    def method(self: ValueProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in _IN_PLACE:  # without them ``x += y`` would make a new tensor, and other names of x would keep the old values
    setattr(ValueProxy, f"__{_name}__", _in_place(_name))


class ValueAttribute(ValueProxy):
    """``x.attr``, turned into a node only when it is used as a value; a method call becomes one node."""

    def __init__(self, root: ValueProxy, attribute: str) -> None:
        self.root = root
        self.attribute = attribute
        self.tracer = root.tracer
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        if self._node is None or self._node._erased:
            self._node = self.tracer.create_proxy("call_function", getattr, (self.root, self.attribute), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", self.attribute, (self.root, *args), kwargs)


class TrainingProxy(ValueProxy):
    """A module's ``training`` flag: live where it is passed on, and a specialisation where Python branches on it."""

    def __init__(self, tracer: CaptureTracer, path: str, flag: bool) -> None:
        self.tracer = tracer
        self.path = path
        self.flag = flag
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        if self._node is None or self._node._erased:
            target = f"{self.path}.training" if self.path else "training"
            self._node = self.tracer.create_proxy("get_attr", target, (), {}).node
        return self._node

    @property
    def value(self) -> Any:
        return self.flag

    def __bool__(self) -> bool:
        self.tracer.training_branches[self.path] = self.flag
        return self.flag


@lru_cache(maxsize=4096)
def asks_for_class(code: types.CodeType) -> bool:
    """Whether a function contains isinstance(), a class pattern or ``.__class__``."""
    if not {"isinstance", "issubclass", "__class__"}.isdisjoint(code.co_names):
        return True
    return any(instruction.opname == "MATCH_CLASS" for instruction in dis.get_instructions(code))


def _unpacked_into(frame: Any) -> int | None:
    """How many names the sequence is being unpacked into, if ``a, b = x`` is what the frame is doing."""
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset == frame.f_lasti:
            return instruction.argval if instruction.opname == "UNPACK_SEQUENCE" else None
    return None
