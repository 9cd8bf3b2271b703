"""Where fake tensors cannot go on: one call of a copy of the model, with the example's own values, tells how it calls its parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .clone import clone_modules
from .fake_twin import Calls, FakeTwin, recording_calls
from .signature import Arguments, with_own_objects


class RealRun:
    """One call forward of a copy of ``root``, whose parameters and buffers are copies too.

    Attributes:
        calls: the arguments of the first call of each module, by path, with fake tensors of ``twin`` in place of real ones.
        error: what it raised, if it did not come to its end.
    """

    def __init__(self, root: nn.Module, example: Arguments, twin: FakeTwin) -> None:
        self.calls: Calls = {}
        self.error: Exception | None = None
        copied = clone_modules(root, _own)
        args, kwargs = pytree.tree_map_only(torch.Tensor, _own, with_own_objects(example))
        try:
            with recording_calls(copied, "", lambda call: pytree.tree_map_only(torch.Tensor, twin.example, call)) as self.calls:
                copied(*args, **kwargs)
        except Exception as error:  # the model's own: what was called until then can be known
            self.error = error


def _own(tensor: torch.Tensor) -> Any:
    own = tensor.detach().clone()
    return nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own.requires_grad_(tensor.requires_grad)
