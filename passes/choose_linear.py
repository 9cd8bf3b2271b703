"""Gives linear layers with sparse weights or activations native kernels, where those are faster; no memory order is asked for.

out = swat_linear(x, ...)        ->    out = swat_linear(x, ..., native="fiw")
out = F.linear(x, masked)        ->    out = masked_linear(x, masked, mask, growing, bias, "fiw")
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from . import meta
from .base import Change, GraphPass, Skip
from .contractions import is_masked
from .graph import Recorder, Snapshot, differences, value
from .kernels.library import library
from .layout.parts import readers_of
from .layout.rates import Product, Rates, best, wanted
from .layout.sites import described, site_of_contraction, weight_density, weight_shape
from .masks.specs import MaskSpec
from .ops import OPS
from .ops.codes.tiles import TILES, of_tiles
from .saving.edit import Editor
from .saving.match import match
from .specs import SwatSpec

SCHEME, NATIVE = 4, 11  # of swat_linear's arguments


class ChooseLinear(GraphPass):
    """Chooses kernels for the linear layers of one graph; the arguments are those of ChooseLayout."""

    def __init__(
        self,
        path: str,
        swat: Mapping[str, SwatSpec],
        masks: Mapping[str, MaskSpec],
        everything: bool = False,
        rates: Rates | None = None,
    ) -> None:
        self.path, self.swat, self.masks, self.everything, self.rates = path, swat, masks, everything, rates or Rates()

    def rewrite(self, gm: fx.GraphModule) -> tuple[Change | Skip, ...]:
        products = {node: product for node in gm.graph.nodes if (product := self._product(gm, node)) is not None} if library() else {}
        native = {node: self._chosen(product) for node, product in products.items()}
        for node in native:
            pack = _pack_of(node)
            if pack is not None and not all("w" in native.get(reader, "") for reader in readers_of(pack)):
                native[node] = native[node].replace("w", "")
        edit = Editor(gm, Recorder(gm.graph))
        return tuple(self._rewritten(edit, node, letters, products[node]) for node, letters in native.items() if letters)

    def _chosen(self, product: Product) -> str:
        if not self.everything:
            return best(product, self.rates)
        return "".join(letter for letter in wanted(product) if letter != "w" or product.masked or product.activation < 1)

    def _product(self, gm: fx.GraphModule, node: fx.Node) -> Product | None:
        if node.op != "call_function" or not (node.target is OPS.swat_linear.default or _has_masked_weight(gm, node)):
            return None
        swat = node.target is OPS.swat_linear.default
        x, y, site = value(node.args[0] if node.args else node.kwargs["input"]), value(node), site_of_contraction(node)
        spec, mask = self.swat.get(site), self.masks.get(site)
        weight: Any = node.args[2] if swat else match(gm, node).facts["weight"]  # type: ignore[union-attr]
        shape = weight_shape(gm, weight)
        known = isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and x.dtype == torch.float32 and x.device.type == "cpu"
        if not known or shape is None or (spec is None and mask is None):
            return None
        rows = math.prod(int(size) for size in x.shape[:-1])
        sparse = spec.activation_density if spec is not None and swat and spec.granularity == "tensor" and x.dim() in (2, 3) else 1.0
        return Product(
            elements=math.prod(shape), macs=rows * math.prod(shape), samples=max(rows, 1), x_bytes=0, y_bytes=0, groups=1,
            weight=weight_density(spec, mask), activation=sparse, masked=not swat, needs_x=bool(getattr(x, "requires_grad", True)),
        )  # fmt: skip

    def _rewritten(self, edit: Editor, node: fx.Node, native: str, product: Product) -> Change:
        site, before = site_of_contraction(node), Snapshot(edit.gm.graph)
        out = self._swat(node, native) if node.target is OPS.swat_linear.default else self._masked(edit, node, native, site)
        found = differences(before, Snapshot(edit.gm.graph))
        added, removed, rewired = (tuple(sorted(found[kind])) for kind in ("added", "removed", "rewired"))
        what, why = described(native, product)
        return Change(site=site, graph=self.path, node=out.name, what=what, why=why, added=added, removed=removed, rewired=rewired)

    def _swat(self, node: fx.Node, native: str) -> fx.Node:
        given: list[Any] = list(node.args)
        pack = _pack_of(node)
        if pack is not None and "w" in native:
            if not given[SCHEME].startswith(TILES):
                given[SCHEME] = of_tiles([1, 1], "gaps" if "gaps" in given[SCHEME] else "bitmap")
            pack.args = (*pack.args[:4], given[SCHEME], *pack.args[5:])
        node.args = (*given[:NATIVE], native)
        return node

    def _masked(self, edit: Editor, node: fx.Node, native: str, site: str) -> fx.Node:
        saver = match(edit.gm, node)
        assert saver is not None
        masked, bias = saver.facts["weight"], saver.facts["bias"]
        with edit.make.before(node):
            out = edit.make.function(OPS.masked_linear.default, saver.x, masked, masked.args[1], masked.args[2], bias, native)
        meta.write(out, site=site, role="contraction")
        edit.replace(node, out)
        return out


def _pack_of(node: fx.Node) -> fx.Node | None:
    first: Any = node.args[1] if node.target is OPS.swat_linear.default else None
    pack = first.args[0] if isinstance(first, fx.Node) and first.target is operator.getitem else None
    return pack if isinstance(pack, fx.Node) and pack.target is OPS.pack_sparse.default else None


def _has_masked_weight(gm: fx.GraphModule, node: fx.Node) -> bool:
    saver = match(gm, node)
    if saver is None or saver.kind != "linear" or saver.problem is not None:
        return False
    weight = saver.facts["weight"]
    return isinstance(weight, fx.Node) and is_masked(weight)
