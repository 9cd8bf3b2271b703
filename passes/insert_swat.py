"""SWAT in the graph: sparse weights forward and for grad-input, sparse activations for grad-weight.

For a weight w and its activation x the pass turns  out = conv(x, w)  into

    tau    = refresh_threshold(w, ...)       selected anew every `period` training forwards, a buffer in between
    w_hat  = sparsify(w, tau)                straight-through: the dense weight learns
    tau_a  = refresh_threshold(x, ...)
    a_hat  = pack_sparse(x, tau_a)           where its elements stand and their values; only where a gradient is wanted
    out    = swat_convolution(x, a_hat, w_hat, ..., w, tau)   saves a_hat, and of w_hat what it follows from, nothing else

Source: Raihan & Aamodt, NeurIPS 2020, arXiv 2001.01969, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from .base import Change, GraphPass, Skip
from .contractions import Operands, find_contractions
from .graph import value
from .rewrite_swat import SwatRewriter
from .specs import SwatSpec


class InsertSwat(GraphPass):
    """Rewrites the contractions of one graph with the weights that ``specs`` names.

    Args:
        path: of the graph's module, from the model's root.
        specs: what to do, by site.
        sites: site of each parameter, by the parameter's qualified name (its aliases included).
        slots: number of a site's first call in this graph among all its calls, by site; 0 where it is not given.
        fuel: at most this many contractions are rewritten; what it holds is counted down.
    """

    def __init__(
        self,
        path: str,
        specs: Mapping[str, SwatSpec],
        sites: Mapping[str, str],
        slots: Mapping[str, int] | None = None,
        fuel: list[int] | None = None,
    ) -> None:
        self.path = path
        self.specs = specs
        self.sites = sites
        self.slots = slots or {}
        self.fuel = fuel

    def rewrite(self, gm: fx.GraphModule) -> tuple[Change | Skip, ...]:
        graph = SwatRewriter(gm, self.path, self.specs)
        matched = [(operands, self._site(operands)) for operands in find_contractions(gm)]
        outcome: list[Change | Skip] = []
        counts = graph.calls_made(self.slots)
        recurrent: dict[fx.Node, list[tuple[Operands, SwatSpec]]] = {}
        for operands, site in matched:
            if site is None:
                continue
            index = counts[site] = counts.get(site, -1) + 1
            reason = operands.problem or unsupported(operands, self.specs[site])
            if reason is not None:
                outcome.append(Skip(site=site, reason=reason, graph=self.path))
            elif operands.operator == "recurrent":
                recurrent.setdefault(operands.node, []).append((operands, self.specs[site]))
            elif self._has_fuel(site, outcome):
                outcome.append(graph.contraction(operands, self.specs[site], index))
        for node, weights in recurrent.items():
            if self._has_fuel(weights[0][1].site, outcome):
                outcome += graph.recurrent(node, weights, self.slots)
        return tuple(outcome)

    def _site(self, operands: Operands) -> str | None:
        target = operands.parameter
        site = self.sites.get(f"{self.path}.{target}" if self.path else target)
        return site if site in self.specs else None

    def _has_fuel(self, site: str, outcome: list[Change | Skip]) -> bool:
        if self.fuel is None:
            return True
        if self.fuel[0] == 0:
            outcome.append(Skip(site=site, reason="no fuel is left", graph=self.path))
            return False
        self.fuel[0] -= 1
        return True


def unsupported(operands: Operands, spec: SwatSpec) -> str | None:
    """Why a contraction cannot be rewritten under a spec; None if it can."""
    if spec.granularity != "tensor" and spec.sparsifies_activation and not isinstance(value(operands.activation), torch.Tensor):
        return f"granularity {spec.granularity!r} needs the activation's rank; pass example inputs"
    if operands.operator == "recurrent" and spec.sparsifies_activation and spec.granularity != "tensor":
        return "a recurrent layer sparsifies its activations over the whole tensor; use granularity 'tensor'"
    if operands.operator == "einsum" and spec.sparsifies_activation and "sample" in spec.granularity:
        equation = operands.arguments["equation"]
        first, _, weight_and_out = equation.partition(",")
        weight, _, out = weight_and_out.partition("->")
        if first[0] in weight and first[0] not in out:
            return f"its activation has no dimension of samples: dimension 0 is summed over ({equation})"
    if operands.operator in ("conv", "conv_transpose"):
        known = value(operands.activation)
        if not isinstance(known, torch.Tensor):
            return None
        arguments = operands.arguments
        if any(isinstance(arguments.get(name), fx.Node) for name in ("stride", "padding", "dilation", "groups", "output_padding")):
            return "its stride, padding, dilation or groups are computed in forward"
    return None
