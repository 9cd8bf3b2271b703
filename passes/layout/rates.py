"""How long the kernels take, by a few figures: enough to say where sparse pays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LANES = 16
PRODUCTS: Mapping[str, str] = {"f": "forward", "i": "grad-input", "w": "grad-weight"}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of one thread; what matters is their ratios.

    Attributes:
        dense: MACs a second of PyTorch's convolution; grouped: of one whose groups have few channels.
        sparse: MACs a second of the native kernels, counting those that are not left out; by product.
        kept: of grad-weight at kept positions. moved: bytes a second that a change of memory order reads or writes.
        passes_saved: how many times fewer a native norm reads or writes its tensor than PyTorch's, forward and backward.
        indexed: elements of a weight whose positions are found in a second.
        started: seconds that a native product takes however small it is, beyond PyTorch's.
        margin: by how much native kernels must be faster to be chosen.
    """

    dense: float = 50e9
    grouped: float = 8e9
    sparse: float = 18e9
    sparse_activation: float = 18e9
    kept: float = 10e9
    moved: float = 4e9
    passes_saved: float = 5.0
    indexed: float = 1e9
    started: float = 1e-4
    margin: float = 1.03


@dataclass(frozen=True, kw_only=True)
class Product:
    """A convolution's sizes.

    Attributes:
        elements: of the weight. macs: dense, forward, for all samples. x_bytes, y_bytes: of input and output.
        weight, activation: densities; activation 1 where grad-weight sees a dense one.
        masked: the weight's gradient is wanted where the weight is kept alone.
    """

    elements: int
    macs: int
    samples: int
    x_bytes: int
    y_bytes: int
    groups: int
    weight: float
    activation: float
    masked: bool
    needs_x: bool


def seconds(product: Product, rates: Rates, native: str) -> float:
    """Of a training step's products, of which native kernels compute those that ``native`` names, inside a region."""
    return sum(_one(product, rates, letter, letter in native) for letter in wanted(product))


def dense_seconds(product: Product, rates: Rates) -> float:
    """Of a training step's products by PyTorch."""
    return len(wanted(product)) * product.macs / _dense_rate(product, rates)


def wanted(product: Product) -> str:
    """The products that a training step computes."""
    return "fiw" if product.needs_x else "fw"


def best(product: Product, rates: Rates) -> str:
    """The products that native kernels compute faster, by letters."""
    return "".join(x for x in wanted(product) if rates.margin * _one(product, rates, x, True) < _one(product, rates, x, False))


def _dense_rate(product: Product, rates: Rates) -> float:
    return rates.dense if product.groups == 1 else rates.grouped


def _one(product: Product, rates: Rates, letter: str, native: bool) -> float:
    if native:
        lost = math.ceil(product.samples / LANES) * LANES / product.samples
        begun = rates.started + product.elements / rates.indexed
        if letter != "w":
            return begun + lost * product.macs * product.weight / rates.sparse
        if product.masked:
            return begun + lost * product.macs * product.weight / rates.kept
        taken = lost * product.macs * product.activation / rates.sparse_activation
        return rates.started + taken if product.activation < 1 else math.inf
    moved = product.x_bytes + product.y_bytes if letter == "f" else product.y_bytes + product.x_bytes
    return product.macs / _dense_rate(product, rates) + 2 * moved / rates.moved
