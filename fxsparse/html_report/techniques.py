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
            kept = self.blpa.get(site) or self.saved.get(site)
            bits = kept.bits if kept is not None else 1
            names.append("BLPA" if site in self.blpa else "SavedActivations" if site in self.saved else "one bit")
        return " + ".join(names), bits
