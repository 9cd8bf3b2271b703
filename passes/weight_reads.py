"""Under which of its names a parameter is read sparse, and under which it is read as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from .capture.graph_forward import GraphForward
from .masks.apply import apply_mask
from .ops import OPS

_SPARSE_READERS = (OPS.sparsify.default, apply_mask)
_SWAT = (OPS.swat_convolution.default, OPS.swat_linear.default, OPS.swat_einsum.default)


@dataclass
class WeightReads:
    """Qualified names of parameters, and where they are read.

    Attributes:
        sparse: names behind which a graph reads a sparsified or masked weight.
        dense: names that something reads as they are, with the reader.
        captured: paths of the modules that have a graph.
    """

    sparse: set[str] = field(default_factory=set)
    dense: dict[str, str] = field(default_factory=dict)
    captured: frozenset[str] = frozenset()

    def is_sparse(self, name: str) -> bool:
        """Whether a name of a sparse site stands for its sparse weight: a graph that reads one parameter under several names reads it
        once, so that the other names are read by nobody."""
        if name in self.sparse:
            return True
        parts = name.split(".")[:-1]
        return name not in self.dense and any(".".join(parts[:end]) in self.captured for end in range(len(parts) + 1))


def weight_reads(root: nn.Module, forwards: Mapping[str, GraphForward]) -> WeightReads:
    """How every graph of a compiled model reads every parameter, in all modes."""
    found = WeightReads(captured=frozenset(forwards))
    parameters = {name for name, _ in root.named_parameters(remove_duplicate=False)}
    for path, forward in forwards.items():
        for variant in forward.variants:
            for node in variant.graph_module.graph.nodes:
                name = f"{path}.{node.target}" if path else str(node.target)
                if node.op == "get_attr" and name in parameters:
                    _note_read(found, node, name, path)
                elif node.op == "call_module" and name not in forwards:
                    _note_module(found, root.get_submodule(name), name, forwards)
    return found


def _note_read(found: WeightReads, node: fx.Node, name: str, path: str) -> None:
    for user in node.users:
        if user.target in _SPARSE_READERS and user.args[0] is node:
            found.sparse.add(name)
        elif not (_only_measures(user) or _only_remembers(user, node)):
            found.dense.setdefault(name, f"node {user.name!r} of graph {path or '(root)'}")


def _only_measures(node: fx.Node) -> bool:
    """Whether it leads to thresholds alone."""
    return node.target == "detach" and all(user.target is OPS.refresh_threshold.default for user in node.users)


def _only_remembers(contraction: fx.Node, weight: fx.Node) -> bool:
    """Whether a SWAT contraction multiplies with another node, and is told the weight from which that one follows."""
    return contraction.target in _SWAT and weight not in contraction.args[:3]


def _note_module(found: WeightReads, module: nn.Module, path: str, forwards: Mapping[str, GraphForward]) -> None:
    for name, _ in module.named_parameters(prefix=path, remove_duplicate=False):
        owner = name.rpartition(".")[0]
        parts = owner.split(".")
        if not any(".".join(parts[:end]) in forwards for end in range(path.count(".") + 1, len(parts) + 1)):
            found.dense.setdefault(name, f"module {path!r} ({type(module).__name__})")
