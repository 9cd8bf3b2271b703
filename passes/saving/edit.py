"""Editing a graph for what it keeps: what is put in, taken out and rewired is noted."""

from __future__ import annotations

import operator
import zlib
from typing import Any

import torch
from torch import fx

from .. import meta
from ..graph import Recorder, first_real_node, value
from ..ops.operator import REFERENCE
from ..ops.pack_sparse import NEAREST
from ..specs_saved import SavedSpec, Spec
from ..state import CLOCK_TARGET


class Editor:
    """Edits one graph.

    Attributes:
        removed, rewired: names of the nodes that were taken away, and whose arguments were changed.
    """

    def __init__(self, gm: fx.GraphModule, make: Recorder, reference: bool = False) -> None:
        self.gm, self.make, self.reference = gm, make, reference
        self.removed: list[str] = []
        self.rewired: list[str] = []
        self.attributes: dict[str, fx.Node] = {}
        self._wanted = next((node for node in gm.graph.nodes if node.target is torch.is_grad_enabled), None)

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        """Puts a new node in an old one's place."""
        by.meta["val"] = value(node)
        for key in ("nn_module_stack", "stack_trace"):
            if key in node.meta:
                by.meta[key] = node.meta[key]
        self.rewired += [user.name for user in node.users]
        node.replace_all_uses_with(by)
        self.removed.append(node.name)
        self.gm.graph.erase_node(node)

    def op(self, target: Any, role: str, spec: Spec, *args: Any) -> fx.Node:
        """A call of an operator, which says for what it is there; its last argument may be whether to do without native kernels."""
        last = target._schema.arguments[-1]
        if last.name == REFERENCE and len(args) + 1 == len(target._schema.arguments):
            args = (*args, self.reference)
        made = self.make.function(target, *args)
        meta.write(made, site=spec.site, role=role)
        return made

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """One of several results of a node."""
        return self.make.function(operator.getitem, node, index)

    def attribute(self, item: Any) -> Any:
        """The node that reads a parameter, a buffer or a flag of a module; what is a node already, or nothing, stays."""
        if not isinstance(item, str):
            return item
        if item not in self.attributes:
            with self.make.before(first_real_node(self.gm.graph)):
                self.attributes[item] = self.make.attribute(item)
            self.attributes[item].meta["val"] = None
        return self.attributes[item]

    def gradient_wanted(self) -> fx.Node:
        """The node that says whether gradients are recorded."""
        if self._wanted is None:
            with self.make.before(first_real_node(self.gm.graph)):
                self._wanted = self.make.function(torch.is_grad_enabled)
        return self._wanted

    def rounding(self, node: fx.Node, spec: Spec) -> tuple[Any, int, int, int]:
        """Clock, bits, group size and seed."""
        stochastic = isinstance(spec, SavedSpec) and spec.rounding == "stochastic"
        seed = zlib.crc32(f"{spec.site}:{node.name}".encode()) if stochastic else NEAREST
        return self.attribute(CLOCK_TARGET), spec.bits, spec.group_size, seed

    def drop(self, node: fx.Node) -> None:
        """Removes a node that nothing reads."""
        self.removed.append(node.name)
        self.gm.graph.erase_node(node)
