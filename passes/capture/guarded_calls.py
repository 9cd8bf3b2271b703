"""Calls that torch's function overrides do not see: while a model is traced, they refuse instead of running unseen."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch.autograd.function import BackwardCFunction
from torch.utils.checkpoint import CheckpointFunction

_OWN_ROOT = os.path.dirname(__file__)
_TORCH_ROOT = torch.__path__[0]
_MODES: tuple[tuple[Any, str], ...] = (
    (torch.no_grad, "__enter__"),
    (torch.enable_grad, "__enter__"),
    (torch.set_grad_enabled, "__init__"),
    (torch.inference_mode, "__enter__"),
    (torch.autocast, "__enter__"),
)
_QUESTIONS = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "get_autocast_dtype")
_GENERATOR = ("manual_seed", "seed", "get_rng_state", "set_rng_state")

CHANGES_MODE = "it changes grad mode, inference mode or autocast inside its forward"

Refuse = Callable[[str], NoReturn]


@contextmanager
def guarded_calls(refuse: Refuse, is_evaluating: Callable[[], bool]) -> Iterator[None]:
    """Inside, what a graph could not replay calls ``refuse`` with the reason.

    Args:
        is_evaluating: whether a node is just being run on fake tensors, where everything is allowed.
    """

    def guarded(original: Callable[..., Any], reason: str, trusted: tuple[str, ...]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not is_evaluating() and not sys._getframe(1).f_code.co_filename.startswith(trusted):
                refuse(reason)
            return original(*args, **kwargs)

        return call

    def begin_autograd_function(context: Any) -> None:
        """Autograd makes a context for each call of a custom function, however the model came by its ``apply``."""
        kind = context._forward_cls
        if is_evaluating():
            return
        if kind is CheckpointFunction:
            refuse("it checkpoints activations, which a traced graph would no longer do")
        refuse(f"it calls a torch.autograd.Function ({kind.__name__}), whose own backward a traced graph would lose")

    asks = "it asks whether gradients or autocast are on, which a graph would decide once for all"
    seeds = "it reads or sets the state of the random number generator"
    with ExitStack() as stack:
        stack.enter_context(patch.object(BackwardCFunction, "__init__", begin_autograd_function))
        for holder, name in _MODES:
            stack.enter_context(patch.object(holder, name, guarded(getattr(holder, name), CHANGES_MODE, (_OWN_ROOT,))))
        for name in _QUESTIONS:
            stack.enter_context(patch.object(torch, name, guarded(getattr(torch, name), asks, (_OWN_ROOT, _TORCH_ROOT))))
        for name in _GENERATOR:
            stack.enter_context(patch.object(torch, name, guarded(getattr(torch, name), seeds, (_OWN_ROOT,))))
        yield
