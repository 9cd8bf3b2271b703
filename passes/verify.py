"""The verifier: a table of rules, each asked about every node of a graph after every pass."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from fxsparse.errors import VerificationError

from . import meta
from .contractions import parameter_of
from .masks.apply import apply_mask
from .ops import OPS
from .ops.codes.scheme import EXACT

_CONTRACTIONS = (OPS.swat_convolution.default, OPS.swat_linear.default, OPS.swat_einsum.default)
_PACKS = (OPS.pack_sparse.default, OPS.divide_bins.default)
_VIEWS_LIMIT = 32


@dataclass(frozen=True)
class Rule:
    """A sentence that must be true of every node; ``broken`` says how it is not, or nothing."""

    name: str
    broken: Callable[[fx.GraphModule, fx.Node], str | None]


def verify(gm: fx.GraphModule, path: str = "") -> None:
    """Checks a graph against all rules, in their order: what went wrong comes before what follows from it.

    Raises:
        VerificationError: naming the graph, the node, the rule and what was found.
    """
    for rule in RULES:
        for node in gm.graph.nodes:
            found = rule.broken(gm, node)
            if found is not None:
                raise VerificationError(
                    f"graph {path or '(root)'}, node {node.name!r} ({node.target}): rule {rule.name!r} is broken: {found}; "
                    "if a pass of yours made this node, mend the pass, otherwise please report it"
                )


def _uses_overloads(_gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverloadPacket):
        return f"it calls the packet {node.target}, not an overload such as {node.target}.default"
    return None


def _fits_schema(_gm: fx.GraphModule, node: fx.Node) -> str | None:
    if not _is_ours(node):
        return None
    target: Any = node.target
    names = [argument.name for argument in target._schema.arguments]
    missing = [name for name in names[len(node.args) :] if name not in node.kwargs]
    if len(node.args) > len(names) or missing:
        return f"{target} takes {names}, got {len(node.args)} positional and {sorted(node.kwargs)}"
    return None


def _targets_exist(gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.op not in ("get_attr", "call_module"):
        return None
    try:
        operator.attrgetter(str(node.target))(gm)
    except AttributeError:
        return f"{node.target!r} does not exist in the module"
    return None


def _weight_is_sparse_parameter(gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.target not in _CONTRACTIONS:
        return None
    source = _behind_views(node.args[2])
    if source is None:
        return "its weight is not a node"
    if source.target is OPS.sparsify.default:
        source = _behind_views(source.args[0])
    if source is None or parameter_of(gm, source) is None:
        return f"its weight comes from {source}, which is neither a parameter nor a sparsified parameter"
    return None


def _activation_matches(_gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.target not in _CONTRACTIONS:
        return None
    dense, kept = node.args[0], node.args[1]
    scheme, values, stats = _last_arguments(node)[:3]
    if scheme == EXACT:
        return None if kept is dense else f"it keeps {kept}, which is not its activation, in full"
    pack, held, other = (_made_by(part) for part in (kept, values, stats))
    if not isinstance(pack, fx.Node) or pack.target not in _PACKS or other is not pack:
        return "what it keeps for grad-weight is neither its activation nor a packed one"
    if pack.target is OPS.divide_bins.default:
        if values is not pack.args[2]:
            return f"it keeps bits of {pack.args[2]} with the values of {values}"
        scheme = scheme.replace("divided:", "norm:")
    elif held is not pack:
        return f"it keeps the positions of {pack} with the values of {held}"
    if pack.args[4] != scheme:
        return f"it reads {pack} as {scheme!r}, which is packed as {pack.args[4]!r}"
    source = _without_detach(pack.args[0])
    return None if source is dense else f"it multiplies {dense}, but keeps {source}"


def _sparse_weight_follows(_gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.target not in _CONTRACTIONS:
        return None
    followed: tuple[Any, ...] = _last_arguments(node)[3:7]
    if followed[0] is None:
        return None
    w_hat: Any = node.args[2]
    if w_hat.target is not OPS.sparsify.default or tuple(w_hat.args[:4]) != followed:
        return f"its weight is {w_hat}, but its backward pass would make it of {followed}"
    return None


def _made_by(node: Any) -> Any:
    """The node of which another is an item."""
    return node.args[0] if isinstance(node, fx.Node) and node.target is operator.getitem else None


def _last_arguments(node: fx.Node) -> tuple[Any, ...]:
    """Scheme, values and statistics of what a contraction keeps, and what its sparse weight follows from; the defaults where not given."""
    first = [argument.name for argument in node.target._schema.arguments].index("scheme")  # type: ignore[union-attr]
    given = tuple(node.args[first:])
    return (*given, *(EXACT, None, None, None, None, None, 1)[len(given) :])


def _threshold_belongs(_gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.target in _PACKS:
        scored, groups = cast(Any, []), cast(Any, 1)
    elif node.target is OPS.sparsify.default:
        scored, groups = node.args[2:4]
    else:
        return None
    threshold = node.args[1]
    if not isinstance(threshold, fx.Node) or threshold.target is not OPS.refresh_threshold.default:
        return f"its threshold is {threshold}, not a refresh_threshold"
    if threshold.args[5:7] != (scored, groups):
        return "it scores other dimensions than its threshold was selected over"
    measured, sparsified = _without_detach(threshold.args[0]), _without_detach(node.args[0])
    if measured is not sparsified and isinstance(sparsified, fx.Node) and sparsified.target is torch.nn.functional.pad:
        sparsified = sparsified.args[0]  # padding makes no new values, but zeros
    return None if measured is sparsified else f"its threshold was selected on {measured}, not on {sparsified}"


def _threshold_is_state(gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.target is not OPS.refresh_threshold.default:
        return None
    for index, name in ((1, "stored"), (2, "clock"), (3, "density")):
        source: Any = node.args[index]
        if source.op != "get_attr" or not str(source.target).startswith(f"{meta.KEY}."):
            return f"its {name} is {source}, not one of the buffers that fxsparse adds"
    measured: Any = node.args[0]
    return None if measured.target == "detach" else "what it measures is not detached"


def _mask_is_the_weights_own(gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.target is not apply_mask:
        return None
    weight, mask, growing, trust = node.args[:4]
    sources = {"weight": weight, "mask": mask, "growing": growing, "trust": trust}
    for name, source in sources.items():
        if not isinstance(source, fx.Node) or source.op != "get_attr":
            return f"its {name} is {source}, which is read from nowhere"
    targets = {name: str(source.target) for name, source in sources.items() if isinstance(source, fx.Node)}
    if not isinstance(weight, fx.Node) or parameter_of(gm, weight) is None:
        return f"{targets['weight']!r} is no parameter"
    place = f"{meta.KEY}.sites.{meta.read(node).get('site')}."
    for name in ("mask", "trust"):
        if targets[name] != f"{place}{name}":
            return f"its {name} is {targets[name]!r}, not that of its site, {place}{name!r}"
    if not (targets["growing"].startswith(f"{meta.KEY}.regimes.") and targets["growing"].endswith(".growing")):
        return f"{targets['growing']!r} says nothing about growing"
    shapes = [tuple(operator.attrgetter(targets[name])(gm).shape) for name in ("weight", "mask")]
    return None if shapes[0] == shapes[1] else f"the weight has the shape {shapes[0]}, the mask {shapes[1]}"


def _is_read_masked(gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.op != "get_attr" or not any(user.target is apply_mask and user.args[0] is node for user in node.users):
        return None
    others = [user.name for user in node.users if user.target is not apply_mask]
    return f"{others} read{'s' * (len(others) == 1)} it without its mask" if others else None


def _metadata_is_plain(_gm: fx.GraphModule, node: fx.Node) -> str | None:
    facts = meta.read(node)
    try:
        json.dumps(facts)
    except TypeError as error:
        return f"its metadata is not JSON-able: {error}"
    if (_is_ours(node) or node.target is apply_mask) and not {"site", "role"} <= facts.keys():
        return f"its metadata lacks {sorted({'site', 'role'} - facts.keys())}"
    return None


def _is_used(_gm: fx.GraphModule, node: fx.Node) -> str | None:
    if (_is_ours(node) or node.target is apply_mask) and node.target is not OPS.count_kept.default and not node.users:
        return "nothing uses it"
    return None


def _is_ours(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == meta.KEY


def _behind_views(node: Any) -> fx.Node | None:
    for _ in range(_VIEWS_LIMIT):
        if not isinstance(node, fx.Node):
            return None
        if node.op == "get_attr" or _is_ours(node) or not node.args:
            return node
        node = node.args[0]
    return None


def _without_detach(node: Any) -> Any:
    return node.args[0] if isinstance(node, fx.Node) and node.target == "detach" else node


RULES = (
    Rule("operators are called by overload", _uses_overloads),
    Rule("fxsparse operators get the arguments of their schema", _fits_schema),
    Rule("attributes and modules exist", _targets_exist),
    Rule("a SWAT contraction multiplies with a parameter", _weight_is_sparse_parameter),
    Rule("a SWAT contraction keeps its own activation", _activation_matches),
    Rule("a threshold is applied to what it was selected on", _threshold_belongs),
    Rule("a sparse weight is made anew as it was made", _sparse_weight_follows),
    Rule("thresholds are kept in fxsparse's buffers", _threshold_is_state),
    Rule("a weight is masked by its own mask", _mask_is_the_weights_own),
    Rule("a masked weight is read masked everywhere", _is_read_masked),
    Rule("metadata is plain and complete", _metadata_is_plain),
    Rule("what fxsparse inserts is used", _is_used),
)
