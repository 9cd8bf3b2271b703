"""How each node is rewritten: the operator that takes its place, and the codes that it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from .. import meta
from ..graph import Recorder, value
from ..ops import OPS
from ..ops.coded_unary import dropout
from ..ops.codes.scheme import EXACT, SPARSE, of_divided, of_norm, of_positive, of_range, of_sparse, parse
from ..specs_saved import BitsSpec, BlpaSpec, Spec
from .chains import Chains
from .edit import Editor
from .functions import attention, update_running
from .liveness import Alive, storage_of
from .match import match
from .saver import Saver, kept_in_full

SCHEME = 4  # of pack_sparse's arguments
SETTLE_EVERY = 24
SHARED_BY = 4  # groups of other codes: values above a threshold differ less
_PLAIN = {of_sparse(kind) for kind in SPARSE}


@dataclass(frozen=True)
class Code:
    """Where the code of a tensor is found in the graph.

    ``normal``: input, mean, 1/sigma, weight and bias of a layer norm that is to be applied to what the code stands for.
    """

    packed: Any
    stats: Any
    scheme: str
    normal: tuple[Any, ...] = (None,) * 5


class Emitter(Editor):
    """Rewrites the nodes of one graph, one after the other in their order.

    Args:
        chains: what BLPA does with which nodes. alive: what stays in memory whatever is done. reference: use no native kernels.
    """

    def __init__(self, gm: fx.GraphModule, make: Recorder, chains: Chains, alive: Alive, reference: bool = False) -> None:
        super().__init__(gm, make, reference)
        self.chains, self.alive = chains, alive
        self.codes: dict[fx.Node, Code] = {}
        self._norms = 0
        self._counted: set[int] = set()

    def emit(self, node: fx.Node, spec: Spec) -> tuple[fx.Node, str, str] | None:
        """Rewrites a node. Returns what took its place, its kind, and what it keeps; None if nothing is to be done."""
        self.removed, self.rewired = [], []
        saver = match(self.gm, node)
        assert saver is not None
        room = self._room(saver, spec)
        with self.make.before(node):
            made = self._emit(node, saver, spec)
        return None if made is None else (made[0], saver.kind, f"{made[1]}{room}")

    def _room(self, saver: Saver, spec: Spec) -> str:
        """What the node keeps at the example's sizes, before and after, as text; what another node keeps already is that one's."""
        tensors = [saver.node] if saver.kind in ("dropout", "max_pool") else kept_in_full(saver)
        new = {storage_of(tensor): value(tensor) for tensor in tensors if self.alive.reason(tensor) is None}
        found = [new[storage] for storage in new if storage is not None and storage not in self._counted]
        self._counted |= {storage for storage in new if storage is not None}
        if not found or not all(isinstance(tensor.numel(), int) for tensor in found):
            return ""
        elements = sum(tensor.numel() for tensor in found)
        before = sum(tensor.numel() * tensor.element_size() for tensor in found) + (8 * elements if saver.kind == "max_pool" else 0)
        is_mask = saver.kind in ("masked", "dropout") and saver.node not in self.chains.positive
        bits = 0 if saver.x in self.codes else 1 if is_mask else 4 if saver.kind == "max_pool" else spec.bits
        return f" ({_bytes(before)} before, about {_bytes(elements * bits // 8)} now)"

    def _emit(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str] | None:
        if saver.kind == "batch_norm":
            if node in self.chains.norms:
                return self._blpa_norm(node, saver, spec, *self.chains.norms[node])
            return self._batch_norm(node, saver, spec)
        if node in self.chains.positive and self._is_read_as_code(node):
            return self._positive_relu(node, saver, spec)
        emit = {
            "conv": self._conv, "linear": self._linear, "matmul": self._product, "mul": self._product, "layer_norm": self._layer_norm,
            "group_norm": self._group_norm, "function": self._function, "masked": self._masked, "dropout": self._dropout,
            "max_pool": self._max_pool, "avg_pool": self._avg_pool, "softmax": self._softmax, "attention": self._attention,
            "swat": self._swat,
        }[saver.kind]  # fmt: skip
        return emit(node, saver, spec)

    # Codes

    def _code(self, x: fx.Node, spec: Spec, *, follow: bool = False, row: int = 0) -> Code:
        """The code of a tensor: one that is there, or a new one; the tensor itself if it stays alive.

        ``follow``: the reader can apply a norm to what a code stands for. ``row``: how many dimensions, the last ones, belong
        together: those of features, or of the pixels of a channel.
        """
        known = self.codes.get(x)
        if known is not None and (follow or known.normal[0] is None):
            return known
        if self.alive.reason(x) is not None:
            return Code(x, x, EXACT)
        if isinstance(spec, BlpaSpec):
            made = self.op(OPS.quantize_positive.default, "code", spec, x, spec.bits, spec.group_size, self.gradient_wanted())
            scheme = of_positive(spec.bits, spec.group_size)
        else:
            clock, bits, size, seed = self.rounding(x, spec)
            size = _within_a_row(x, size, row) if row else size
            made = self.op(OPS.quantize.default, "code", spec, x, clock, bits, size, seed, self.gradient_wanted())
            scheme = of_range(bits, size)
        code = Code(self.item(made, 0), self.item(made, 1), scheme)
        if known is None:
            self.codes[x] = code
        return code

    # Contractions and products

    def _conv(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        facts, code = saver.facts, self._code(saver.x, spec)
        weight, bias = self.attribute(facts["weight"]), self.attribute(facts["bias"])
        geometry = (facts["stride"], facts["padding"], facts["dilation"], facts["transposed"], facts["output_padding"], facts["groups"])
        out = self.op(
            OPS.coded_convolution.default, "contraction", spec, saver.x, code.packed, code.stats, code.scheme, weight, bias, *geometry
        )
        self.replace(node, out)
        return out, f"keeps its input as {code.scheme}"

    def _is_read_as_code(self, node: fx.Node) -> bool:
        """Whether anybody is to keep a code of a node's output, other than SWAT's contractions, which keep their own."""
        found = [match(self.gm, user) for user in node.users]
        return any(saver is not None and saver.kind not in ("swat", "max_pool", "avg_pool") for saver in found) or not any(found)

    def _swat(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str] | None:
        """The values that SWAT keeps, in few bits."""
        pack = saver.facts["pack"]
        if not saver.facts["packed"] or isinstance(spec, BitsSpec):
            return None
        known = self.codes.get(saver.x)
        if known is not None and parse(known.scheme).activation == "relu" and _is_one_threshold(pack.args[1]):
            return self._divided_bins(node, pack, known, spec)
        _, bits, size, seed = self.rounding(node, spec)
        size *= SHARED_BY if isinstance(spec, BlpaSpec) else 1
        scheme = of_sparse(parse(pack.args[SCHEME]).kind, bits, size)
        self.rewired += [pack.name, node.name]
        pack.args = (*pack.args[:SCHEME], scheme, seed, *pack.args[SCHEME + 2 :])
        _set_scheme(node, scheme)
        return node, f"keeps its sparse input's positions, and its values as {of_range(bits, size)}"

    def _divided_bins(self, node: fx.Node, pack: fx.Node, code: Code, spec: Spec) -> tuple[fx.Node, str]:
        """The sparse activation as part of the code that its norm keeps."""
        x, threshold, wanted = pack.args[:3]
        with self.make.before(pack):
            made = self.op(OPS.divide_bins.default, "sparse_activation", spec, x, threshold, code.packed, code.stats, code.scheme, wanted)
            parts = (self.item(made, 0), code.packed, self.item(made, 1), self.item(made, 2))
        for item in list(pack.users):
            self.rewired += [user.name for user in item.users]
            item.replace_all_uses_with(parts[cast(int, item.args[1])])
            self.drop(item)
        self.drop(pack)
        self.rewired = sorted(set(self.rewired) - set(self.removed))
        for contraction in list(parts[0].users):
            _set_scheme(contraction, of_divided(code.scheme))
        return node, f"keeps its sparse input as part of its norm's code, {code.scheme}"

    def _linear(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        code = self._code(saver.x, spec, follow=True, row=1)
        weight, bias = self.attribute(saver.facts["weight"]), self.attribute(saver.facts["bias"])
        args = (saver.x, code.packed, code.stats, code.scheme, *code.normal, weight, bias)
        out = self.op(OPS.coded_linear.default, "contraction", spec, *args)
        self.replace(node, out)
        how = "from the code of its norm's input" if code.normal[0] is not None else f"as {code.scheme}"
        return out, f"keeps its input {how}"

    def _product(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        operands: list[Any] = []
        for x, other in ((saver.x, saver.second), (saver.second, saver.x)):
            code = self._code(x, spec) if value(other).requires_grad else Code(x, x, EXACT)
            operands += [x, code.packed, code.stats, code.scheme]
        target = OPS.coded_matmul.default if saver.kind == "matmul" else OPS.coded_mul.default
        out = self.op(target, "product", spec, *operands)
        self.replace(node, out)
        return out, f"keeps its operands as {operands[3]} and {operands[7]}"

    # Norms

    def _layer_norm(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        facts, code = saver.facts, self._code(saver.x, spec, row=1)
        weight, bias = self.attribute(facts["weight"]), self.attribute(facts["bias"])
        args = (saver.x, code.packed, code.stats, code.scheme, list(facts["shape"]), weight, bias, facts["eps"])
        made = self.op(OPS.coded_layer_norm.default, "norm", spec, *args)
        out = self.item(made, 0)
        self.codes[out] = Code(code.packed, code.stats, code.scheme, (saver.x, self.item(made, 1), self.item(made, 2), weight, bias))
        self.replace(node, out)
        return out, f"keeps its input as {code.scheme}; its output follows from it"

    def _group_norm(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        facts, code = saver.facts, self._code(saver.x, spec, row=_rank(saver.x) - 2)
        weight, bias = self.attribute(facts["weight"]), self.attribute(facts["bias"])
        args = (saver.x, code.packed, code.stats, code.scheme, facts["num_groups"], weight, bias, facts["eps"])
        out = self.item(self.op(OPS.coded_group_norm.default, "norm", spec, *args), 0)
        self.replace(node, out)
        return out, f"keeps its input as {code.scheme}"

    def _norm_arguments(self, saver: Saver) -> tuple[list[Any], Any]:
        facts = saver.facts
        names = ("weight", "bias", "running_mean", "running_var", "training")
        return [self.attribute(facts[name]) for name in names], self.attribute(facts["counter"])

    def _running(self, made: fx.Node, first: int, arguments: list[Any], counter: Any) -> None:
        mean, var, training = arguments[2:5]
        if mean is not None:
            self.make.function(update_running, mean, var, counter, self.item(made, first), self.item(made, first + 1), training)

    def _batch_norm(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        code = self._code(saver.x, spec, row=_rank(saver.x) - 2)
        arguments, counter = self._norm_arguments(saver)
        args = (saver.x, code.packed, code.stats, code.scheme, *arguments, saver.facts["momentum"], saver.facts["eps"])
        made = self.op(OPS.coded_batch_norm.default, "norm", spec, *args)
        out = self.item(made, 0)
        self._running(made, 3, arguments, counter)
        self.replace(node, out)
        return out, f"keeps its input as {code.scheme}"

    def _blpa_norm(self, node: fx.Node, saver: Saver, spec: Spec, activation: str, act: fx.Node | None) -> tuple[fx.Node, str]:
        arguments, counter = self._norm_arguments(saver)
        self._norms += 1
        settle = self._norms % SETTLE_EVERY == 0
        settings = (saver.facts["momentum"], saver.facts["eps"], activation, spec.bits, self.gradient_wanted(), settle)
        made = self.op(OPS.blpa_norm.default, "norm", spec, saver.x, *arguments, *settings)
        out = self.item(made, 0)
        code = Code(self.item(made, 1), self.item(made, 2), of_norm(spec.bits, activation))
        self._running(made, 4, arguments, counter)
        self.codes[out] = code
        if act is not None:
            self.replace(act, out)
            self.rewired = [name for name in self.rewired if name != act.name]
        self.replace(node, out) if act is None else self.drop(node)
        return out, f"keeps its normalised input, and what follows from it, as {code.scheme}"

    # Functions

    def _positive_relu(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        made = self.op(OPS.positive_relu.default, "function", spec, saver.x, spec.bits, spec.group_size, self.gradient_wanted())
        out = self.item(made, 0)
        self.codes[out] = Code(self.item(made, 1), self.item(made, 2), of_positive(spec.bits, spec.group_size))
        scheme = self.codes[out].scheme
        self.replace(node, out)
        return out, f"keeps its output as {scheme}, whose zeros are the mask"

    def _function(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        clock, bits, size, seed = self.rounding(node, spec)
        args = (saver.x, saver.facts["name"], clock, bits, size, seed, self.gradient_wanted())
        out = self.item(self.op(OPS.coded_function.default, "function", spec, *args), 0)
        self.replace(node, out)
        return out, f"keeps its derivative as {of_range(bits, size)}"

    def _masked(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        facts = saver.facts
        args = (saver.x, facts["name"], facts["low"], facts["high"], self.gradient_wanted())
        out = self.item(self.op(OPS.masked_function.default, "function", spec, *args), 0)
        self.replace(node, out)
        return out, "keeps one bit for each element"

    def _dropout(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        out = self.make.function(dropout, saver.x, self.attribute(saver.facts["p"]), self.attribute(saver.facts["training"]))
        meta.write(out, site=spec.site, role="function")
        self.replace(node, out)
        return out, "keeps one bit for each element"

    def _max_pool(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        facts = saver.facts
        settings = [facts[name] for name in ("kernel", "stride", "padding", "dilation", "ceil_mode")]
        made = self.op(OPS.coded_max_pool2d.default, "pool", spec, saver.x, *settings, self.gradient_wanted())
        out = self.item(made, 0)
        self.replace(node, out)
        return out, "keeps each maximum's place in its window in the fewest bits"

    def _avg_pool(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        facts = saver.facts
        settings = [facts[name] for name in ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")]
        out = self.op(OPS.lean_avg_pool2d.default, "pool", spec, saver.x, *settings)
        self.replace(node, out)
        return out, "keeps only its input's sizes"

    def _softmax(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        clock, bits, size, seed = self.rounding(node, spec)
        made = self.op(
            OPS.coded_softmax.default, "function", spec, saver.x, saver.facts["dim"], clock, bits, size, seed, self.gradient_wanted()
        )
        out = self.item(made, 0)
        self.codes[out] = Code(self.item(made, 1), self.item(made, 2), of_range(bits, size))
        self.replace(node, out)
        return out, f"keeps its output as {of_range(bits, size)}"

    def _attention(self, node: fx.Node, saver: Saver, spec: Spec) -> tuple[fx.Node, str]:
        facts = saver.facts
        out = self.make.function(
            attention, facts["query"], facts["key"], facts["value"], facts["attn_mask"], facts["dropout_p"], facts["is_causal"],
            facts["scale"], *self.rounding(node, spec),
        )  # fmt: skip
        meta.write(out, site=spec.site, role="attention")
        self.replace(node, out)
        return out, f"keeps its keys and queries in 8 bits, its values and output as {of_range(spec.bits, spec.group_size)}"


def _set_scheme(node: fx.Node, scheme: str) -> None:
    node.args = tuple(scheme if isinstance(argument, str) and argument in _PLAIN else argument for argument in node.args)


def _is_one_threshold(node: Any) -> bool:
    """Whether a refresh_threshold node selects one threshold for its whole tensor."""
    return isinstance(node, fx.Node) and node.target is OPS.refresh_threshold.default and not node.args[7]


def _bytes(count: int) -> str:
    return next((f"{count / size:.3g} {unit}" for unit, size in (("MiB", 2**20), ("KiB", 2**10)) if count >= size), f"{count} B")


def _rank(node: Any) -> int:
    found = value(node)
    return found.dim() if isinstance(found, torch.Tensor) else 2


def _within_a_row(x: fx.Node, group_size: int, dims: int) -> int:
    """The largest group, a multiple of 8, that no two rows of a tensor share; where there is none of 32 or more, the wanted size.

    A row is the last ``dims`` dimensions. Rows that are normalised apart, those of tokens or of channels, differ in scale.
    """
    found = value(x)
    if not isinstance(found, torch.Tensor) or found.dim() <= dims or not all(isinstance(size, int) for size in found.shape[-dims:]):
        return group_size
    row = math.prod(found.shape[-dims:])
    return next((size for size in range(min(group_size, row) // 8 * 8, 31, -8) if row % size == 0), group_size)
