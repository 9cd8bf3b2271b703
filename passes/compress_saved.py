"""Keeps few-bit codes, bits and indices for backward in place of the float tensors that torch would keep.

A node that keeps something becomes an operator that computes the same to the bit and keeps a code. The code of a tensor is made once,

    packed, stats = quantize(x, ...)                       whoever keeps x next takes the same code
    y = coded_convolution(x, packed, stats, scheme, w, ...)

or is made by the operator that makes the tensor: blpa_norm (batch norm, ReLU and BLPA's code in one), positive_relu, coded_softmax.
What follows from something kept is not kept: a ReLU's mask from its output's code, a layer norm's output from its input's code.

Left alone: a tensor that stays alive for another reason, and nodes that cannot be rewritten; both with the reason.

Sources: Chakrabarti & Moseley 2019 (BLPA); Chen et al. 2021 (ActNN); Liu et al. 2022 (GACT).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from .base import Change, GraphPass, Skip
from .graph import Recorder, value
from .saving.chains import ChainFinder, Chains
from .saving.emit import Emitter
from .saving.liveness import Alive, is_overwritten_elsewhere
from .saving.match import match
from .saving.places import site_of
from .saving.saver import Saver
from .specs_saved import BitsSpec, BlpaSpec, SavedSpec, Spec

_CONTRACTIONS = ("conv", "linear", "swat")


class CompressSaved(GraphPass):
    """Rewrites what the nodes of one graph keep.

    Args:
        path: of the graph's module, from the model's root.
        blpa: what to do with the chains that end in a contraction, by the weight's site. sites: site of each parameter, by name.
        saved: what to do with other nodes, by ``site_of``. fuel: at most this many nodes are rewritten; what it holds is counted down.
        reference: use no native kernels.
    """

    def __init__(
        self,
        path: str,
        blpa: Mapping[str, BlpaSpec],
        saved: Mapping[str, SavedSpec],
        sites: Mapping[str, str],
        fuel: list[int] | None = None,
        reference: bool = False,
    ) -> None:
        self.path, self.blpa, self.saved, self.sites, self.fuel, self.reference = path, blpa, saved, sites, fuel, reference

    def rewrite(self, gm: fx.GraphModule) -> tuple[Change | Skip, ...]:
        return _Rewriter(gm, self).run()


class _Rewriter:
    def __init__(self, gm: fx.GraphModule, settings: CompressSaved) -> None:
        self.gm, self.settings, self.path = gm, settings, settings.path
        self.make = Recorder(gm.graph)
        self.order = {node: index for index, node in enumerate(gm.graph.nodes)}
        found = ((node, match(gm, node)) for node in gm.graph.nodes)
        self.savers = {node: saver for node, saver in found if saver is not None and _learns(node)}
        self.outcome: list[Change | Skip] = []

    def run(self) -> tuple[Change | Skip, ...]:
        chains = self._chains()
        fused = {act for _, act in chains.norms.values() if act is not None}
        planned = self._planned(chains, fused)
        emitter = Emitter(self.gm, self.make, chains, self._settled(planned, fused), self.settings.reference)
        for node in list(self.gm.graph.nodes):
            if node in planned and not node._erased and self._has_fuel(planned[node].site or node.name):
                self._rewrite(emitter, node, planned[node])
        return tuple(self.outcome)

    # What is to be rewritten

    def _chains(self) -> Chains:
        if not self.settings.blpa:
            return Chains()
        finder = ChainFinder(self.gm, self.savers, self._blocked)
        for node, saver in self.savers.items():
            if saver.kind not in _CONTRACTIONS:
                continue
            spec = self._blpa_spec(saver)
            if spec is None:
                continue
            reason = saver.problem or finder.follow(saver, spec.bits)
            if reason is not None and site_of(node, self.path) not in self.settings.saved:
                self.outcome.append(Skip(site=spec.site, reason=f"BLPA: {reason}", graph=self.path))
        return finder.found

    def _blocked(self, node: fx.Node, saver: Saver) -> str | None:
        if saver.in_place and is_overwritten_elsewhere(node, saver.x, self.order):
            return f"{site_of(node, self.path) or node.name} overwrites a tensor that is read again under another name"
        return None

    def _blpa_spec(self, saver: Saver) -> BlpaSpec | None:
        weight = saver.facts["weight"]
        target = weight if isinstance(weight, str) else _parameter_behind(weight)
        if target is None:
            return None
        name = f"{self.path}.{target}" if self.path else target
        return self.settings.blpa.get(self.settings.sites.get(name, name))

    def _planned(self, chains: Chains, fused: set[fx.Node]) -> dict[fx.Node, Spec]:
        planned: dict[fx.Node, Spec] = {}
        for node, saver in self.savers.items():
            site = site_of(node, self.path)
            if node in chains.bits or node in fused:
                planned[node] = BlpaSpec(site=site, bits=chains.bits.get(node, 4))
                continue
            spec = self.settings.saved.get(site) or self._bits_spec(saver, site)
            if spec is None:
                continue
            reason = saver.problem or self._blocked(node, saver)
            if reason is None:
                planned[node] = spec
            else:
                self.outcome.append(Skip(site=site or node.name, reason=f"{saver.kind}: {reason}", graph=self.path))
        return planned

    def _bits_spec(self, saver: Saver, site: str) -> BitsSpec | None:
        """The fewest bits of a ReLU or a max pooling that SWAT's activations come from, which are exact."""
        return BitsSpec(site=site) if saver.kind in ("masked", "max_pool") and self._is_kept_sparse(saver.node) else None

    def _is_kept_sparse(self, node: fx.Node) -> bool:
        """Whether SWAT keeps a node's output, as it is or pooled."""
        followers = [self.savers[user] for user in node.users if user in self.savers]
        return any(
            other.facts["packed"] if other.kind == "swat" else other.kind == "max_pool" and self._is_kept_sparse(other.node)
            for other in followers
        )

    def _settled(self, planned: dict[fx.Node, Spec], fused: set[fx.Node]) -> Alive:
        """Takes from the plan what would free nothing, until nothing more goes: each node left alone may keep other tensors alive."""
        while True:
            alive = Alive(self.gm, self.path == "", self.savers, planned)
            idle = {}
            for node in planned:
                reason = self._frees_nothing(self.savers[node], alive) if node not in fused else None
                if reason is not None:
                    idle[node] = reason
            if not idle:
                return alive
            for node, reason in idle.items():
                site = site_of(node, self.path) or node.name
                self.outcome.append(Skip(site=site, reason=f"{self.savers[node].kind}: {reason}", graph=self.path))
                del planned[node]

    def _frees_nothing(self, saver: Saver, alive: Alive) -> str | None:
        if saver.kind in ("conv", "linear", "layer_norm", "group_norm", "batch_norm"):
            return alive.reason(saver.x)
        if saver.kind in ("masked", "softmax") or saver.facts.get("name") in ("sigmoid", "tanh", "exp", "sqrt", "rsqrt"):
            return alive.reason(saver.node)
        if saver.kind == "function":
            return alive.reason(saver.x)
        if saver.kind in ("mul", "matmul"):
            first, second = alive.reason(saver.x), alive.reason(saver.second)
            needs_first, needs_second = value(saver.second).requires_grad, value(saver.x).requires_grad
            if (first is not None or not needs_first) and (second is not None or not needs_second):
                return first or second or "nothing that learns depends on it"
        return None

    # Nodes

    def _rewrite(self, emitter: Emitter, node: fx.Node, spec: Spec) -> None:
        self.make.added = []
        name = node.name
        what = emitter.emit(node, spec)
        if what is None:
            return
        made, kind, kept = what
        self.outcome.append(
            Change(
                site=spec.site or name,
                graph=self.path,
                node=made.name,
                what=f"{kind}: {kept}",
                why=_reason(spec),
                added=self.make.take(),
                removed=tuple(emitter.removed),
                rewired=tuple(emitter.rewired),
            )
        )

    def _has_fuel(self, site: str) -> bool:
        fuel = self.settings.fuel
        if fuel is None:
            return True
        if fuel[0] == 0:
            self.outcome.append(Skip(site=site, reason="no fuel is left", graph=self.path))
            return False
        fuel[0] -= 1
        return True


def _reason(spec: Spec) -> str:
    if isinstance(spec, BitsSpec):
        return "SWAT keeps its output sparse"
    return f"{'BLPA' if isinstance(spec, BlpaSpec) else 'SavedActivations'} selects it"


def _learns(node: fx.Node) -> bool:
    """Whether a gradient is recorded for a node; where that is not known, yes."""
    found = value(node)
    return found.requires_grad if isinstance(found, torch.Tensor) else True


def _parameter_behind(node: Any) -> str | None:
    while isinstance(node, fx.Node):
        if node.op == "get_attr":
            return str(node.target)
        if not node.args:
            return None
        node = node.args[0]
    return None
