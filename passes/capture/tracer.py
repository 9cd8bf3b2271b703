"""Symbolic tracing that says no: torch.fx's tracer, with values, live modes, and a way back module by module.

torch.fx.Tracer records what flows through Proxy objects and freezes everything else. This tracer differs in that
- every node carries its value on fake tensors, so that Python's questions about types and shapes get true answers;
- parameters, buffers, tensors made in forward and ``training`` flags are nodes, never constants;
- a module that does what a graph cannot replay is rolled back and recorded as one call; the reason is kept in ``left``.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ..graph import reserve_self
from .batch_probe import BatchProbe, names_read, reading
from .factories import FACTORIES, FactoryMode
from .fake_twin import UNKNOWN, FakeTwin, values_of
from .finished_trace import clean, refuse_own_containers
from .guarded_calls import guarded_calls
from .module_kinds import has_hooks, is_leaf, python_modules
from .origin import stack_trace_of
from .proxies import TrainingProxy, ValueProxy
from .readings import DTYPES, GRADIENTS, LAYOUT
from .recipes import RECIPES
from .refusals import CHANGES_SETTING, MADE_ELSEWHERE, UNKNOWABLE, OutOfPatience, Refused, reason_of
from .signature import CallSignature
from .watch import RandomWatch, StateWatch, ambient_state, unsafe_caller


class CaptureTracer(fx.Tracer):
    """Traces the module at ``path`` of a model; after ``trace`` the facts it relied on stand in its attributes.

    With a ``patience`` it gives up, by OutOfPatience, when so many parts keep their Python.

    Attributes:
        left: why a module keeps its Python. apart: modules with hooks, which get graphs of their own so that hooks are called.
        calls: the arguments of modules that are not part of the graph. misfit: the first node that failed on the example.
    """

    proxy_buffer_attributes = True

    def __init__(
        self, path: str, twin: FakeTwin, probe_twin: Callable[[], FakeTwin], signature: CallSignature, patience: int | None = None
    ) -> None:
        super().__init__(autowrap_functions=tuple(FACTORIES))
        self._autowrap_search.append(torch)
        self.path = path
        self.twin = twin
        self.signature = signature
        self.left: dict[str, str] = {}
        self.apart: set[str] = set()
        self.calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.misfit: tuple[fx.Node, Exception] | None = None
        self.rank_was_read = False
        self.shapes_were_read = False
        self.dtypes_were_read = False
        self.training_branches: dict[str, bool] = {}
        self._probe = BatchProbe(probe_twin, signature.tensors_of_example(), self._absolute)
        self._patience = patience
        self._is_reserved = False
        self.evaluating = False
        self._poison: str | None = None
        self._attribute_proxies: dict[int, ValueProxy] = {}
        self._ambient = ambient_state()

    # What the model's Python may do

    def refuse(self, reason: str) -> NoReturn:
        """Raises Refused, and remembers it in case the model's own code swallows the exception."""
        self._poison = reason
        raise Refused(reason)

    def concrete(self, proxy: ValueProxy, use: str) -> Any:
        """The Python value behind a proxy, if it neither depends on data nor on the batch size."""
        value = proxy.value
        if value is UNKNOWN or isinstance(value, torch.Tensor):
            self.refuse(f"{use} depends on the data")
        self.evaluating = True
        try:
            is_fixed = self._probe.agrees(proxy.node)
        finally:
            self.evaluating = False
        if not is_fixed:
            self.refuse(f"{use} depends on the batch size")
        self._note_reading(proxy.node)
        return value

    def _note_reading(self, node: fx.Node) -> None:
        """Remembers whether a value that Python used was read from shapes or only from dtypes and the like."""
        for name in names_read(node):
            if name in LAYOUT:
                self.refuse(f"it decides by the memory layout of a tensor ({name})")
            if name in DTYPES:
                self.dtypes_were_read = True
            else:
                self.shapes_were_read = True

    # Nodes and their values

    def proxy(self, node: fx.Node) -> ValueProxy:
        return ValueProxy(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None) -> fx.Node:
        if kind not in ("placeholder", "output"):
            self._require_safe(sys._getframe(1))
        if not self._is_reserved:
            reserve_self(self.graph)
            self._is_reserved = True
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.meta.pop("seq_nr", None)
        if kind == "placeholder":
            node.meta["val"] = UNKNOWN
        elif kind != "output":
            node.meta["val"] = self._value(node)
            node.stack_trace = stack_trace_of(sys._getframe(1), CaptureTracer.trace.__code__)
        return node

    def _require_safe(self, frame: types.FrameType) -> None:
        """Refuses if the code of the module that is running, which ``frame`` belongs to, must keep its Python."""
        if ambient_state() != self._ambient:
            self.refuse(CHANGES_SETTING)
        reason = unsafe_caller(frame, _BOUNDARIES)
        if reason is not None:
            self.refuse(reason)

    def _value(self, node: fx.Node) -> Any:
        if reading(node) in GRADIENTS:
            return UNKNOWN
        self.evaluating = True
        target = self._absolute(node.op, node.target)
        args, kwargs = values_of(node.args), values_of(node.kwargs)
        try:
            if node.op == "call_module" and any(True for _ in self._module(str(node.target)).parameters()):
                self.calls.setdefault(target, (args, kwargs))
                with self.twin.recording(target) as calls:
                    try:
                        return self.twin.run(node.op, target, args, kwargs)
                    finally:
                        for path, call in calls.items():
                            self.calls.setdefault(path, call)
            return self.twin.run(node.op, target, args, kwargs)
        except UNKNOWABLE:
            return UNKNOWN
        except Exception as error:  # whatever an operator raises on shapes that do not fit
            self.misfit = self.misfit or (node, error)
            return UNKNOWN
        finally:
            self.evaluating = False

    def _absolute(self, kind: str, target: Any) -> Any:
        return f"{self.path}.{target}" if self.path and kind in ("get_attr", "call_module") else target

    def _module(self, target: str) -> nn.Module:
        return self.root.get_submodule(target)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs and not self._is_buffer(a):
            self.refuse(MADE_ELSEWHERE)
        try:
            return super().create_arg(a)
        except NotImplementedError:
            self.refuse(f"it passes an object of type {type(a).__name__} to an operator, or returns one")

    def _is_buffer(self, tensor: torch.Tensor) -> bool:
        return any(tensor is buffer for buffer in self.root.buffers())

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if self.evaluating or not isinstance(attr_val, torch.Tensor):
            return attr_val
        known = self._attribute_proxies.get(id(attr_val))
        if known is not None and not known.node._erased:
            return known
        for collection in (self.root.named_parameters(), self.root.named_buffers()):
            for name, tensor in collection:
                if tensor is attr_val:
                    proxy = self.create_proxy("get_attr", name, (), {})
                    self._attribute_proxies[id(attr_val)] = proxy
                    return proxy
        return attr_val

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None, proxy_factory_fn: Any = None
    ) -> Any:
        if kind == "call_function" and _is_wrapped_by_user(target) and not self.evaluating and self._takes_parameter(args, kwargs):
            opened = self._attempt(lambda: target(*args, **kwargs))
            if not isinstance(opened, _Failure):
                return opened
        return super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)

    @staticmethod
    def _takes_parameter(args: Any, kwargs: Any) -> bool:
        leaves = pytree.tree_leaves((args, kwargs))
        return any(isinstance(leaf, ValueProxy) and isinstance(leaf.value, nn.Parameter) for leaf in leaves)

    # Modules

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.evaluating:
            return forward(*args, **kwargs)
        self._require_safe(sys._getframe(1))
        try:
            path = self.path_of_module(m)
        except NameError:
            self.refuse(f"it calls a {type(m).__name__} that is not registered as one of its sub-modules")
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        if has_hooks(m):
            self.apart.add(path)
        elif path not in self.left:
            result = self._attempt(lambda: forward(*args, **kwargs), m, path)
            if not isinstance(result, _Failure):
                return result
            self.left[path] = result.reason
            if self._patience is not None and len(self.left) >= self._patience:
                raise OutOfPatience
        return self.create_proxy("call_module", path, args, kwargs)

    def _attempt(self, run: Callable[[], Any], module: nn.Module | None = None, path: str = "") -> Any:
        """What ``run`` returns, or a _Failure after which graph, module and random states are as before."""
        last = next(iter(reversed(self.graph.nodes)), None)
        own = [] if module is None else [part for part in python_modules(module) if not is_leaf(part)]  # the others run no Python here
        state = StateWatch(*own) if own else None
        randomness = RandomWatch()
        readings = (self.rank_was_read, self.shapes_were_read, self.dtypes_were_read)
        facts = (dict(self.training_branches), self.misfit, dict(self.left))
        poison, self._poison = self._poison, None
        if module is not None:
            self.module_stack[path] = (path, type(module))
        try:
            result = run()
            reason = self._poison or self._side_effect(state, randomness)
        except Exception as error:  # whatever the model's Python raises on proxies
            reason = str(error) if isinstance(error, Refused) else (self._poison or reason_of(error))
        finally:
            if module is not None:
                self.module_stack.pop(path, None)
        self._poison = poison
        if reason is None:
            return result
        if state is not None:
            state.restore()
        randomness.restore()
        self._erase_after(last)
        self.rank_was_read, self.shapes_were_read, self.dtypes_were_read = readings
        self.training_branches, self.misfit, self.left = facts
        return _Failure(reason)

    def _side_effect(self, state: StateWatch | None, randomness: RandomWatch) -> str | None:
        changed = state.change() if state is not None else None
        if changed is not None:
            return f"it writes its attribute {changed!r} in forward"
        if ambient_state() != self._ambient:
            return CHANGES_SETTING
        return "it draws random numbers in Python" if randomness.drawn() else None

    def _erase_after(self, last: fx.Node | None) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                break
            self.graph.erase_node(node)

    # The whole

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        root = self.root
        forward = next((recipe for kind, recipe in RECIPES.items() if type(root) is kind), root_fn)
        placeholders = []
        for name, example in zip(self.signature.tensor_names, self.signature.tensors_of_example(), strict=True):
            proxy = super().create_proxy("placeholder", name, (), {})
            if example is not UNKNOWN:
                proxy.node.meta["val"] = self.twin.example(example)
            placeholders.append(proxy)

        def run(*tensors: Any) -> Any:
            args, kwargs = self.signature.arguments(tensors)
            before, form = pytree.tree_flatten((args, kwargs))
            result = forward(root, *args, **kwargs)
            refuse_own_containers(result, self.refuse)
            after, other_form = pytree.tree_flatten((args, kwargs))
            if form != other_form or any(a is not b for a, b in zip(before, after, strict=True)):
                self.refuse("it writes into a list or dictionary that its caller passes")
            return result

        return run, placeholders

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:  # type: ignore[override]
        """The graph of ``root``.

        Raises: Refused with the reason if the module itself cannot be traced; it is then as it was before.
        """
        modules = dict(root.named_modules())
        flags = {module: module.training for module in python_modules(root)}
        randomness = RandomWatch()
        for path, module in modules.items():
            if module in flags:
                module.__dict__["training"] = TrainingProxy(self, path, flags[module])
                module.__dict__["train"] = _forbidden(self, "train() or eval()")
                module.__dict__["requires_grad_"] = _forbidden(self, "requires_grad_()")
        state = StateWatch(*flags)
        try:
            with guarded_calls(self.refuse, lambda: self.evaluating), FactoryMode(self):
                graph = super().trace(root)
            reason = self._poison or self._side_effect(state, randomness)
        except Exception as error:  # whatever the model's Python raises on proxies
            reason = str(error) if isinstance(error, Refused) else (self._poison or reason_of(error))
        finally:
            state.restore()
            for module, flag in flags.items():
                module.__dict__.pop("train", None)
                module.__dict__.pop("requires_grad_", None)
                module.__dict__["training"] = flag
        if reason is not None:
            randomness.restore()
            raise Refused(reason)
        clean(graph)
        return graph


_BOUNDARIES = (CaptureTracer.call_module.__code__, CaptureTracer.trace.__code__)


class _Failure:
    def __init__(self, reason: str) -> None:
        self.reason = reason


def _forbidden(tracer: CaptureTracer, what: str) -> Callable[..., Any]:
    def call(*_args: Any, **_kwargs: Any) -> Any:
        tracer.refuse(f"it calls {what} of a module inside forward")

    return call


def _is_wrapped_by_user(target: Any) -> bool:
    if not isinstance(target, types.FunctionType):
        return False
    return not (target.__module__ or "").startswith(("torch.", "fxsparse", "math", "builtins", "_operator"))
