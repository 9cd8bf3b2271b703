"""When nodes are priced: the first time that somebody asks what a compiled model costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxsparse.passes.annotate_cost import annotate_cost
from fxsparse.passes.capture.capture import Capture, leaving_no_trace
from fxsparse.passes.capture.signature import Arguments


@dataclass
class Pricing:
    """What is needed to write the cost of every node to its metadata; done once, by ``write``.

    Attributes:
        example: the form of the example inputs, without their values. rewritten: paths of graphs that a pass has changed.
    """

    captured: Capture
    names: Mapping[str, str]
    example: Arguments | None
    rewritten: set[str]

    def write(self) -> dict[str, Any]:
        """Prices every node. Returns the cost of the root's own Python, empty if the root is a graph."""
        with leaving_no_trace():
            return annotate_cost(self.captured, self.names, self.example, self.rewritten)


def forms_of(example: Arguments | None) -> Arguments | None:
    """The example with meta tensors, which have shape, strides and dtype but no values, in place of its tensors."""
    if example is None:
        return None

    def form(tensor: torch.Tensor) -> torch.Tensor:
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return empty.requires_grad_(tensor.requires_grad)

    args, kwargs = pytree.tree_map_only(torch.Tensor, form, example)
    return args, kwargs
