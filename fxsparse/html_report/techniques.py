"""Which techniques have their hand in a node, and in how many bits it keeps what it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from fxsparse.passes.meta import read as facts_of

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel


class Techniques:
    """Answers for the nodes of one model."""

    def __init__(self, model: CompiledModel) -> None:
        self.masks = model.masks
        self.swat = model.swat
        self.blpa = model.kept_plan.blpa
        self.saved = model.kept_plan.saved

    def of(self, node: fx.Node) -> tuple[str, int | None]:
        """The techniques, joined by " + " and empty for none, and the bits, None where values are kept as they are."""
        facts = facts_of(node)
        site, made_by, role = facts.get("site", ""), facts.get("made_by", ""), facts.get("role", "")
        names, bits = [], None
        if role and site in self.masks:
            names.append(self.masks[site].technique)
        if role and site in self.swat and made_by != "insert_masks":
            names.append("SWAT")
        if made_by == "compress_saved" and role:
            bits = _bits_of(node)
            names.append("SavedActivations" if site in self.saved else "BLPA" if self.blpa else "one bit")
        return " + ".join(names), bits


def _bits_of(node: fx.Node) -> int:
    """The bits that an operator is told to keep values in; one if it is told none, since it then keeps where something is positive."""
    schema = getattr(node.target, "_schema", None)
    for index, argument in enumerate(schema.arguments if schema is not None else ()):
        value = node.args[index] if index < len(node.args) else None
        if argument.name == "bits" and isinstance(value, int):
            return value
    return 1
