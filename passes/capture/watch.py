"""Notices what a traced forward does beside computing: attribute writes, random draws, changed modes."""

from __future__ import annotations

import ast
import dis
import inspect
import os
import random
import sys
import textwrap
import types
from collections import deque
from functools import lru_cache
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from .clone import is_plain_object

_DEPTH = 4


class StateWatch:
    """The attributes of some modules at one moment, down into containers and plain objects: what has changed, and the way back."""

    def __init__(self, *modules: nn.Module) -> None:
        self._holders: dict[int, tuple[str, Any, Any]] = {}
        for module in modules:
            for name, value in self._remember("", module.__dict__):
                self._descend(name, value, _DEPTH)

    def _remember(self, name: str, holder: Any) -> list[tuple[str, Any]]:
        self._holders[id(holder)] = (name, holder, holder.copy())
        if isinstance(holder, dict):
            return [(name or str(key), value) for key, value in holder.items()]
        return [(name, value) for value in holder]

    def _descend(self, name: str, value: Any, depth: int) -> None:
        if isinstance(value, (torch.Tensor, fx.Proxy)):
            return
        holder = value.__dict__ if is_plain_object(value) else value
        if not isinstance(holder, (list, dict, set, deque)):
            return
        if id(holder) in self._holders or depth == 0:
            return
        for _, inner in self._remember(name, holder):
            self._descend(name, inner, depth - 1)

    def change(self) -> str | None:
        """The name of an attribute that was written, deleted or added since; None if there is none."""
        for name, holder, contents in self._holders.values():
            if not _same(holder, contents):
                return name or next(key for key in {**holder, **contents} if holder.get(key, self) is not contents.get(key, self))
        return None

    def restore(self) -> None:
        """Puts every attribute back, the contents of containers included."""
        for _, holder, contents in self._holders.values():
            if not _same(holder, contents):
                holder.clear()
                holder.extend(contents) if isinstance(holder, (list, deque)) else holder.update(contents)


def _same(now: Any, then: Any) -> bool:
    if isinstance(now, set):
        return bool(now == then)
    if isinstance(now, dict):
        return list(now) == list(then) and all(now[key] is then[key] for key in now)
    return len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))


class RandomWatch:
    """The random states of Python, numpy and torch at one moment."""

    def __init__(self) -> None:
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy = numpy.random.get_state() if numpy is not None else None
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def drawn(self) -> bool:
        """Whether a random number was drawn since."""
        if random.getstate() != self._python or not torch.equal(torch.get_rng_state(), self._torch):
            return True
        if self._numpy is None:
            return False
        now = sys.modules["numpy"].random.get_state()
        return bool(now[2] != self._numpy[2] or (now[1] != self._numpy[1]).any())

    def restore(self) -> None:
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def ambient_state() -> tuple[Any, ...]:
    """Everything global that decides what an operator computes or saves, as one value to compare."""
    devices = ("cpu", "cuda")
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
        torch._C._get_flash_sdp_enabled(),
        torch._C._get_mem_efficient_sdp_enabled(),
        torch._C._get_math_sdp_enabled(),
        *((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices),
    )


_TORCH_ROOT = torch.__path__[0]
_OWN_ROOT = os.path.dirname(__file__)


def unsafe_caller(frame: types.FrameType | None, stops: tuple[types.CodeType, ...]) -> str | None:
    """Why the code that is running, up to a frame of ``stops``, must keep its Python; None if it need not."""
    while frame is not None and frame.f_code not in stops:
        code = frame.f_code
        if code.co_filename.startswith(_TORCH_ROOT):
            if code.co_filename.endswith("torch/utils/checkpoint.py"):
                return "it checkpoints activations, which a traced graph would no longer do"
        elif code.co_filename.startswith(_OWN_ROOT):
            pass
        elif _asks_type_of_proxy(frame):
            return "it compares type(x) of a tensor; isinstance(x, Tensor) can be answered while it is traced"
        elif asks_whether_training_is(code):
            return "it asks whether a training flag `is` True or False"
        elif any(first <= frame.f_lineno <= last for first, last in _guarded_lines(code)):
            return "it computes inside try/except, whose handler a traced graph would lose"
        frame = frame.f_back
    return None


def _asks_type_of_proxy(frame: types.FrameType) -> bool:
    """Whether a function calls ``type`` on one of its variables that is a proxy now; nothing can answer that truly."""
    if "type" not in frame.f_code.co_names:
        return False
    names = _names_whose_type_is_asked(frame.f_code)
    return any(isinstance(frame.f_locals.get(name), (fx.Proxy, FakeTensor)) for name in names)


@lru_cache(maxsize=4096)
def asks_whether_training_is(code: types.CodeType) -> bool:
    """Whether a function that reads ``training`` compares something with True or False by identity, as a match statement does."""
    if "training" not in code.co_names:
        return False
    before = None
    for instruction in dis.get_instructions(code):
        is_constant = before is not None and before.opname == "LOAD_CONST" and isinstance(before.argval, bool)
        if instruction.opname == "IS_OP" and is_constant:
            return True
        before = instruction
    return False


@lru_cache(maxsize=4096)
def _names_whose_type_is_asked(code: types.CodeType) -> frozenset[str]:
    calls = (node for node in ast.walk(_source_tree(code)[0]) if isinstance(node, ast.Call) and len(node.args) == 1)
    asked = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "type"]
    return frozenset(argument.id for argument in asked if isinstance(argument, ast.Name))


def is_in_assertion(frame: types.FrameType) -> bool:
    """Whether the line that is running belongs to ``torch._assert(...)``, whose message is made even if nothing is wrong."""
    return any(first <= frame.f_lineno <= last for first, last in _assertion_lines(frame.f_code))


@lru_cache(maxsize=4096)
def _assertion_lines(code: types.CodeType) -> tuple[tuple[int, int], ...]:
    tree, start = _source_tree(code)
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    asserts = [call for call in calls if getattr(call.func, "attr", getattr(call.func, "id", "")) == "_assert"]
    return tuple((start + call.lineno - 1, start + (call.end_lineno or call.lineno) - 1) for call in asserts)


def _source_tree(code: types.CodeType) -> tuple[ast.AST, int]:
    """A function's syntax tree and first line; an empty tree if there is no source."""
    try:
        lines, start = inspect.getsourcelines(code)
        return ast.parse(textwrap.dedent("".join(lines))), start
    except (OSError, TypeError, SyntaxError, ValueError):
        return ast.Module([], []), 0


@lru_cache(maxsize=4096)
def _guarded_lines(code: types.CodeType) -> tuple[tuple[int, int], ...]:
    """Line ranges of the try bodies whose handlers go on, and do not raise again; empty if there is none, or no source."""
    tree, start = _source_tree(code)
    return tuple(
        (start + node.body[0].lineno - 1, start + (node.body[-1].end_lineno or 0) - 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any(not isinstance(handler.body[-1], ast.Raise) for handler in node.handlers)
    )
