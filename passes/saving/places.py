"""Where in a model tensors are kept for backward: one place for each module that keeps some, or whose forward calls what does."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from ..capture.capture import Capture
from ..sites import graphs_in_order
from .match import match


@dataclass(frozen=True, kw_only=True)
class Place:
    """A module in whose call something is kept.

    Attributes:
        name: its path; "" is the root. module_types: names of its classes. parameters: qualified names of its own parameters.
        operators: what kinds of operators keep something there.
    """

    name: str
    module_types: tuple[str, ...]
    parameters: tuple[str, ...]
    operators: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name under which a pattern can select it."""
        return (self.name, *self.parameters)


def site_of(node: fx.Node, path: str) -> str:
    """The module that is called, or whose forward calls a function, by its path from the model's root."""
    if node.op == "call_module":
        inner = str(node.target)
    else:
        stack = node.meta.get("nn_module_stack") or {}
        inner = next(reversed(stack), "") if stack else ""
    return f"{path}.{inner}" if path and inner else path or inner


def places_of(capture: Capture) -> dict[str, Place]:
    """The places of a captured model by name, in the order in which its graphs are run."""
    found: dict[str, list[str]] = {}
    for path, _, gm in graphs_in_order(capture):
        for node in gm.graph.nodes:
            saver = match(gm, node)
            if saver is not None:
                found.setdefault(site_of(node, path), []).append(saver.kind)
    return {name: _place(capture.root, name, kinds) for name, kinds in found.items()}


def _place(root: nn.Module, name: str, kinds: list[str]) -> Place:
    module = root.get_submodule(name)
    types = tuple(kind.__name__ for kind in type(module).__mro__ if kind not in (object, nn.Module))
    own = tuple(f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False))
    return Place(name=name, module_types=types, parameters=own, operators=tuple(dict.fromkeys(kinds)))
