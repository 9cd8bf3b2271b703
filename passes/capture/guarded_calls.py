"""Functions that bypass torch's function overrides: while a model is traced, they refuse instead of running unseen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch.autograd.function import Function
from torch.utils.checkpoint import CheckpointFunction

_TRUSTED = (torch.__path__[0], __file__.rpartition("guarded_calls")[0])
_MODE_QUESTIONS = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "get_autocast_dtype")

Refuse = Callable[[str], NoReturn]


@contextmanager
def guarded_calls(refuse: Refuse, is_evaluating: Callable[[], bool]) -> Iterator[None]:
    """Inside, autograd functions and questions about autograd's mode call ``refuse`` with a reason.

    Args:
        is_evaluating: whether a node is just being run on fake tensors, where everything is allowed.
    """
    base: Any = Function.__mro__[1]  # Function.apply calls its apply, however the model came by Function.apply
    run = base.apply.__func__ if hasattr(base.apply, "__func__") else None

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        if is_evaluating():
            return super(base, cls).apply(*args, **kwargs) if run is None else run(cls, *args, **kwargs)
        if cls is CheckpointFunction:
            refuse("it checkpoints activations, which a traced graph would no longer do")
        refuse(f"it calls a torch.autograd.Function ({cls.__name__}), whose own backward a traced graph would lose")

    with ExitStack() as stack:
        stack.enter_context(patch.object(base, "apply", classmethod(apply), create=True))
        for name in _MODE_QUESTIONS:
            stack.enter_context(patch.object(torch, name, _question(getattr(torch, name), refuse, is_evaluating)))
        yield


def _question(original: Callable[..., Any], refuse: Refuse, is_evaluating: Callable[[], bool]) -> Callable[..., Any]:
    def asked(*args: Any, **kwargs: Any) -> Any:
        if not is_evaluating() and not sys._getframe(1).f_code.co_filename.startswith(_TRUSTED):
            refuse("it asks whether gradients or autocast are on, which a graph would decide once for all")
        return original(*args, **kwargs)

    return asked
