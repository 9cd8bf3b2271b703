"""Gives regions of a graph the memory order that native kernels want, and their convolutions those kernels.

Inside a region a tensor (N, C, H, W) lies in memory as (C, H, W, N): every vector holds one pixel of many samples, whatever a
convolution's stride and padding, and each channel is one run for a norm. Around convolutions with sparse weights or activations

    out = swat_convolution(x, ...)             x = enter(x)                       at the borders of the region alone
    y = relu(batch_norm(out) + x)        ->    out = swat_convolution(x, ..., native="fiw")
                                               y = innermost_norm(out, x, ...)[0]

Elementwise operators keep the order that they find, norms with what follows them become one operator, and pooling gets native kernels or
PyTorch's for channels last. Whatever cannot be in a region reads contiguous tensors, as before. At run time a region is entered where its
kernels take the tensors: float32 on the CPU, several samples, outside of autocast; else the same operators compute what PyTorch computes.

What pays is decided by region: see layout/rates.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from . import meta
from .base import Change, GraphPass, Skip
from .graph import Recorder, Snapshot, differences, value
from .kernels.library import library
from .layout.functions import concatenate, enter, leave, swap_samples
from .layout.parts import Part, is_addition, is_relu, part_of, readers_of
from .layout.rates import Product, Rates
from .layout.regions import Region, find_regions
from .layout.sites import described, site_of_contraction, weight_density, weight_shape
from .masks.specs import MaskSpec
from .ops import OPS
from .ops.codes.tiles import of_tiles
from .saving.edit import Editor
from .saving.functions import update_running
from .saving.places import site_of
from .specs import SwatSpec

SCHEME, NATIVE = 10, 17  # of swat_convolution's arguments


class ChooseLayout(GraphPass):
    """Lays regions of one graph out for native kernels.

    Args:
        path: of the graph's module, from the model's root.
        swat, masks: what makes the weights and activations sparse, by site.
        everything: wherever native kernels can compute, they do, whether it pays or not.
    """

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
        if library() is None:
            return ()
        products = {node: product for node in gm.graph.nodes if (product := self._product(gm, node)) is not None}
        outcome: list[Change | Skip] = []
        for region in find_regions(gm, products, self.rates, self.everything) if products else ():
            convs = {node: site_of_contraction(node) for node in region.native}
            if region.gain <= (self.rates.margin - 1) * region.dense and not self.everything:
                reason = "native kernels: what they save, changes of memory order would cost"
                outcome += [Skip(site=site, reason=reason, graph=self.path) for site in convs.values()]
                continue
            outcome += _RegionRewriter(gm, self.path, region, convs, products, self.rates).run()
        return tuple(outcome)

    def _product(self, gm: fx.GraphModule, node: fx.Node) -> Product | None:
        """The sizes of a convolution with sparse operands; None for every other node."""
        part = part_of(gm, node)
        if part is None or part.kind != "conv":
            return None
        site, x, y = site_of_contraction(node), value(part.inputs[0]), value(node)
        spec, mask = self.swat.get(site), self.masks.get(site)
        shape = weight_shape(gm, part.facts["weight"])
        if shape is None or (spec is None and mask is None):
            return None
        sizes = [[int(size) for size in tensor.shape] for tensor in (x, y)]
        swat = node.target is OPS.swat_convolution.default
        return Product(
            elements=math.prod(shape),
            macs=math.prod(sizes[1]) * math.prod(shape[1:]),
            samples=sizes[0][0],
            x_bytes=4 * math.prod(sizes[0]),
            y_bytes=4 * math.prod(sizes[1]),
            groups=part.facts["groups"],
            weight=weight_density(spec, mask),
            activation=spec.activation_density if spec is not None and swat and spec.granularity == "tensor" else 1.0,
            masked=not swat,
            needs_x=bool(getattr(x, "requires_grad", True)),
        )


class _RegionRewriter(Editor):
    """Edits one region."""

    def __init__(
        self, gm: fx.GraphModule, path: str, region: Region, sites: Mapping[fx.Node, str], products: Mapping[fx.Node, Product], rates: Rates
    ) -> None:
        super().__init__(gm, Recorder(gm.graph))
        self.path, self.region, self.sites, self.products, self.rates = path, region, sites, products, rates

    def run(self) -> list[Change]:
        before = Snapshot(self.gm.graph)
        entrances, exits = self.region.entrances(), self.region.exits()
        self._enter(entrances)
        self._leave(exits)
        made = [(self.sites[node], self.region.native[node], self._conv(node), self.products[node]) for node in self.region.native]
        self._norms()
        for node, part in self.region.parts.items():
            if not node._erased:
                self._other(node, part)
        found = differences(before, Snapshot(self.gm.graph))
        head, size = made[0], len(self.region.parts)
        changes = [
            Change(
                site=head[0], graph=self.path, node=head[2].name,
                what=f"{size} nodes batch innermost, entered at {len(entrances)} and left at {len(exits)}",
                why=f"{len(made)} convolutions with sparse operands gain more than the borders cost",
                added=tuple(sorted(found["added"])), removed=tuple(sorted(found["removed"])), rewired=tuple(sorted(found["rewired"])),
            )
        ]  # fmt: skip
        return [*changes, *(self._of_conv(*item) for item in made)]

    def _of_conv(self, site: str, native: str, node: fx.Node, product: Product) -> Change:
        what, why = described(native, product)
        return Change(site=site, graph=self.path, node=node.name, what=what, why=why)

    # Borders

    def _enter(self, entrances: Mapping[fx.Node, None]) -> None:
        for source in entrances:
            place = next(node for node in self.gm.graph.nodes if node in source.users and self._wants_innermost(node))
            users = [user for user in source.users if self._wants_innermost(user)]
            with self.make.before(place):
                inside = self.make.function(enter, source)
            inside.meta["val"] = value(source)
            meta.write(inside, role="enter")
            for user in users:
                user.replace_input_with(source, inside)

    def _wants_innermost(self, user: fx.Node) -> bool:
        """Whether a reader of a tensor from outside is in the region, or measures or packs the same tensor for one that is."""
        return user in self.region.parts or (user.target == "detach" and any(self._serves(reader) for reader in user.users))

    def _serves(self, reader: fx.Node) -> bool:
        if reader.target is OPS.pack_sparse.default:
            return any(conv in self.region.parts for item in reader.users for conv in item.users)
        return reader.target is OPS.refresh_threshold.default and any(self._serves(user) for user in reader.users)

    def _leave(self, exits: Mapping[fx.Node, list[fx.Node]]) -> None:
        for node, users in exits.items():
            with self.make.before(node.next):
                outside = self.make.function(leave, node)
            outside.meta["val"] = value(node)
            meta.write(outside, role="leave")
            packed = [user for user in node.users if user.target == "detach" and not any(self._serves(reader) for reader in user.users)]
            for user in dict.fromkeys((*users, *packed)):  # who multiplies outside keeps what it multiplies
                user.replace_input_with(node, outside)

    # Parts

    def _conv(self, node: fx.Node) -> fx.Node:
        native, facts = self.region.native[node], self.region.parts[node].facts
        if node.target is OPS.swat_convolution.default:
            given: list[Any] = list(node.args)
            defaults = [argument.default_value for argument in node.target._schema.arguments]
            given += defaults[len(given) : NATIVE]
            packed, strides = self._pack(node)
            if packed is not None and "w" in native:
                scheme = of_tiles(strides, "gaps" if "gaps" in given[SCHEME] else "bitmap")
                packed.args = (*packed.args[:4], scheme, *packed.args[5:])
                given[SCHEME] = scheme
            node.args = (*given[:NATIVE], native)
            return node
        with self.make.before(node):
            bias = self.attribute(facts["bias"])
            geometry = (facts["stride"], facts["padding"], facts["dilation"], facts["groups"])
            out = self.make.function(
                OPS.masked_convolution.default, node.args[0], facts["weight"], facts["mask"], facts["growing"], bias, *geometry, native
            )
        meta.write(out, site=self.sites[node], role="contraction")
        self.replace(node, out)
        return out

    def _pack(self, node: fx.Node) -> tuple[fx.Node | None, list[int]]:
        """What packs a contraction's activation, and the least common multiple of the strides of all convolutions that read it."""
        first: Any = node.args[1]
        pack = first.args[0] if first.target is operator.getitem else None
        if pack is None or pack.target is not OPS.pack_sparse.default:
            return None, []
        strides: list[Any] = [reader.args[4] for reader in readers_of(pack)]
        return pack, [math.lcm(*(stride[axis] for stride in strides)) for axis in (0, 1)]

    def _norms(self) -> None:
        for node, part in list(self.region.parts.items()):
            if part.kind == "norm":
                self._norm(node, part)

    def _norm(self, node: fx.Node, part: Part) -> None:
        saver = part.saver
        assert saver is not None
        last, added, relu = node, None, False
        user = self._only_user(last)
        if user is not None and is_addition(user) and not (user.in_place and user.node.args[0] is not node):
            last, added = (
                user.node,
                next(x for x in user.node.args if x is not node) if user.node.args[0] is not user.node.args[1] else None,
            )
            if added is None:
                last = node
            user = self._only_user(last)
        if user is not None and is_relu(user):
            last, relu = user.node, True
        facts = saver.facts
        names = ("weight", "bias", "running_mean", "running_var", "training")
        with self.make.before(last):
            arguments, counter = [self.attribute(facts[name]) for name in names], self.attribute(facts["counter"])
            x = node.args[0] if node.args else node.kwargs["input"]
            made = self.make.function(OPS.innermost_norm.default, x, added, *arguments, facts["momentum"], facts["eps"], relu)
            meta.write(made, site=site_of(node, self.path), role="norm")
            out = self.item(made, 0)
            if arguments[2] is not None:
                self.make.function(update_running, *arguments[2:4], counter, self.item(made, 4), self.item(made, 5), arguments[4])
        self._take_place(node, last, out)

    def _only_user(self, node: fx.Node) -> Part | None:
        users = list(node.users)
        return self.region.parts.get(users[0]) if len(users) == 1 else None

    def _take_place(self, first: fx.Node, last: fx.Node, out: fx.Node) -> None:
        """Puts a node in the place of others, each of which is read by the next alone."""
        chain = [last]
        while chain[-1] is not first:
            chain.append(next(x for x in self.region.parts[chain[-1]].inputs if x is first or self._leads(first, x)))
        self.replace(last, out)
        for node in chain[1:]:
            self.drop(node)

    def _leads(self, first: fx.Node, node: fx.Node) -> bool:
        return first in node.all_input_nodes and len(node.users) == 1

    def _other(self, node: fx.Node, part: Part) -> None:
        if part.kind == "cat":
            tensors = node.args[0] if node.args else node.kwargs["tensors"]
            with self.make.before(node):
                out = self.make.function(concatenate, tensors)
            self.replace(node, out)
        elif part.kind == "max_pool":
            assert part.saver is not None
            facts = part.saver.facts
            window = [facts[name] for name in ("kernel", "stride", "padding", "dilation")]
            with self.make.before(node):
                x = node.args[0] if node.args else node.kwargs["input"]
                made = self.make.function(OPS.innermost_max_pool.default, x, *window, facts["ceil_mode"])
                meta.write(made, site=site_of(node, self.path), role="pool")
                out = self.item(made, 0)
            self.replace(node, out)
        elif part.kind == "pool":
            source: Any = node.args[0] if node.args else node.kwargs["input"]
            with self.make.before(node):
                swapped = self.make.function(swap_samples, source)
            node.replace_input_with(source, swapped)
            with self.make.before(node.next):
                out = self.make.function(swap_samples, node)
            out.meta["val"] = value(node)
            for user in [user for user in node.users if user is not out]:
                user.replace_input_with(node, out)
