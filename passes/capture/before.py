"""What comes before a capture: states that a model cannot be captured in, and what must be afterwards as it was."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fxsparse.errors import TraceError

from .clone import is_lazy
from .watch import RandomWatch


@contextmanager
def leaving_no_trace() -> Iterator[None]:
    """Puts all random states back, and keeps torch from warning of what runs only on fake tensors, where nothing is computed."""
    randomness = RandomWatch()
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        randomness.restore()


def refuse_strange_states(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}, which is not an object yet" if isinstance(model, type) else type(model).__name__
        raise TraceError(f"a torch.nn.Module is compiled, got {got}; wrap a function into a Module's forward")
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("the model is a TorchScript module, whose Python is gone; compile the torch.nn.Module that it was scripted from")
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if is_lazy(tensor):
            raise TraceError(f"{name!r} is not initialised (a lazy module): run the model once on real inputs, then compile it")
        if tensor.is_meta:
            raise TraceError(f"{name!r} is on the meta device and has no values: model.to_empty(device=...) and load its weights first")
