"""Notices what a traced forward does beside computing: attribute writes, random draws, changed modes."""

from __future__ import annotations

import ast
import inspect
import os
import random
import sys
import textwrap
import types
from functools import lru_cache
from typing import Any

import torch
from torch import nn

_IGNORED = frozenset({"training", "train", "requires_grad_"})


class StateWatch:
    """A module's attributes, parameters and buffers at one moment: what has changed since, and the way back."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = {name: (value, _contents(value)) for name, value in module.__dict__.items() if name not in _IGNORED}

    def change(self) -> str | None:
        """The name of an attribute that was written, deleted or added since; None if there is none."""
        now = {name: value for name, value in self._module.__dict__.items() if name not in _IGNORED}
        for name in now.keys() | self._attributes.keys():
            if name not in now or name not in self._attributes:
                return name
            value, contents = self._attributes[name]
            if now[name] is not value or not _same(_contents(value), contents):
                return name
        return None

    def restore(self) -> None:
        """Puts every attribute back, the contents of its lists, dicts and sets included."""
        attributes = self._module.__dict__
        for name in [name for name in attributes if name not in self._attributes and name not in _IGNORED]:
            del attributes[name]
        for name, (value, contents) in self._attributes.items():
            attributes[name] = value
            if isinstance(value, list):
                value[:] = contents
            elif isinstance(value, dict) or isinstance(value, set):
                value.clear()
                value.update(contents)


def _contents(value: Any) -> Any:
    return value.copy() if isinstance(value, (list, dict, set)) else None


def _same(now: Any, then: Any) -> bool:
    if isinstance(now, dict):
        return list(now) == list(then) and all(now[key] is then[key] for key in now)
    if isinstance(now, list):
        return len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))
    if isinstance(now, set):
        return now == then
    return True


class RandomWatch:
    """The random states of Python, numpy and torch at one moment."""

    def __init__(self) -> None:
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy = numpy.random.get_state() if numpy is not None else None
        self._torch = torch.get_rng_state()

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
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def ambient_state() -> tuple[Any, ...]:
    """Grad mode, inference mode and autocast state, as one value to compare."""
    devices = ("cpu", "cuda")
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
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
        elif any(first <= frame.f_lineno <= last for first, last in _guarded_lines(code)):
            return "it computes inside try/except, whose handler a traced graph would lose"
        frame = frame.f_back
    return None


@lru_cache(maxsize=4096)
def _guarded_lines(code: types.CodeType) -> tuple[tuple[int, int], ...]:
    """Line ranges of the try bodies with handlers in a function's source; empty if there is none, or no source."""
    try:
        lines, start = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return ()
    return tuple(
        (start + node.body[0].lineno - 1, start + (node.body[-1].end_lineno or 0) - 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and node.handlers
    )
