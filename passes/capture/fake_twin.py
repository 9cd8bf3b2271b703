"""Shapes without running anything: a twin of the model whose parameters and buffers are fake tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from .clone import clone_modules, is_lazy
from .few_steps import in_few_steps
from .module_kinds import is_leaf, python_modules
from .watch import StateWatch


class Unknown:
    """The value of a node whose result depends on data, or comes from something that fake tensors cannot run."""

    def __repr__(self) -> str:
        return "Unknown()"


UNKNOWN = Unknown()
_OTHER_BATCH = 1013  # a size that no layer has by chance
Calls = dict[str, tuple[tuple[Any, ...], dict[str, Any]]]


class FakeTwin:
    """Evaluates nodes of a model's graph on fake tensors. The model's own state is never touched.

    With ``other_batch`` the first size of the inputs is another one than the example's, so that a number read from
    shapes is the same in both twins exactly when it does not depend on the batch size.
    """

    def __init__(self, root: nn.Module, mode: FakeTensorMode | None = None, *, other_batch: bool = False) -> None:
        self.other_batch = other_batch
        self.mode = FakeTensorMode(allow_non_fake_inputs=True) if mode is None else mode
        self._batch: int | None = None
        self.root = clone_modules(root, convert=self._static)
        self.modules = dict(self.root.named_modules(remove_duplicate=False))

    def _static(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor) or is_lazy(tensor):
            return tensor
        return self.mode.from_tensor(tensor)

    def example(self, tensor: torch.Tensor) -> torch.Tensor:
        """A fake tensor like an example input; with another first size if this twin is for that."""
        if isinstance(tensor, FakeTensor) and tensor.fake_mode is self.mode and not self.other_batch:
            return tensor
        sizes = list(tensor.shape)
        if self.other_batch and sizes:
            self._batch = sizes[0] if self._batch is None else self._batch
            sizes[0] = _OTHER_BATCH if sizes[0] == self._batch else sizes[0]
        with self.mode:
            found = torch.empty_strided(sizes, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        return found.requires_grad_() if tensor.requires_grad else found

    def for_other_batch(self) -> FakeTwin:
        """A twin in the same mode for another batch size."""
        return FakeTwin(self.root, self.mode, other_batch=True)

    def run(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of one node, whose target is qualified from the root; UNKNOWN arguments give UNKNOWN.

        Raises: whatever the operator raises on these shapes.
        """
        if any(value is UNKNOWN for value in pytree.tree_leaves((args, kwargs))):
            return UNKNOWN
        if kind == "get_attr":
            return operator.attrgetter(target)(self.root)
        with self.mode:
            if kind == "call_module":
                return self.call(target, args, kwargs)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return in_few_steps(target, target, args, kwargs)

    def call(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a module's own Python gives. What it writes to attributes is undone: the next call is the first again.

        Raises: whatever that Python raises on these shapes.
        """
        module = self.modules[path]
        if is_leaf(module):
            return in_few_steps(module, module, args, kwargs)
        state = StateWatch(*python_modules(module))
        try:
            return module(*args, **kwargs)
        finally:
            state.restore()

    def recording(self, path: str) -> AbstractContextManager[Calls]:
        """Collects the arguments of the first call of each module below ``path`` while the twin runs."""
        return recording_calls(self.modules[path], path, lambda call: call)


@contextmanager
def recording_calls(root: nn.Module, path: str, kept: Callable[[Any], Any]) -> Iterator[Calls]:
    """Collects what is ``kept`` of the arguments of the first call of each module below ``root``, which is at ``path``."""
    calls: Calls = {}
    handles = []
    for name, module in root.named_modules(prefix=path):
        if name == path or isinstance(module, torch.jit.ScriptModule):
            continue
        handles.append(module.register_forward_pre_hook(_recorder(calls, name, kept), with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _recorder(calls: Calls, name: str, kept: Callable[[Any], Any]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name not in calls:
            calls[name] = kept((args, kwargs))

    return hook


def values_of(arguments: Any) -> Any:
    """Node arguments with every node replaced by its value."""
    return given(arguments, "val")


def given(arguments: Any, fact: str) -> Any:
    """Node arguments with that fact of every node in its place, in lists and dictionaries that a function may write to, as in the graph."""
    found = fx.node.map_arg(arguments, lambda node: node.meta.get(fact, UNKNOWN))
    return _thawed(found)


def _thawed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        items = [_thawed(item) for item in value]
        return items if isinstance(value, list) else type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return {key: _thawed(item) for key, item in value.items()} if isinstance(value, dict) else value
