"""Why a module keeps its Python: the refusal, and the reasons that both ways of capture give."""

from __future__ import annotations

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

CHANGES_SETTING = (
    "it changes a global setting of torch inside its forward (grad mode, autocast, default dtype, attention kernels, saved-tensor hooks)"
)
MADE_ELSEWHERE = "it uses a tensor that is neither a parameter nor a buffer of the model, computed outside the graph"
UNKNOWABLE = (
    torch._subclasses.fake_tensor.DataDependentOutputException,
    torch._subclasses.fake_tensor.DynamicOutputShapeException,
    torch._subclasses.fake_tensor.UnsupportedOperatorException,
    torch._subclasses.fake_tensor.UnsupportedFakeTensorException,
    GuardOnDataDependentSymNode,
    NotImplementedError,
)


class Refused(Exception):
    """Tracing would lose or freeze something that the model's Python does; the message is the reason reported."""


class OutOfPatience(BaseException):
    """More parts than one waits for keep their Python. Not an Exception, so that no code of the model swallows it."""


class Diverged(Exception):
    """For another batch size the module runs other operators."""


def reason_of(error: Exception) -> str:
    """An exception as a reason to keep Python."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or ["no message"])[0]
