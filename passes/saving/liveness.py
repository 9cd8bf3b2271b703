"""Which tensors stay alive whatever is compressed: inputs and outputs of the model, parameters, and what other operators keep."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from ..capture.module_kinds import has_hooks
from ..graph import value
from ..ops import OPS
from .saver import Saver, kept_in_full

_KEEP_NOTHING: set[Any] = {operator.iadd, operator.isub, operator.add, operator.sub, torch.add, torch.sub, torch.cat, operator.getitem}
_KEEP_NOTHING |= {getattr(OPS, name).default for name in ("refresh_threshold", "sparsify", "pack_sparse", "count_kept", "quantize")}
_KEEP_NOTHING_METHODS = {
    "add",
    "add_",
    "sub",
    "sub_",
    "size",
    "dim",
    "view",
    "reshape",
    "permute",
    "transpose",
    "flatten",
    "contiguous",
    "detach",
}


def storage_of(item: Any) -> int | None:
    """An identity of the memory that a node's tensor lies in; the same for its views."""
    found = value(item)
    if not isinstance(found, torch.Tensor):
        return None
    try:
        return int(StorageWeakRef(found.untyped_storage()).cdata)  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):
        return None


class Alive:
    """Memory that stays allocated until backward for a reason other than the nodes to be rewritten, with that reason."""

    def __init__(self, gm: fx.GraphModule, is_root: bool, savers: Mapping[fx.Node, Saver], rewritten: Iterable[fx.Node]) -> None:
        self.reasons: dict[int, str] = {}
        chosen = set(rewritten)
        for node in gm.graph.nodes:
            if node.op == "placeholder" and is_root:
                self._add([node], "it is an input of the model, which its caller holds")
            elif node.op == "get_attr":
                self._add([node], "it is a parameter or buffer")
            elif node.op == "output":
                if is_root:
                    self._add(node.all_input_nodes, "it is an output of the model")
            elif node not in chosen and node.op != "placeholder":
                kept = kept_in_full(savers[node]) if node in savers else kept_by(gm, node)
                self._add(kept, f"{_name(node)} keeps it in full anyway")

    def _add(self, nodes: Iterable[fx.Node], reason: str) -> None:
        for node in nodes:
            for leaf in [node, *node.all_input_nodes] if node.op == "output" else [node]:
                storage = storage_of(leaf)
                if storage is not None:
                    self.reasons.setdefault(storage, reason)

    def reason(self, node: Any) -> str | None:
        """Why a node's memory stays; None if it goes."""
        storage = storage_of(node)
        return None if storage is None else self.reasons.get(storage)


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op in ("call_module", "call_method") else str(getattr(node.target, "__name__", node.target))


def kept_by(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Those of a node's inputs, and itself, that torch keeps for its backward. Found by running it on tensors without values."""
    tensors = [other for other in (*node.all_input_nodes, node) if isinstance(value(other), torch.Tensor)]
    if not any(value(other).requires_grad for other in tensors):
        return []
    if (node.op == "call_function" and node.target in _KEEP_NOTHING) or (node.op == "call_method" and node.target in _KEEP_NOTHING_METHODS):
        return []
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    if module is not None and (not module.__module__.startswith("torch.nn") or module.state_dict() or has_hooks(module)):
        return tensors
    try:
        return _observed(node, module)
    except Exception:  # a function that cannot be run apart may keep anything
        return tensors


def _observed(node: fx.Node, module: nn.Module | None) -> list[fx.Node]:
    leaves: dict[fx.Node, Any] = {}

    def detached(other: fx.Node) -> Any:
        found = value(other)
        if isinstance(found, torch.Tensor):
            found = leaves.setdefault(other, found.detach().requires_grad_(found.requires_grad))
        return found

    args, kwargs = fx.node.map_arg(node.args, detached), fx.node.map_arg(node.kwargs, detached)
    mode = next((getattr(leaf, "fake_mode", None) for leaf in leaves.values()), None)
    if mode is None:
        raise ValueError("its tensors hold values")
    saved: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with mode, torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        target: Any = node.target if module is None else module
        out = getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
    memory = {_memory(tensor) for tensor in saved}
    found = [other for other, leaf in leaves.items() if _memory(leaf) in memory]
    if any(isinstance(leaf, torch.Tensor) and _memory(leaf) in memory for leaf in pytree.tree_leaves(out)):
        found.append(node)
    return found


def _memory(tensor: torch.Tensor) -> int:
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)  # type: ignore[no-untyped-call]


def is_overwritten_elsewhere(node: fx.Node, source: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether somebody reads, after ``node`` overwrote the memory of ``source``, that memory under another name than ``node``."""
    storage = storage_of(source)
    return any(
        order[user] > order[node]
        for other in node.graph.nodes
        if other is not node and storage is not None and storage_of(other) == storage and order[other] < order[node]
        for user in other.users
    )
