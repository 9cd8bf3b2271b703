"""What InsertSwat does to a graph: sparse operands, and the contractions that take them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from . import meta
from .base import Change
from .contractions import Operands, path_of
from .graph import Recorder, first_real_node, value
from .ops import OPS
from .ops.codes.positions import DENSEST_GAPS
from .ops.codes.scheme import EXACT, of_sparse
from .ops.pack_sparse import NEAREST
from .padding import split_padding
from .recurrent import swat_recurrent
from .sites import each_axis
from .specs import SwatSpec
from .state import CLOCK_TARGET, state_target
from .swat_thresholds import threshold_dims

_CONTRACTIONS = (OPS.swat_convolution.default, OPS.swat_linear.default, OPS.swat_einsum.default)


class SwatRewriter:
    """Edits one graph; a weight that is read several times, and an activation that several sites sparsify alike, is sparsified once."""

    def __init__(self, gm: fx.GraphModule, path: str, specs: Mapping[str, SwatSpec]) -> None:
        self.gm = gm
        self.path = path
        self.specs = specs
        self.make = Recorder(gm.graph)
        self._weights: dict[tuple[str, str], fx.Node] = {}
        self._packed: dict[Any, tuple[Any, ...]] = {}
        self._replaced: dict[fx.Node, fx.Node] = {}
        self._clock: fx.Node | None = None
        self._wanted: fx.Node | None = None

    def calls_made(self, slots: Mapping[str, int]) -> dict[str, int]:
        """The number of each site's latest call, after those that an earlier run has rewritten, whose sparse weights are used again."""
        counts = {site: slot - 1 for site, slot in slots.items()}
        for node in self.gm.graph.nodes:
            facts = meta.read(node)
            if node.target in _CONTRACTIONS and facts.get("role") == "contraction":
                counts[facts["site"]] = counts.get(facts["site"], -1) + 1
            elif node.target is OPS.sparsify.default and facts.get("role") == "sparse_weight":
                self._weights["sparse", path_of(node.args[0])] = node
        return counts

    def contraction(self, operands: Operands, spec: SwatSpec, index: int) -> Change:
        node, operands = operands.node, self._up_to_date(operands)
        weight, weight_name = self._dense_weight(operands)
        with self.make.before(node):
            sparse = self._sparse_weight(weight, weight_name, spec)
            w_hat = self._through(operands.chain, weight, sparse)
            follows = self._followed(operands, sparse, spec)
            out = {
                "conv": self._convolution,
                "conv_transpose": self._convolution,
                "linear": self._linear,
                "bilinear": self._bilinear,
                "einsum": self._einsum,
            }[operands.operator](operands, w_hat, follows, spec, index)
        node.replace_all_uses_with(out)
        self._replaced[node] = out
        users = tuple(user.name for user in out.users if user.name not in self.make.added)
        out.meta["val"] = value(node)
        if out.target not in _CONTRACTIONS:
            meta.write(out, site=spec.site, role="output")
        self.gm.graph.erase_node(node)
        removed = [node.name, *self._unused(operands)]
        return Change(
            site=spec.site,
            graph=self.path,
            node=out.name,
            what=f"{operands.operator} with {_described(spec)}",
            why=f"SWAT selects {spec.site}",
            added=self.make.take(),
            removed=tuple(removed),
            rewired=users,
        )

    def _up_to_date(self, operands: Operands) -> Operands:
        """The operands with nodes that were rewritten since they were matched replaced by what they became."""

        def current(arguments: Any) -> Any:
            return fx.node.map_arg(arguments, lambda node: self._replaced.get(node, node))

        return replace(operands, activation=current(operands.activation), arguments=current(operands.arguments))

    def _unused(self, operands: Operands) -> list[str]:
        """Removes views of the dense weight that nothing reads any more."""
        removed = []
        for view in reversed(operands.chain):
            if not view.users:
                removed.append(view.name)
                self.gm.graph.erase_node(view)
        return removed

    # The sparse operands

    def _dense_weight(self, operands: Operands) -> tuple[fx.Node, str]:
        if isinstance(operands.weight, fx.Node):
            return operands.weight, operands.parameter
        known = self._weights.get(("dense", operands.weight))
        if known is None:
            with self.make.before(operands.node):
                known = self._weights["dense", operands.weight] = self.make.attribute(operands.weight)
        return known, operands.weight

    def _sparse_weight(self, weight: fx.Node, name: str, spec: SwatSpec) -> fx.Node:
        if not spec.sparsifies_weight:
            return weight
        known = self._weights.get(("sparse", name))
        if known is not None:
            return known
        args = (list(spec.reduce_dims), spec.groups)
        threshold = self._threshold(weight, spec, "weight", "", spec.weight_period, *args, [], True)
        w_hat = self.make.function(OPS.sparsify.default, weight, threshold, *args, True)
        meta.write(threshold, site=spec.site, role="weight_threshold")
        meta.write(w_hat, site=spec.site, role="sparse_weight")
        self._weights["sparse", name] = w_hat
        return w_hat

    def _kept(self, x: Any, spec: SwatSpec, index: int, dims: Sequence[int], padded: Any = None) -> tuple[Any, ...]:
        """What grad-weight sees in place of x, or of what padding made of it, and how to read it: x itself if activations stay dense."""
        given = x if padded is None else padded
        if not spec.sparsifies_activation:
            return given, EXACT, None, None
        sharers = (x, given, spec.activation_density, spec.activation_period, tuple(dims), spec.site if spec.follows_momentum else "")
        made = self._packed.get(sharers)
        if made is None:
            made = self._packed[sharers] = self._pack(x, given, spec, index, dims)
        where, scheme, values, stats, kept = made
        counts = self.make.attribute(state_target(spec.site, f"activation_counts_{index}"))
        counted = self.make.function(
            OPS.count_kept.default, given, kept, counts, self._now(), spec.activation_period, self._gradient_wanted()
        )
        meta.write(counted, site=spec.site, role="activation_counter")
        return where, scheme, values, stats

    def _pack(self, x: Any, given: Any, spec: SwatSpec, index: int, dims: Sequence[int]) -> tuple[Any, ...]:
        """Where what is kept of an activation stands, in which scheme, the values there, their statistics, and their number."""
        wanted, density = self._gradient_wanted(), spec.activation_density
        threshold = self._threshold(x, spec, "activation", f"_{index}", spec.activation_period, [], 1, list(dims), wanted)
        scheme = of_sparse("gaps" if density < DENSEST_GAPS else "bitmap")
        detached = self.make.method("detach", given)
        a_hat = self.make.function(OPS.pack_sparse.default, detached, threshold, wanted, self._now(), scheme, NEAREST, density)
        meta.write(threshold, site=spec.site, role="activation_threshold")
        meta.write(a_hat, site=spec.site, role="sparse_activation")
        where, values, stats, kept = (self.make.function(operator.getitem, a_hat, place) for place in range(4))
        return where, scheme, values, stats, kept

    @staticmethod
    def _followed(operands: Operands, w_hat: fx.Node, spec: SwatSpec) -> tuple[Any, ...]:
        """What the sparse weight of a contraction follows from; nothing if it is dense, or seen through views."""
        if operands.chain or not spec.sparsifies_weight:
            return None, None, [], 1
        return tuple(w_hat.args[:4])

    def _threshold(self, x: Any, spec: SwatSpec, what: str, suffix: str, period: int, dims: Any, groups: int, per: Any, on: Any) -> fx.Node:
        stored = self.make.attribute(state_target(spec.site, f"{what}_threshold{suffix}"))
        density = self.make.attribute(state_target(spec.site, f"{what}_density"))
        detached = self.make.method("detach", x)
        label = f"{what}:{spec.site}"
        return self.make.function(
            OPS.refresh_threshold.default, detached, stored, self._now(), density, period, dims, groups, per, on, label
        )

    def _now(self) -> fx.Node:
        if self._clock is None:
            with self.make.before(first_real_node(self.gm.graph)):
                self._clock = self.make.attribute(CLOCK_TARGET)
        return self._clock

    def _gradient_wanted(self) -> fx.Node:
        if self._wanted is None:
            with self.make.before(first_real_node(self.gm.graph)):
                self._wanted = self.make.function(torch.is_grad_enabled)
        return self._wanted

    def _through(self, chain: Sequence[fx.Node], weight: fx.Node, w_hat: fx.Node) -> fx.Node:
        """The views of a weight, made anew on its sparse form."""
        made = {weight: w_hat}
        current = w_hat
        for view in chain:
            current = self.gm.graph.node_copy(view, lambda node: made.get(node, node))
            self.make.added.append(current.name)
            made[view] = current
        return current

    # The contractions

    def _convolution(self, operands: Operands, w_hat: fx.Node, follows: tuple[Any, ...], spec: SwatSpec, index: int) -> fx.Node:
        transposed = operands.operator == "conv_transpose"
        geometry = self._geometry(operands)
        axes, x = geometry["axes"], operands.activation
        known = value(x)
        unbatched = isinstance(known, torch.Tensor) and known.dim() == axes + 1
        if unbatched:
            x = self.make.method("unsqueeze", x, 0)
        dims = threshold_dims(operands.operator, axes + 2, spec.granularity)
        padded = self.make.function(F.pad, x, geometry["pad"][0], mode=geometry["pad"][1]) if geometry["pad"] is not None else None
        a_hat, *kept = self._kept(x, spec, index, dims, padded)
        out = self.make.function(
            OPS.swat_convolution.default, x if padded is None else padded, a_hat, w_hat, geometry["bias"], geometry["stride"],
            geometry["padding"], geometry["dilation"], transposed, geometry["output_padding"], geometry["groups"], *kept, *follows, "",
        )  # fmt: skip
        meta.write(out, site=spec.site, role="contraction")
        return self.make.method("squeeze", out, 0) if unbatched else out

    def _geometry(self, operands: Operands) -> dict[str, Any]:
        if isinstance(operands.weight, str):
            return self._module_geometry(operands)
        arguments = operands.arguments
        weight: Any = value(arguments["weight"])
        axes = weight.dim() - 2
        kernel = tuple(weight.shape[2:])
        return split_padding(
            {
                "axes": axes,
                "bias": arguments["bias"],
                "stride": list(each_axis(arguments["stride"], axes)),
                "padding": arguments["padding"],
                "dilation": list(each_axis(arguments["dilation"], axes)),
                "output_padding": list(each_axis(arguments.get("output_padding", 0), axes)),
                "groups": arguments["groups"],
                "pad": None,
            },
            kernel,
        )

    def _module_geometry(self, operands: Operands) -> dict[str, Any]:
        module: Any = self.gm.get_submodule(str(operands.node.target))
        axes = len(module.kernel_size)
        geometry = {
            "axes": axes,
            "bias": self._bias(operands, module),
            "stride": list(module.stride),
            "padding": module.padding,
            "dilation": list(module.dilation),
            "output_padding": list(module.output_padding),
            "groups": module.groups,
            "pad": None,
        }
        if module.padding_mode != "zeros":
            amounts = [int(amount) for amount in module._reversed_padding_repeated_twice]
            return {**geometry, "padding": [0] * axes, "pad": (amounts, module.padding_mode)}
        return split_padding(geometry, tuple(module.kernel_size))

    def _bias(self, operands: Operands, module: nn.Module) -> fx.Node | None:
        if getattr(module, "bias", None) is None:
            return None
        target = f"{operands.node.target}.bias"
        known = self._weights.get(("bias", target))
        if known is None:
            known = self._weights["bias", target] = self.make.attribute(target)
        return known

    def _linear(self, operands: Operands, w_hat: fx.Node, follows: tuple[Any, ...], spec: SwatSpec, index: int) -> fx.Node:
        x = operands.activation
        if isinstance(operands.weight, str):
            bias: Any = self._bias(operands, self.gm.get_submodule(str(operands.node.target)))
        else:
            bias = operands.arguments["bias"]
        rank = value(x).dim() if isinstance(value(x), torch.Tensor) else 2
        dims = threshold_dims("linear", rank, spec.granularity)
        a_hat, *kept = self._kept(x, spec, index, dims)
        out = self.make.function(OPS.swat_linear.default, x, a_hat, w_hat, bias, *kept, *follows, "")
        meta.write(out, site=spec.site, role="contraction")
        return out

    def _bilinear(self, operands: Operands, w_hat: fx.Node, follows: tuple[Any, ...], spec: SwatSpec, index: int) -> fx.Node:
        """x1 W x2 as a SWAT contraction of x1 with W, whose result meets x2 in a product of activations."""
        if isinstance(operands.weight, str):
            second = operands.arguments["second"]
            bias: Any = self._bias(operands, self.gm.get_submodule(str(operands.node.target)))
        else:
            second, bias = operands.arguments["input2"], operands.arguments["bias"]
        x = operands.activation
        rank = value(x).dim() if isinstance(value(x), torch.Tensor) else 2
        a_hat, *kept = self._kept(x, spec, index, threshold_dims("linear", rank, spec.granularity))
        batch = "abcdefgh"[: rank - 1]
        joint = self.make.function(OPS.swat_einsum.default, x, a_hat, w_hat, f"{batch}i,oij->{batch}oj", *kept, *follows)
        meta.write(joint, site=spec.site, role="contraction")
        product = self.make.function(torch.mul, joint, self.make.method("unsqueeze", second, -2))
        out = self.make.method("sum", product, -1)
        return out if bias is None else self.make.function(torch.add, out, bias)

    def _einsum(self, operands: Operands, w_hat: fx.Node, follows: tuple[Any, ...], spec: SwatSpec, index: int) -> fx.Node:
        arguments, x = operands.arguments, operands.activation
        equation = arguments["equation"]
        dims = threshold_dims("einsum", len(equation.partition(",")[0]), spec.granularity, equation)
        a_hat, *kept = self._kept(x, spec, index, dims)
        out = self.make.function(OPS.swat_einsum.default, x, a_hat, w_hat, equation, *kept, *follows)
        meta.write(out, site=spec.site, role="contraction")
        if "alpha" not in arguments:
            return out
        if arguments["alpha"] != 1:
            out = self.make.function(torch.mul, out, arguments["alpha"])
        added = arguments["input"]
        if isinstance(arguments["beta"], (int, float)) and arguments["beta"] == 0:
            return out  # torch does not read the input then, whatever it holds
        if arguments["beta"] != 1:
            added = self.make.function(torch.mul, added, arguments["beta"])
        return self.make.function(torch.add, added, out)

    def recurrent(self, node: fx.Node, weights: list[tuple[Operands, SwatSpec]], slots: Mapping[str, int]) -> list[Change]:
        given: Any = node.args[2]
        sparse, settings = list(given), [None] * len(given)
        with self.make.before(node):
            for operands, spec in weights:
                index = operands.arguments["index"]
                assert isinstance(operands.weight, fx.Node)
                sparse[index] = self._sparse_weight(operands.weight, operands.parameter, spec)
                settings[index] = self._recurrent_activation(spec, slots.get(spec.site, 0))
            wanted = self._gradient_wanted() if any(settings) else False
            args = (*node.args[:2], sparse, *node.args[3:], settings, self._now(), wanted)
            out = self.make.function(swat_recurrent, *args)
        node.replace_all_uses_with(out)
        users = tuple(user.name for user in out.users)
        out.meta["val"] = value(node)
        self.gm.graph.erase_node(node)
        first = weights[0][1]
        meta.write(out, site=first.site, role="contraction", sites=[spec.site for _, spec in weights])
        changes = [
            Change(
                site=spec.site, graph=self.path, node=out.name, what=f"recurrent with {_described(spec)}", why=f"SWAT selects {spec.site}"
            )
            for _, spec in weights[1:]
        ]
        head = Change(
            site=first.site,
            graph=self.path,
            node=out.name,
            what=f"recurrent with {_described(first)}",
            why=f"SWAT selects {first.site}",
            added=self.make.take(),
            removed=(node.name,),
            rewired=users,
        )
        return [head, *changes]

    def _recurrent_activation(self, spec: SwatSpec, slot: int) -> Any:
        if not spec.sparsifies_activation:
            return None
        names = (f"activation_threshold_{slot}", "activation_density", f"activation_counts_{slot}")
        stored = [self.make.attribute(state_target(spec.site, name)) for name in names]
        return (*stored, spec.activation_period, f"activation:{spec.site}", spec.activation_density)


def _described(spec: SwatSpec) -> str:
    weight = f"{spec.structure} weights at density {spec.weight_density:.4g}" if spec.sparsifies_weight else "dense weights"
    activation = (
        f"activations at {spec.activation_density:.4g} by {spec.granularity}" if spec.sparsifies_activation else "dense activations"
    )
    return f"{weight}, {activation}"
