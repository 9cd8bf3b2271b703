"""Symbolic tracing that says no: torch.fx's tracer, with values, live modes, and a way back module by module.

torch.fx.Tracer records what flows through Proxy objects and freezes everything else. This tracer differs in that
- every node carries its value on fake tensors, so that Python's questions about types and shapes get true answers;
- parameters, buffers, tensors made in forward and ``training`` flags are nodes, never constants;
- a module that does what a graph cannot replay is rolled back and recorded as one call; the reason is kept in ``left``.
"""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .fake_twin import UNKNOWN, FakeTwin, given, values_of
from .guarded_calls import guarded_calls
from .origin import stack_trace_of
from .proxies import Refused, TrainingProxy, ValueProxy
from .recipes import RECIPES
from .signature import CallSignature
from .watch import RandomWatch, StateWatch, ambient_state, unsafe_caller

_FACTORIES = frozenset(
    getattr(torch, name)
    for name in [
        "arange",
        "bartlett_window",
        "blackman_window",
        "empty",
        "eye",
        "full",
        "hamming_window",
        "hann_window",
        "kaiser_window",
        "linspace",
        "logspace",
        "as_tensor",
        "asarray",
        "normal",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "scalar_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
    ]
)
_GRAD_FACTS = frozenset({"requires_grad", "grad", "grad_fn", "is_leaf", "_version", "data_ptr"})
CHANGES_SETTING = (
    "it changes a global setting of torch inside its forward (grad mode, autocast, default dtype, attention kernels, saved-tensor hooks)"
)
_LAYOUT_READINGS = frozenset({"is_contiguous", "stride", "storage_offset", "is_pinned", "is_shared"})
_DTYPE_READINGS = frozenset(
    ["dtype", "device", "is_floating_point", "is_complex", "is_cuda", "is_nested", "is_sparse", "is_quantized", "layout"]
)
UNKNOWABLE = (
    torch._subclasses.fake_tensor.DataDependentOutputException,
    torch._subclasses.fake_tensor.DynamicOutputShapeException,
    torch._subclasses.fake_tensor.UnsupportedOperatorException,
    torch._subclasses.fake_tensor.UnsupportedFakeTensorException,
    GuardOnDataDependentSymNode,
    NotImplementedError,
)


class OutOfPatience(BaseException):
    """More parts than one waits for keep their Python. Not an Exception, so that no code of the model swallows it."""


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
        super().__init__(autowrap_functions=tuple(_FACTORIES))
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
        self._probe_twin = probe_twin
        self._patience = patience
        self._is_reserved = False
        self._evaluating = False
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
        if not self._independent_of_batch(proxy.node):
            self.refuse(f"{use} depends on the batch size")
        self._note_reading(proxy.node)
        return value

    def _note_reading(self, node: fx.Node) -> None:
        """Remembers whether a value that Python used was read from shapes or only from dtypes and the like."""
        readings = [node]
        while readings:
            current = readings.pop()
            inputs = current.all_input_nodes
            if any(isinstance(other.meta.get("val"), torch.Tensor) for other in inputs):
                name = _reading(current)
                if name in _LAYOUT_READINGS:
                    self.refuse(f"it decides by the memory layout of a tensor ({name})")
                if name in _DTYPE_READINGS:
                    self.dtypes_were_read = True
                else:
                    self.shapes_were_read = True
            else:
                readings += inputs

    def _independent_of_batch(self, node: fx.Node) -> bool:
        """Whether every number that the node's value was computed from is the same for another batch size."""
        twin = self._probe_twin()
        examples: Iterator[Any] = iter(self.signature.tensors_of_example())
        for earlier in self.graph.nodes:
            if earlier.op == "placeholder":
                example = next(examples, UNKNOWN)
                earlier.meta.setdefault("probe", twin.example(example) if isinstance(example, torch.Tensor) else UNKNOWN)
            elif "probe" not in earlier.meta:
                earlier.meta["probe"] = self._run_probe(twin, earlier)
            if earlier is node:
                break
        return _same_readings(node)

    def _run_probe(self, twin: FakeTwin, node: fx.Node) -> Any:
        self._evaluating = True
        try:
            return twin.run(node.op, self._absolute(node.op, node.target), given(node.args, "probe"), given(node.kwargs, "probe"))
        except Exception:  # a model that refuses another batch size depends on it
            return UNKNOWN
        finally:
            self._evaluating = False

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
        if _reading(node) in _GRAD_FACTS:
            return UNKNOWN
        self._evaluating = True
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
        except Exception as error:
            self.misfit = self.misfit or (node, error)
            return UNKNOWN
        finally:
            self._evaluating = False

    def _absolute(self, kind: str, target: Any) -> Any:
        return f"{self.path}.{target}" if self.path and kind in ("get_attr", "call_module") else target

    def _module(self, target: str) -> nn.Module:
        return self.root.get_submodule(target)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs and not self._is_buffer(a):
            self.refuse("it uses a tensor that is neither a parameter nor a buffer of the model, computed outside the graph")
        try:
            return super().create_arg(a)
        except NotImplementedError:
            self.refuse(f"it passes an object of type {type(a).__name__} to an operator, or returns one")

    def _is_buffer(self, tensor: torch.Tensor) -> bool:
        return any(tensor is buffer for buffer in self.root.buffers())

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if self._evaluating or not isinstance(attr_val, torch.Tensor):
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
        if kind == "call_function" and _is_wrapped_by_user(target) and not self._evaluating and self._takes_parameter(args, kwargs):
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
        if self._evaluating:
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
        state = StateWatch(*_python_modules(module)) if module is not None else None
        randomness = RandomWatch()
        readings = (self.rank_was_read, self.shapes_were_read, self.dtypes_were_read)
        facts = (dict(self.training_branches), self.misfit, dict(self.left))
        poison, self._poison = self._poison, None
        if module is not None:
            self.module_stack[path] = (path, type(module))
        try:
            result = run()
            reason = self._poison or self._side_effect(state, randomness)
        except Exception as error:
            reason = str(error) if isinstance(error, Refused) else (self._poison or f"{type(error).__name__}: {_first_line(error)}")
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
            _refuse_own_containers(result, self.refuse)
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
        flags = {module: module.training for module in _python_modules(root)}
        randomness = RandomWatch()
        for path, module in modules.items():
            if module in flags:
                module.__dict__["training"] = TrainingProxy(self, path, flags[module])
                module.__dict__["train"] = _forbidden(self, "train() or eval()")
                module.__dict__["requires_grad_"] = _forbidden(self, "requires_grad_()")
        state = StateWatch(*flags)
        try:
            with guarded_calls(self.refuse, lambda: self._evaluating), _FactoryMode(self):
                graph = super().trace(root)
            reason = self._poison or self._side_effect(state, randomness)
        except Exception as error:
            reason = str(error) if isinstance(error, Refused) else (self._poison or f"{type(error).__name__}: {_first_line(error)}")
        finally:
            state.restore()
            for module, flag in flags.items():
                module.__dict__.pop("train", None)
                module.__dict__.pop("requires_grad_", None)
                module.__dict__["training"] = flag
        if reason is not None:
            randomness.restore()
            raise Refused(reason)
        graph._tracer_cls = None
        for node in graph.nodes:
            node.type = None  # an annotation that copies could not keep
            node.meta.pop("is_wrapped", None)  # else the generated code would wrap the function for all later tracing
        _drop_unused_readings(graph)
        return graph


