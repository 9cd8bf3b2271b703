"""Functions of torch that make tensors out of nothing, as nodes of a traced graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from .tracer import CaptureTracer

FACTORIES = frozenset(
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


class FactoryMode(TorchFunctionMode):
    """Records tensors that forward makes out of nothing, so that they stay live: random, and on the right device."""

    def __init__(self, tracer: CaptureTracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tracer = self._tracer
        if not tracer.evaluating and func in FACTORIES:
            return tracer.create_proxy("call_function", func, args, kwargs)
        return func(*args, **kwargs)
