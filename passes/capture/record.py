"""Capture by example: a module's forward is run once, on fake tensors, and what it calls is written down as a graph.

Python's control flow is followed as it happens, so a graph is right for calls that take the same way: every fact that
Python read on the way becomes a guard (training flags, sizes, dtypes, the values of plain arguments). What depends on
data, is drawn by Python's own generators, writes attributes or changes torch's modes is not replayed by any graph: the
innermost module that does it is the ``culprit`` of a ``Refused``, and is a single call in the next attempt.

Tensors are known by identity. A tensor that nobody recorded cannot become an argument, so nothing is frozen unseen.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..leaves import leaves_of
from .canonical import as_node, attribute_name, writes_in_place
from .fake_twin import FakeTwin
from .few_steps import in_few_steps
from .flags import TrainingFlag, plain
from .guarded_calls import guarded_calls
from .module_kinds import has_hooks, is_leaf
from .node_writer import NodeWriter
from .readings import GRADIENTS, LAYOUT, Reading, read_of
from .rebuild import tensors_in
from .recipes import is_composite
from .refusals import CHANGES_SETTING, MADE_ELSEWHERE, UNKNOWABLE, Diverged, Refused, reason_of
from .signature import Arguments, CallSignature
from .watch import StateWatch, ambient_state, unsafe_caller


@dataclass
class Recording:
    """A graph and what it relies on.

    Attributes:
        calls: the arguments of modules that are single calls. apart: those of them that have hooks.
        flags: ``training`` flags on which Python branched, by path. batch_read: Python decided by a number of samples.
    """

    graph: fx.Graph
    calls: dict[str, Any] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)
    flags: dict[str, bool] = field(default_factory=dict)
    batch_read: bool = False


class Culprit(Refused):
    """A refusal that knows the path of the module whose Python is to blame."""

    def __init__(self, reason: str, path: str) -> None:
        super().__init__(reason)
        self.path = path


class Recorder(TorchFunctionMode):
    """Records one call of the module at ``path`` of a twin.

    Args:
        own_python: paths below the module, from it, that stay single calls.
        like: an earlier recording for another batch size, which this one is to follow; ``batch`` is then this one's size.
    """

    def __init__(self, twin: FakeTwin, path: str, own_python: set[str], like: Recording | None = None, batch: int = 0) -> None:
        super().__init__()
        self.twin = twin
        self.path = path
        self.root: nn.Module = twin.modules[path] if path else twin.root
        self.own_python = own_python
        self.batch = batch
        self.paths: dict[nn.Module, str] = {}
        for name, module in self.root.named_modules():
            self.paths.setdefault(module, name)
        self._stack: list[str] = [""]
        self._off = 0
        self._ambient = ambient_state()
        self._poison: str | None = None
        modules = {path: module for module, path in self.paths.items()}
        followed = None if like is None else like.graph
        self.writer = NodeWriter(self.root, modules, self._stack, followed, self.refuse, self._branched, Recorder.record.__code__)
        self.found = Recording(self.writer.graph)

    # The whole

    def record(self, signature: CallSignature, call: Arguments, forward: Callable[..., Any]) -> Recording:
        """Runs ``forward`` on the call's fake tensors.

        Raises:
            Culprit: the module, or one below it, does what no graph can replay.
            Diverged: the call for another batch size is not the same one.
        """
        before = {module: dict(module.__dict__) for module in self.paths if not isinstance(module, torch.jit.ScriptModule)}
        flags = {module: module.training for module in before}
        for module, flag in flags.items():
            module.__dict__["training"] = TrainingFlag.of(flag, self.paths[module], self._branched)
        self._before = {module: _shallow(module) for module in before}
        state = StateWatch(*before)
        self._random = _python_random()
        try:
            with self.twin.mode, guarded_calls(self.refuse, lambda: self._off > 0), self._module_calls():
                self._run(signature, call, forward)
            reason = self._poison or self._side_effect(self.root) or _written(state)
        except (Diverged, Culprit):
            raise
        except Exception as error:  # whatever the model's Python raises
            reason = self._poison or (str(error) if isinstance(error, Refused) else reason_of(error))
        finally:
            state.restore()
            for module, flag in flags.items():
                module.__dict__["training"] = flag
        if reason is not None:
            raise Culprit(reason, self._stack[-1])
        return self.found

    def _run(self, signature: CallSignature, call: Arguments, forward: Callable[..., Any]) -> None:
        tensors = signature.tensors(*call)
        for name, tensor in zip(signature.tensor_names, tensors, strict=True):
            node = self.writer.emit("placeholder", name, (), {})
            self.writer.bind(tensor, node)
            node.meta["val"] = tensor
            if self.writer.device is None:
                self.writer.device = (tensor.device, node)
        args, kwargs = call
        before, form = pytree.tree_flatten((args, kwargs))
        with self:
            result = forward(self.root, *args, **kwargs)
        after, other = pytree.tree_flatten((args, kwargs))
        if form != other or any(a is not b for a, b in zip(before, after, strict=True)):
            self.refuse("it writes into a list or dictionary that its caller passes")
        self.writer.emit("output", "output", (self.writer.returned(result),), {})

    def refuse(self, reason: str) -> NoReturn:
        """Raises Culprit for the module that runs, and remembers it in case the module's own code swallows the exception."""
        self._poison = self._poison or reason
        raise Culprit(reason, self._stack[-1])

    def _branched(self, path: str, flag: bool) -> None:
        if not self._off:
            self.found.flags[path] = flag

    # Calls of torch

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._off:
            return func(*plain(args), **plain(kwargs))
        reading = self._refuse_strange(func, args, kwargs)
        result = self._evaluated(func, args, kwargs)
        if reading is not None:
            return reading(result, self.batch, self._read_batch)
        if not tensors_in(result) and getattr(func, "__name__", "") != "__setitem__":
            return result
        op, target, own_args, own_kwargs = as_node(func, tuple(args), kwargs)
        node = self.writer.emit(op, target, self.writer.argument(own_args), self.writer.argument(own_kwargs))
        self.writer.note(result, node)
        if func is torch.Tensor.__setitem__:
            return result
        if writes_in_place(func, kwargs) and not isinstance(result, torch.Tensor):
            self.refuse(f"it writes in place what cannot be followed ({getattr(func, '__name__', func)})")
        return result

    def _refuse_strange(self, func: Any, args: Any, kwargs: Any) -> Reading | None:
        name = str(getattr(func, "__name__", ""))
        attribute = attribute_name(func)
        if name == "__set__":
            self.refuse(f"it assigns to the attribute {attribute!r} of a tensor")
        asked = attribute or name
        if asked in GRADIENTS:
            self.refuse(f"it reads {asked} of a tensor, or is called back in its backward")
        if asked in LAYOUT:
            self.refuse(f"it decides by the memory layout of a tensor ({asked})")
        if name == "requires_grad_" and args and id(args[0]) in self.writer.attributes:
            self.refuse("it changes what learns (requires_grad_)")
        if func is torch.autograd.grad or func is torch.autograd.backward:
            self.refuse("it computes gradients inside its forward")
        if torch._C._functorch.maybe_current_level() is not None:
            self.refuse("it runs inside a function transform (torch.func, torch.vmap)")
        self._require_safe(3)
        for leaf in leaves_of((tuple(args), kwargs)):
            if isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor) and id(leaf) not in self.writer.nodes:
                self.refuse(MADE_ELSEWHERE)
        return read_of(asked)

    def _require_safe(self, depth: int) -> None:
        """Refuses if the code of the module that is running, ``depth`` frames above, must keep its Python."""
        if ambient_state() != self._ambient:
            self.refuse(CHANGES_SETTING)
        reason = unsafe_caller(sys._getframe(depth), _BOUNDARIES)
        if reason is not None:
            self.refuse(reason)

    def _evaluated(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._off += 1
        try:
            return func(*plain(args), **plain(kwargs))
        except UNKNOWABLE as error:
            name, unknowable = str(getattr(func, "__name__", func)), type(error).__name__
        except RuntimeError:
            if func not in _WITHOUT_FAKE:
                raise
            return _product_of_groups(*plain(args), **plain(kwargs))
        finally:
            self._off -= 1
        return self.refuse(f"{_USES.get(name, name + '()')} depends on the data" + ("" if name in _USES else f" ({unknowable})"))

    def _read_batch(self) -> None:
        self.found.batch_read = True

    # Calls of modules

    @contextmanager
    def _module_calls(self) -> Iterator[None]:
        kinds = {nn.Module, *(_definer(type(module)) for module in self.paths)}
        with ExitStack() as stack:
            for kind in kinds:
                stack.enter_context(patch.object(kind, "__call__", self._called(kind.__dict__["__call__"])))
            yield

    def _called(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = self.paths.get(module)
            if self._off or path is None or (self._stack[-1] == path and path):
                return original(module, *args, **kwargs)
            if is_leaf(module) or has_hooks(module) or path in self.own_python or _replaced(module):
                return self._single_call(original, module, path, args, kwargs)
            self._require_safe(2)
            self._stack.append(path)
            result = original(module, *args, **kwargs)
            reason = self._side_effect(module)
            if reason is not None:
                self.refuse(reason)
            self._stack.pop()
            return result

        return call

    def _single_call(self, original: Callable[..., Any], module: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        self._require_safe(3)
        given = self.writer.argument(tuple(args)), self.writer.argument(dict(kwargs))
        absolute = f"{self.path}.{path}" if self.path else path
        if has_hooks(module):
            self.found.apart.add(path)
        self._off += 1
        try:
            if module._modules or not is_leaf(module) or is_composite(module):
                self.found.calls.setdefault(absolute, (args, kwargs))
                with self.twin.recording(absolute) as calls:
                    try:
                        result = in_few_steps(module, partial(original, module), args, kwargs)
                    finally:
                        for name, call in calls.items():
                            self.found.calls.setdefault(name, call)
            else:
                result = original(module, *plain(args), **plain(kwargs))
        except UNKNOWABLE:
            self._off -= 1
            self.refuse(f"its part {path!r} depends on the data")
        except BaseException:
            self._off -= 1
            raise
        self._off -= 1
        self.writer.note(result, self.writer.emit("call_module", path, *given))
        return result

    def _side_effect(self, module: nn.Module) -> str | None:
        """What the Python of a module has done beside computing."""
        if ambient_state() != self._ambient:
            return CHANGES_SETTING
        if _python_random() != self._random:
            return "it draws random numbers in Python"
        before, now = self._before.get(module, {}), _shallow(module)
        if before != now:
            return f"it writes its attribute {next(name for name in {**before, **now} if before.get(name) != now.get(name))!r} in forward"
        return None


def _product_of_groups(rows: torch.Tensor, weights: torch.Tensor, *_rest: Any, **_more: Any) -> torch.Tensor:
    """The form of a product of groups of rows with a matrix each, which torch computes in any dtype, and fakes only in some."""
    return rows @ (weights[0] if weights.dim() == 3 else weights)


def _written(state: StateWatch) -> str | None:
    changed = state.change()
    return f"it writes its attribute {changed!r} in forward" if changed is not None else None


def _shallow(module: nn.Module) -> dict[str, int]:
    """The identities of a module's own attributes, parameters and buffers."""
    found = {name: id(value) for name, value in module.__dict__.items()}
    for held in (module._parameters, module._buffers, module._modules):
        found.update({name: id(value) for name, value in held.items()})
    return found


def _python_random() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    own = numpy.random.get_state()[1:3] if numpy is not None else (b"", 0)
    return hash(random.getstate()), bytes(own[0]), own[1]


def _definer(kind: type) -> type:
    """The class that defines how a module of a kind is called."""
    return next(base for base in kind.__mro__ if "__call__" in base.__dict__)


def _replaced(module: nn.Module) -> bool:
    return "forward" in module.__dict__


_WITHOUT_FAKE = tuple(f for f in (getattr(torch, "_grouped_mm", None), getattr(F, "grouped_mm", None)) if f is not None)
_USES = {
    "__bool__": "a branch",
    "item": "item()",
    "__int__": "int()",
    "__float__": "float()",
    "__index__": "an index",
    "tolist": "tolist()",
}
_CALL = next(item for item in Recorder._called.__code__.co_consts if getattr(item, "co_name", "") == "call")
_BOUNDARIES = (_CALL, Recorder._run.__code__)
