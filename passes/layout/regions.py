"""The regions of a graph whose tensors are best kept batch innermost: around convolutions with sparse operands, as far as they reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from ..graph import value
from ..ops import OPS
from .parts import Part, part_of, readers_of, reads_any_order
from .rates import Product, Rates, best, dense_seconds, seconds, wanted

AS_IT_IS = "d"  # no product by native kernels, but in the region


@dataclass
class Region:
    """Parts that are joined by tensors, in the graph's order.

    Attributes:
        native: the products of each convolution that native kernels compute, by letters.
        gain: seconds of a training step that are saved, about. dense: those that its convolutions take by PyTorch.
    """

    parts: dict[fx.Node, Part]
    native: dict[fx.Node, str] = field(default_factory=dict)
    gain: float = 0.0
    dense: float = 0.0

    def entrances(self) -> dict[fx.Node, None]:
        """Nodes outside whose tensors are read inside."""
        return {x: None for part in self.parts.values() for x in part.inputs if x not in self.parts}

    def exits(self) -> dict[fx.Node, list[fx.Node]]:
        """Nodes inside whose tensors are read outside where their order matters, with those readers."""
        found = {node: [user for user in node.users if user not in self.parts and not reads_any_order(user)] for node in self.parts}
        return {node: users for node, users in found.items() if users}


def find_regions(gm: fx.GraphModule, products: Mapping[fx.Node, Product], rates: Rates, everything: bool) -> list[Region]:
    """The regions that hold convolutions among ``products``, each with what it gains.

    Args:
        everything: native kernels compute whatever they can.
    """
    parts = {node: part for node in gm.graph.nodes if (part := part_of(gm, node)) is not None}
    native = {node: wanted_natively(product, rates, everything) for node, product in products.items()}
    _share_packs(native)
    parts = {node: part for node, part in parts.items() if part.kind != "conv" or native.get(node)}
    parts = _without_foreign_writes(parts)
    regions = []
    for members in _components(parts):
        region = Region(members, {node: native[node] for node, part in members.items() if part.kind == "conv"})
        if region.native:
            _weigh(region, products, rates)
            regions.append(region)
    return regions


def wanted_natively(product: Product, rates: Rates, everything: bool) -> str:
    """The products of a convolution that native kernels compute."""
    if not everything:
        return best(product, rates)
    return "".join(letter for letter in wanted(product) if letter != "w" or product.masked or product.activation < 1)


def _share_packs(native: dict[fx.Node, str]) -> None:
    """Convolutions that keep one packed activation all read it in one form, and are all in a region or none of them."""
    for node in native:
        first = node.args[1]
        pack = first.args[0] if isinstance(first, fx.Node) and first.args else None
        if not isinstance(pack, fx.Node) or pack.target is not OPS.pack_sparse.default:
            continue
        readers = readers_of(pack)
        if not all("w" in native.get(reader, "") for reader in readers):
            native.update({reader: native[reader].replace("w", "") for reader in readers if reader in native})
        if not all(reader in native for reader in readers):
            native.update({reader: "" for reader in readers if reader in native})
        elif any(native[reader] for reader in readers):
            native.update({reader: native[reader] or AS_IT_IS for reader in readers})


def _without_foreign_writes(parts: dict[fx.Node, Part]) -> dict[fx.Node, Part]:
    """Without the parts that overwrite a tensor from outside, of which a region would overwrite its own copy."""
    while True:
        left = {node: part for node, part in parts.items() if not part.in_place or part.inputs[0] in parts}
        if len(left) == len(parts):
            return left
        parts = left


def _components(parts: dict[fx.Node, Part]) -> list[dict[fx.Node, Part]]:
    root = {node: node for node in parts}

    def find(node: fx.Node) -> fx.Node:
        while root[node] is not node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    for node, part in parts.items():
        for x in part.inputs:
            if x in parts:
                root[find(node)] = find(x)
    found: dict[fx.Node, dict[fx.Node, Part]] = {}
    for node, part in parts.items():
        found.setdefault(find(node), {})[node] = part
    return list(found.values())


def _weigh(region: Region, products: Mapping[fx.Node, Product], rates: Rates) -> None:
    for node, native in region.native.items():
        own = dense_seconds(products[node], rates)
        region.dense += own
        region.gain += own - seconds(products[node], rates, native)
    norms = sum(_bytes(node) for node, part in region.parts.items() if part.kind == "norm")
    borders = sum(_bytes(node) for node in (*region.entrances(), *region.exits()))
    region.gain += (norms * rates.passes_saved - 4 * borders) / rates.moved


def _bytes(node: fx.Node) -> int:
    return 4 * math.prod(int(size) for size in value(node).shape)