def _refuse_own_containers(result: Any, refuse: Callable[[str], NoReturn]) -> None:
    """Refuses a dictionary of a class of its own, which a traced graph would return as a plain one."""
    if issubclass(type(result), fx.Proxy):
        return
    if isinstance(result, dict):
        if type(result) is not dict:
            refuse(f"it returns a {type(result).__name__}")
        for part in result.values():
            _refuse_own_containers(part, refuse)
    elif isinstance(result, (tuple, list)):
        for part in result:
            _refuse_own_containers(part, refuse)


def _reading(node: fx.Node) -> Any:
    """What a node asks of a tensor: the name of an attribute or a method."""
    return node.args[1] if node.target is getattr else node.target


_BOUNDARIES = (CaptureTracer.call_module.__code__, CaptureTracer.trace.__code__)


def _same_readings(node: fx.Node) -> bool:
    value, probe = node.meta.get("val", UNKNOWN), node.meta.get("probe", UNKNOWN)
    inputs = node.all_input_nodes
    is_reading = not inputs or any(isinstance(other.meta.get("val"), torch.Tensor) for other in inputs)
    is_part = node.target is operator.getitem and isinstance(inputs[0].meta.get("val"), tuple)
    if is_reading or is_part:
        return value is not UNKNOWN and type(value) is type(probe) and bool(value == probe)
    return all(_same_readings(other) for other in inputs)


class _Failure:
    def __init__(self, reason: str) -> None:
        self.reason = reason


def _drop_unused_readings(graph: fx.Graph) -> None:
    """Removes reads of attributes, shapes and items that nothing uses; they have no effect."""
    for node in reversed(list(graph.nodes)):
        asks_size = node.op == "call_method" and node.target == "size"
        is_reading = asks_size or node.op == "get_attr" or node.target in (getattr, operator.getitem)
        if is_reading and not node.users:
            graph.erase_node(node)


class _FactoryMode(TorchFunctionMode):
    """Records tensors that forward makes out of nothing, so that they stay live: random, and on the right device."""

    def __init__(self, tracer: CaptureTracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tracer = self._tracer
        if not tracer._evaluating and func in _FACTORIES:
            return tracer.create_proxy("call_function", func, args, kwargs)
        return func(*args, **kwargs)


def _python_modules(root: nn.Module) -> list[nn.Module]:
    """The modules of a tree whose attributes Python can write."""
    return [module for module in root.modules() if not isinstance(module, torch.jit.ScriptModule)]


def reserve_self(graph: fx.Graph) -> None:
    """Keeps a node from being called ``self``, which is the name of the module in the code made of a graph."""
    graph._graph_namespace.create_name("self", None)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one call in the graph of the module around it: torch's own layers, and TorchScript."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    is_torchs = module.__module__.startswith(("torch.nn", "torch.ao.nn"))
    return is_torchs and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody registered forward or backward hooks on the module."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)


def _forbidden(tracer: CaptureTracer, what: str) -> Callable[..., Any]:
    def call(*_args: Any, **_kwargs: Any) -> Any:
        tracer.refuse(f"it calls {what} of a module inside forward")

    return call


def _is_wrapped_by_user(target: Any) -> bool:
    if not isinstance(target, types.FunctionType):
        return False
    return not (target.__module__ or "").startswith(("torch.", "fxsparse", "math", "builtins", "_operator"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
