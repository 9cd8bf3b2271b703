"""Masks in the graph: wherever it reads a parameter, a graph reads the parameter times its mask.

    weight                       w_hat = apply_mask(weight, mask, growing, ...)
    out = conv(x, weight)   ->   out = conv(x, w_hat)

A module that holds its weight becomes the function that it calls. Everything behind the masked weight stays as it was, so that
other passes find the same contractions; the weights that they see are masked.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from . import meta
from .base import Change, GraphPass, Skip
from .contractions import Operands, contractions_of_node, find_contractions, is_masked
from .graph import Recorder, value
from .masks.apply import apply_mask
from .masks.specs import MaskSpec
from .recurrent import recurrent
from .state import regime_target, state_target

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


_MAY_WRITE = 6
_NEW_GRADIENT = {
    *_CONVOLUTIONS.values(),
    *_TRANSPOSED.values(),
    *(F.linear, F.bilinear, torch.bilinear, torch.matmul, torch.mm, torch.bmm, torch.mv, operator.matmul, recurrent),
    F.embedding,
    *(torch.addmm, torch.baddbmm, torch.einsum, torch.functional.einsum),
    *("matmul", "mm", "bmm", "mv", "__matmul__", "addmm", "baddbmm"),
}


class InsertMasks(GraphPass):
    """Masks the weights that ``specs`` names, in one graph.

    Args:
        path: of the graph's module, from the model's root.
        specs: what to do, by site.
        sites: site of each parameter, by the parameter's qualified name (its aliases included).
        fuel: at most this many weights are masked; what it holds is counted down.
    """

    def __init__(self, path: str, specs: Mapping[str, MaskSpec], sites: Mapping[str, str], fuel: list[int] | None = None) -> None:
        self.path = path
        self.specs = specs
        self.sites = sites
        self.fuel = fuel

    def rewrite(self, gm: fx.GraphModule) -> tuple[Change | Skip, ...]:
        outcome: list[Change | Skip] = []
        found: dict[str, _Reads] = {}
        for operands in find_contractions(gm):
            site = self.sites.get(f"{self.path}.{operands.parameter}" if self.path else operands.parameter)
            if site is None or site not in self.specs or (isinstance(operands.weight, fx.Node) and is_masked(operands.weight)):
                continue
            if operands.problem is not None:
                outcome.append(Skip(site=site, reason=operands.problem, graph=self.path))
            else:
                found.setdefault(site, _Reads(self.specs[site], [])).contractions.append(operands)
        graph = _Rewriter(gm, self.path, self._aliases())
        for site, reads in found.items():
            if self.fuel is not None and self.fuel[0] == 0:
                outcome.append(Skip(site=site, reason="no fuel is left", graph=self.path))
                continue
            if self.fuel is not None:
                self.fuel[0] -= 1
            outcome.append(graph.mask(reads.spec, reads.contractions))
        return tuple(outcome)

    def _aliases(self) -> dict[str, str]:
        """The site of each parameter by its path from this graph's module."""
        prefix = f"{self.path}." if self.path else ""
        return {name.removeprefix(prefix): site for name, site in self.sites.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class _Reads:
    spec: MaskSpec
    contractions: list[Operands]


class _Rewriter:
    """Edits one graph; a weight that is read several times is masked once."""

    def __init__(self, gm: fx.GraphModule, path: str, sites: Mapping[str, str]) -> None:
        self.gm = gm
        self.path = path
        self.sites = sites
        self.make = Recorder(gm.graph)

    def mask(self, spec: MaskSpec, contractions: Sequence[Operands]) -> Change:
        reads = [node for node in self.gm.graph.nodes if node.op == "get_attr" and self.sites.get(str(node.target)) == spec.site]
        tables = [node for node in self.gm.graph.nodes if self._is_table(node, spec.site)]
        masked = self._masked(spec, [*reads, *tables], contractions)
        rewired: set[str] = set()
        for read in reads:
            others = [user for user in read.users if user is not masked and user.name not in self.make.added]
            rewired |= {user.name for user in others}
            for user in others:
                user.replace_input_with(read, masked)
        removed = []
        for node in (*(operands.node for operands in contractions if isinstance(operands.weight, str)), *tables):
            out = self._lookup(node, masked) if node in tables else self._as_function(node, masked)
            node.replace_all_uses_with(out)
            rewired |= {user.name for user in out.users}
            removed.append(node.name)
            self.gm.graph.erase_node(node)
        for read in reads:
            if not read.users:
                removed.append(read.name)
                self.gm.graph.erase_node(read)
        masked.update_arg(_MAY_WRITE, all(_makes_new_gradient(user) for user in masked.users))
        return Change(
            site=spec.site,
            graph=self.path,
            node=masked.name,
            what=f"masked weight at density {spec.weight_density:.4g}, by {spec.structure.name}",
            why=f"{spec.technique} selects {spec.site}",
            added=self.make.take(),
            removed=tuple(removed),
            rewired=tuple(rewired - set(removed)),
        )

    def _masked(self, spec: MaskSpec, reads: list[fx.Node], contractions: Sequence[Operands]) -> fx.Node:
        """The masked weight, in front of everything that reads it."""
        readers = {*reads, *(operands.node for operands in contractions)}
        first = next(node for node in self.gm.graph.nodes if node in readers)
        if first.op == "get_attr":
            weight, place = first, first.next
        else:
            path = next((operands.parameter for operands in contractions if operands.node is first), f"{first.target}.weight")
            with self.make.before(first):
                weight = self.make.attribute(path)
            place = first
            weight.meta["val"] = self._parameter(weight)
        with self.make.before(place):
            mask, trust = (self.make.attribute(state_target(spec.site, name)) for name in ("mask", "trust"))
            growing = self.make.attribute(regime_target(spec.regime, "growing"))
            masked = self.make.function(apply_mask, weight, mask, growing, trust, spec.straight_through, spec.decay, False)
        masked.meta["val"] = value(weight)
        meta.write(masked, site=spec.site, role="masked_weight")
        return masked

    def _parameter(self, node: fx.Node) -> Any:
        owner, _, name = str(node.target).rpartition(".")
        return getattr(self.gm.get_submodule(owner), name)

    def _is_table(self, node: fx.Node, site: str) -> bool:
        """Whether a node looks rows of the weight up: an embedding that is tied to a contraction."""
        if node.op != "call_module" or self.sites.get(f"{node.target}.weight") != site:
            return False
        module: Any = self.gm.get_submodule(str(node.target))
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        return type(module) is nn.Embedding and module.max_norm is None and not module.sparse and not any(hooks)

    def _lookup(self, node: fx.Node, weight: fx.Node) -> fx.Node:
        module: Any = self.gm.get_submodule(str(node.target))
        x = node.args[0] if node.args else node.kwargs["input"]
        with self.make.before(node):
            out = self.make.function(F.embedding, x, weight, module.padding_idx, None, 2.0, module.scale_grad_by_freq)
        out.meta = {**node.meta}
        return out

    def _as_function(self, node: fx.Node, weight: fx.Node) -> fx.Node:
        """What a module computes, with another weight."""
        [operands] = contractions_of_node(self.gm, node)  # what it reads may have been rewritten since it was found
        module: Any = self.gm.get_submodule(str(node.target))
        with self.make.before(node):
            bias = None if module.bias is None else self.make.attribute(f"{node.target}.bias")
            if bias is not None:
                bias.meta["val"] = module.bias
            x = operands.activation
            if operands.operator == "linear":
                out = self.make.function(F.linear, x, weight, bias)
            elif operands.operator == "bilinear":
                out = self.make.function(F.bilinear, x, operands.arguments["second"], weight, bias)
            else:
                out = self._convolution(module, x, weight, bias, transposed=operands.operator == "conv_transpose")
        out.meta = {**node.meta}
        return out

    def _convolution(self, module: Any, x: Any, weight: fx.Node, bias: fx.Node | None, *, transposed: bool) -> fx.Node:
        axes = len(module.kernel_size)
        if transposed:
            given = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
            return self.make.function(_TRANSPOSED[axes], x, weight, bias, *given)
        padding = module.padding
        if module.padding_mode != "zeros":
            before = value(x)
            x = self.make.function(F.pad, x, list(module._reversed_padding_repeated_twice), mode=module.padding_mode)
            if isinstance(before, torch.Tensor):
                x.meta["val"] = _padded(before, module)
            padding = (0,) * axes
        return self.make.function(_CONVOLUTIONS[axes], x, weight, bias, module.stride, padding, module.dilation, module.groups)


def _makes_new_gradient(node: fx.Node) -> bool:
    """Whether a reader's backward pass gives the weight a gradient that nothing else holds."""
    return node.target in _NEW_GRADIENT


def _padded(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    amounts: Any = module._reversed_padding_repeated_twice
    return F.pad(x, list(amounts))
