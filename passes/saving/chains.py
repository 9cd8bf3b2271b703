"""BLPA's pattern in a graph: [residual add] -> norm -> ReLU -> [pool] -> contraction, before or after the residual add."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .saver import Saver

_ADDITIONS = {operator.add, operator.iadd, torch.add}
_THROUGH_FUNCTIONS = {torch.flatten, F.adaptive_avg_pool2d, F.avg_pool2d, F.dropout, torch.mean}
_THROUGH_METHODS = {"flatten", "view", "reshape", "mean", "contiguous", "squeeze"}
_THROUGH_MODULES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
_FUSED = {"relu": "relu", "hardswish": "hardswish", "silu": "silu"}


@dataclass
class Chains:
    """What BLPA does with the nodes of a graph.

    Attributes:
        norms: what each batch norm is fused with ("none", "relu", "relu6", "hardswish", "silu"), and the node that does that.
        positive: ReLUs after an add, whose output is coded. pools: poolings between a ReLU and a contraction.
        bits: of each norm, ReLU, pool and contraction.
    """

    norms: dict[fx.Node, tuple[str, fx.Node | None]] = field(default_factory=dict)
    positive: set[fx.Node] = field(default_factory=set)
    pools: set[fx.Node] = field(default_factory=set)
    bits: dict[fx.Node, int] = field(default_factory=dict)


class ChainFinder:
    """Follows the inputs of contractions back to their norms.

    Args:
        savers: what each node of the graph keeps. is_free: whether a node's memory may go (else why not, as text).
    """

    def __init__(self, gm: fx.GraphModule, savers: dict[fx.Node, Saver], blocked: Callable[[fx.Node, Saver], str | None]) -> None:
        self.gm, self.savers, self.blocked = gm, savers, blocked
        self.found = Chains()

    def follow(self, contraction: Saver, bits: int) -> str | None:
        """Adds the chain that ends in a contraction. Returns why there is none."""
        chain = Chains()
        reason = self._back(contraction.x, chain, 0)
        if reason is not None:
            return reason
        self.found.norms |= {norm: how for norm, how in chain.norms.items() if norm not in self.found.norms}
        self.found.positive |= chain.positive
        self.found.pools |= chain.pools
        for node in (*chain.norms, *chain.positive, *chain.pools, contraction.node):
            self.found.bits.setdefault(node, bits)
        return None

    def _back(self, node: Any, chain: Chains, depth: int) -> str | None:
        if not isinstance(node, fx.Node) or depth > 16:
            return "its input is no activation"
        saver = self.savers.get(node)
        if saver is None:
            return self._back(node.args[0], chain, depth + 1) if self._is_through(node) else self._no_chain(node)
        blocked = saver.problem or self.blocked(node, saver)
        if saver.kind == "max_pool":
            if blocked is None:
                chain.pools.add(node)
            return blocked or self._back(saver.x, chain, depth + 1)
        if saver.kind in ("avg_pool", "dropout"):
            if saver.kind == "avg_pool" and blocked is None:
                chain.pools.add(node)
            return self._back(saver.x, chain, depth + 1)
        if saver.kind == "batch_norm":
            if blocked is None:
                chain.norms[node] = ("none", None)
                self._beyond(saver.x, chain, depth + 1)
            return blocked
        fused = fused_name(saver)
        return self._no_chain(node) if fused is None else blocked or self._activation(node, saver, fused, chain, depth)

    def _activation(self, node: fx.Node, saver: Saver, fused: str, chain: Chains, depth: int) -> str | None:
        before = saver.x
        norm = self.savers.get(before)
        if norm is not None and norm.kind == "batch_norm":
            blocked = norm.problem or self.blocked(before, norm)
            if blocked is None:
                alone = set(before.users) == {node}
                chain.norms[before] = (fused, node) if alone else ("none", None)
                if not alone and fused == "relu":
                    chain.positive.add(node)
                self._beyond(norm.x, chain, depth + 1)
            return blocked
        if fused != "relu" or not is_addition(before):
            return self._no_chain(before)
        norms = [self.savers[term] for term in terms_of(before) if term in self.savers and self.savers[term].kind == "batch_norm"]
        usable = [item for item in norms if (item.problem or self.blocked(item.node, item)) is None]
        if not usable:
            return "the ReLU before it follows no batch norm" if not norms else norms[0].problem or self.blocked(norms[0].node, norms[0])
        chain.norms |= {item.node: ("none", None) for item in usable}
        chain.positive.add(node)
        return None

    def _beyond(self, node: Any, chain: Chains, depth: int) -> None:
        """What a norm is given by way of concatenations, sums and poolings, as in dense networks: other norms, and pools."""
        if not isinstance(node, fx.Node) or depth > 16:
            return
        saver = self.savers.get(node)
        if saver is not None and saver.kind in ("max_pool", "avg_pool"):
            if (saver.problem or self.blocked(node, saver)) is None:
                chain.pools.add(node)
            self._beyond(saver.x, chain, depth + 1)
        elif saver is not None and fused_name(saver) is not None and (saver.problem or self.blocked(node, saver)) is None:
            self._activation(node, saver, str(fused_name(saver)), chain, depth + 1)
        elif saver is None and (is_addition(node) or node.target in (torch.cat, torch.concat)):
            for other in node.all_input_nodes:
                self._beyond(other, chain, depth + 1)

    def _is_through(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.gm.get_submodule(str(node.target)), _THROUGH_MODULES)
        if node.op == "call_method":
            return node.target in _THROUGH_METHODS
        return node.op == "call_function" and node.target in _THROUGH_FUNCTIONS

    @staticmethod
    def _no_chain(node: Any) -> str:
        name = getattr(node, "op", "")
        if name == "placeholder":
            return "its input is that of the model or module, not of a norm"
        what = node.target if node.op in ("call_module", "call_method") else getattr(node.target, "__name__", node.target)
        return f"its input comes from {what!s}, not from a batch norm (and ReLU)"


def fused_name(saver: Saver) -> str | None:
    """The activation that a norm can be fused with, if a saver is one."""
    if saver.kind == "masked":
        if saver.facts["name"] == "hardtanh":
            return "relu6" if (saver.facts["low"], saver.facts["high"]) == (0.0, 6.0) else None
        return _FUSED.get(saver.facts["name"])
    return _FUSED.get(saver.facts["name"]) if saver.kind == "function" else None


def is_addition(node: Any) -> bool:
    """Whether a node adds two tensors."""
    if not isinstance(node, fx.Node):
        return False
    return (node.op == "call_function" and node.target in _ADDITIONS) or (node.op == "call_method" and node.target in ("add", "add_"))


def terms_of(node: fx.Node) -> list[fx.Node]:
    """What a sum consists of, through nested additions."""
    found: list[fx.Node] = []
    for term in node.all_input_nodes:
        found += terms_of(term) if is_addition(term) else [term]
    return found
