"""What the choice of kernels reads off a contraction, and how it is told."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from .. import meta
from ..contractions import is_masked, path_of
from ..masks.specs import MaskSpec
from ..ops import OPS
from ..specs import SwatSpec
from .rates import PRODUCTS, Product


def site_of_contraction(node: fx.Node) -> str:
    """The site of a contraction, which a masked one has from its weight; empty if it is none."""
    facts = meta.read(node)
    if "site" not in facts and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
        facts = meta.read(node.args[1])
    return str(facts.get("site", ""))


def weight_density(swat: SwatSpec | None, mask: MaskSpec | None) -> float:
    return (mask.weight_density if mask else 1.0) * (swat.weight_density if swat else 1.0)


def weight_shape(gm: fx.GraphModule, weight: fx.Node) -> tuple[int, ...] | None:
    """The shape of a convolution's weight, whose views are not followed."""
    source: Any = weight.args[0] if weight.target is OPS.sparsify.default else weight
    if source.op != "get_attr" and not is_masked(source):
        return None
    return tuple(operator.attrgetter(path_of(source))(gm).shape)


def described(native: str, product: Product) -> tuple[str, str]:
    """What native kernels compute, and of how much, in words."""
    what = ", ".join(name for letter, name in PRODUCTS.items() if letter in native) or "none of its products"
    share = f"densities {product.weight:.3g} and {product.activation:.3g} of {product.macs / 1e9:.3g} GMAC"
    return f"native kernels for {what}", share
