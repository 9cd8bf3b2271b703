"""What a compiled model offers to those who want to know: the graph for networkx and Graphviz, what each pass changed, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fxsparse.cost_model.accelerator import Accelerator

from .errors import FxSparseError
from .whole_files import require_writable, write_text

if TYPE_CHECKING:
    import networkx as nx

    from .compiled_model import CompiledModel
    from .explanation import Explanation
    from .stages import Stage, StageDiff


class Inspecting:
    """The methods, for CompiledModel to inherit."""

    @property
    def stages(self) -> Sequence[Stage]:
        """Each graph after its capture and after each pass, in that order; empty unless compiled with ``trace=True``."""
        found: Sequence[Stage] = self.__dict__["_stages"]
        return found

    def diff(self, name: str, path: str | None = None) -> StageDiff:
        """What one pass changed, as a unified diff of readable code and the names of nodes.

        Args:
            name: of the pass, such as "insert_swat". path: of one graph's module; None takes all graphs.

        Raises:
            FxSparseError: it was compiled without ``trace=True``, or there is no such pass or graph.
        """
        from .stages import stage_diff

        if not self.stages:
            raise FxSparseError("stages were not kept: compile the model with fxs.compile(..., trace=True), then ask for the difference")
        return stage_diff(self.stages, name, path)

    def why(self, site: str) -> Explanation:
        """Why a weight is what it is: the rules that select it, its specs, passes, nodes, kernel, densities and costs.

        Args:
            site: the parameter's qualified name, or the path of its module.

        Raises:
            FxSparseError: there is no such site; the nearest names are listed.
        """
        from .explanation import explain

        return explain(cast("CompiledModel", self), site)

    def to_networkx(
        self,
        accelerator: str | Accelerator | None = None,
        *,
        convention: str = "exact",
        batch_size: int | None = None,
        density: str = "target",
    ) -> nx.DiGraph[str]:
        """Every execution of every node, with all that is known of it, joined by what it reads. Arguments: as for ``cost``.

        Node attributes: node, graph, op, target, operator, module, line (of the model's source), made_by (a pass), site, role,
        techniques, weight_density, activation_density, shape, dtype, tensor_bytes, saved_bytes, forward, grad_input and grad_weight
        (dicts of figures), and the figures of all three passes together: macs, dense_macs, flops, dram_bytes, sram_bytes, cycles,
        energy_pj, time_s (the last four with an accelerator). An edge has the shape, dtype and tensor_bytes of what it carries, and the
        figures of the node that it leads to. networkx's own algorithms do the rest:

        >>> network = compiled.to_networkx("eyeriss")
        >>> path = nx.dag_longest_path(network, weight="cycles")  # the critical path
        >>> nx.dag_longest_path_length(network, weight="cycles")  # its cycles
        >>> layer1 = [name for name, module in network.nodes(data="module") if module.startswith("layer1")]
        >>> sum(flops for _, flops in network.subgraph(layer1).nodes(data="flops"))  # of a part
        >>> nx.descendants(network, "conv1")  # what depends on a node

        Raises:
            CostError: an argument is unknown, or there is an accelerator and no shapes.
        """
        from .network import to_networkx

        return to_networkx(cast("CompiledModel", self), accelerator, convention=convention, batch_size=batch_size, density=density)

    def to_dot(self, path: str | Path | None = None, **arguments: Any) -> str:
        """The graph as Graphviz reads it, modules as boxes, coloured by technique; also written to ``path``, if that is given.

        Args:
            arguments: those of ``to_networkx``.

        Raises:
            FxSparseError: the path cannot be written. CostError: see ``to_networkx``.
        """
        from .dot import dot_of

        target = None if path is None else require_writable(path)
        text = dot_of(self.to_networkx(**arguments))
        if target is not None:
            write_text(target, text)
        return text
