"""The priced nodes of a compiled model in the order of execution, read from the metadata of its graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fxsparse.cost_model.attention import Attention
from fxsparse.cost_model.memory import MemoryTimeline, NodeMemory, SavedTensor, training_peak
from fxsparse.cost_model.pointwise import Pointwise
from fxsparse.cost_model.workload import Contraction
from fxsparse.cost_model.workloads import Workload, contractions_of, workload_from_dict
from fxsparse.passes.meta import read as facts_of

from .errors import CostError

if TYPE_CHECKING:
    from .compiled_model import CompiledModel

Storage = tuple[str, int]
Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One workload of a node for one sample: with the site of its weight, and whether it grows with the samples."""

    workload: Workload
    site: str
    scales: bool

    def at(self, batch: int) -> Workload:
        return self.workload.with_batch(self.workload.batch * batch) if self.scales else self.workload


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A storage that is kept for backward, and its bytes: [of a sample, fixed]."""

    storage: Storage
    size: Pair


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One execution of one node.

    Attributes:
        name: unique among the executions; a node of a nested graph stands behind its call: "encoder/linear".
        node, graph: the node and the path of its graph. kind: see ``annotate_cost``.
        module: path of the module that the node stands for.
        unknown: bytes of a sample, and fixed, that operators move which are not known. note: why something is not known.
    """

    name: str
    node: str
    graph: str
    kind: str
    operator: str
    site: str
    items: tuple[Item, ...] = ()
    saved: tuple[Kept, ...] = ()
    unknown: Mapping[str, Pair] = field(default_factory=dict)
    note: str = ""
    dtype: str = ""
    module: str = ""


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """What liveness needs of a node; sizes are [of a sample, fixed]. parts: of the storages of an output that has several."""

    name: str
    inputs: tuple[str, ...] = ()
    output: Pair = (0, 0)
    parts: tuple[Pair, ...] = ()
    alias_of: str | None = None
    saved: tuple[tuple[Storage, Pair], ...] = ()
    transient: tuple[int, int, int, int] = (0, 0, 0, 0)
    parameters: tuple[tuple[str, int], ...] = ()
    passes_gradient: bool = False
    needs_grad: bool = False


@dataclass
class Ledger:
    """All executions of a model's nodes, and what its memory is made of.

    Attributes:
        given: bytes of the model's inputs. persistent_bytes: of its parameters and buffers.
        tensors: bytes of each parameter and buffer by name.
    """

    entries: list[Entry] = field(default_factory=list)
    memory: list[_Memory] = field(default_factory=list)
    given: list[tuple[str, Pair]] = field(default_factory=list)
    persistent_bytes: int = 0
    _workloads: dict[int, list[tuple[Workload, ...]]] = field(default_factory=dict)
    _timelines: dict[int, MemoryTimeline] = field(default_factory=dict)

    def workloads(self, batch: int) -> list[tuple[Workload, ...]]:
        """The workloads of each entry for a number of samples."""
        if batch not in self._workloads:
            if len(self._workloads) > 8:
                self._workloads.clear()
            items = {item: item.at(batch) for entry in self.entries for item in entry.items}
            self._workloads[batch] = [tuple(items[item] for item in entry.items) for entry in self.entries]
        return self._workloads[batch]

    def saved_bytes(self, batch: int) -> list[int]:
        """For each entry the bytes that it is the first to keep for backward."""
        seen: set[Storage] = set()
        found = []
        for entry in self.entries:
            own = 0
            for kept in entry.saved:
                if kept.storage not in seen:
                    seen.add(kept.storage)
                    own += _at(kept.size, batch)
            found.append(own)
        return found

    def resident_bytes(self, batch: int) -> int:
        """Bytes that are alive throughout: parameters, buffers and inputs."""
        return sum(self._resident(batch).values())

    def timeline(self, batch: int) -> MemoryTimeline:
        """The memory of one step of training, forward and backward."""
        if batch not in self._timelines:
            if len(self._timelines) > 8:
                self._timelines.clear()
            self._timelines[batch] = training_peak(self._nodes(batch), resident=self._resident(batch))
        return self._timelines[batch]

    def _resident(self, batch: int) -> dict[str, int]:
        return {"parameters and buffers": self.persistent_bytes, **{name: _at(size, batch) for name, size in self.given}}

    def _nodes(self, batch: int) -> list[NodeMemory]:
        counted: set[str] = set()
        last_use: dict[str, int] = {}
        for index, row in enumerate(self.memory):
            for name, _ in row.parameters:
                last_use[name] = index
        kept = {storage for row in self.memory for storage, _ in row.saved}
        # What is kept of an output of several storages lives on by itself: the codes without the values beside them.
        parts = {(row.name, part): _at(size, batch) for row in self.memory for part, size in enumerate(row.parts)}
        apart = {storage: size for storage, size in parts.items() if storage in kept}
        nodes = []
        for index, row in enumerate(self.memory):
            gradients = 0
            own = {(row.name, part): apart[row.name, part] for part in range(len(row.parts)) if (row.name, part) in apart}
            output = _at(row.output, batch)
            saved = (*own.items(), *((storage, _at(size, batch)) for storage, size in row.saved))
            for name, size in row.parameters:
                if last_use[name] == index and name not in counted:
                    counted.add(name)
                    gradients += size
            nodes.append(
                NodeMemory(
                    name=row.name,
                    inputs=row.inputs,
                    output_bytes=output - sum(own.values()),
                    gradient_bytes=output - sum(size for (_, part), size in own.items() if part),
                    alias_of=row.alias_of,
                    saved=tuple(
                        SavedTensor(storage=f"{name}:{part}" if (name, part) in apart else name, stored_bytes=size)
                        for (name, part), size in saved
                    ),
                    forward_transient_bytes=_at(row.transient[:2], batch),
                    backward_transient_bytes=_at(row.transient[2:], batch),
                    parameter_gradient_bytes=gradients,
                    passes_gradient=row.passes_gradient,
                    needs_grad=row.needs_grad,
                )
            )
        return nodes


_LEDGERS: WeakKeyDictionary[Any, tuple[Any, Ledger]] = WeakKeyDictionary()


def ledger_of(model: CompiledModel) -> Ledger:
    """The ledger of a compiled model in its present mode; read once for each mode.

    Raises: CostError if a node that multiplies lacks its shapes, naming it.
    """
    mode = tuple(model.current_variants().items())
    known = _LEDGERS.get(model)
    if known is None or known[0] != mode:
        known = _LEDGERS[model] = (mode, _Reader(model).read())
    return known[1]


class _Reader:
    def __init__(self, model: CompiledModel) -> None:
        self.model = model
        self.graphs = model.graphs
        self.ledger = Ledger()
        self.sizes: dict[Storage, Pair] = {}
        self.known: set[str] = set()
        self.quiet = False

    def read(self) -> Ledger:
        tensors = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        self.ledger.persistent_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if "" in self.graphs:
            self._graph("", "", [])
        elif self.model.root_cost:
            self._root_python(dict(self.model.root_cost))
        else:
            inner = [path for path in self.graphs if not any(path.startswith(f"{other}.") for other in self.graphs)]
            for path in inner:
                self._graph(path, f"{path}/", [])
        if not self.ledger.entries:
            raise CostError("no node of this model has a known cost: compile the model with example_inputs")
        return self.ledger

    def _root_python(self, facts: dict[str, Any]) -> None:
        owners: dict[Storage, Storage] = {}
        for index, size in enumerate(facts.pop("given", ())):
            name = "input" if not index else f"input:{index}"
            self._given(name, _pair(size))
            owners["input", index] = (name, 0)
        self._node("(model)", "", "", "", facts, owners, {})

    def _graph(self, path: str, prefix: str, bound: list[Storage | None], other: Mapping[str, Any] | None = None) -> dict[Storage, Storage]:
        owners: dict[Storage, Storage] = {}
        nodes: dict[str, str] = {}
        given = iter(bound)
        for node in self.graphs[path].graph.nodes:
            facts = (other or {}).get(node.name) or facts_of(node).get("cost")
            if facts is None:
                raise CostError(f"graph {path or '(root)'}, node {node.name!r} has no cost: compile the model with example_inputs")
            name = f"{prefix}{node.name}"
            if node.op == "placeholder":
                self._placeholder(path, name, node.name, facts, next(given, None), owners, nodes)
            elif node.op not in ("output", "get_attr"):
                own = facts_of(node)
                self._node(node.name, path, prefix, own.get("site", ""), facts, owners, nodes, module=own.get("module"))
        return owners

    def _placeholder(
        self,
        path: str,
        name: str,
        node: str,
        facts: dict[str, Any],
        source: Storage | None,
        owners: dict[Storage, Storage],
        nodes: dict[str, str],
    ) -> None:
        if facts["kind"] == "unknown" and path == "":
            raise CostError(f"graph {path or '(root)'}, input {node!r}: its shape is not known: compile the model with example_inputs")
        size = _pair(facts.get("storages", [[0, 0]])[0])
        if source is None:
            owners[node, 0] = (name, 0)
            if path == "":
                self._given(name, size)
                return
            self.sizes[name, 0] = size
            self._add(_Memory(name=name, output=size))
        else:
            owners[node, 0] = source
            producer = (source[0],) if source[0] else ()
            self._add(
                _Memory(
                    name=name,
                    inputs=producer,
                    output=size,
                    alias_of=source[0] or None,
                    passes_gradient=True,
                    needs_grad=bool(facts.get("needs_grad")),
                )
            )
        nodes[node] = name

    def _node(
        self,
        node: str,
        path: str,
        prefix: str,
        site: str,
        facts: dict[str, Any],
        owners: dict[Storage, Storage],
        nodes: dict[str, str],
        given: Sequence[Storage | None] = (),
        module: str | None = None,
    ) -> None:
        name = f"{prefix}{node}"
        back: list[tuple[str, str]] = []
        inputs = (*self._producers(facts, nodes), *(source[0] for source in given if source and source[0] in self.known))
        for index, *size in facts.get("spaces", ()):
            owners[node, index] = (f"{name}:{index}", 0)
            self.sizes[owners[node, index]] = _pair(size)
        made: set[str] = set()
        for number, call in enumerate(facts.get("calls", ())):
            inner_prefix = f"{name}/" if facts["kind"] == "graph" else f"{name}/{call.get('graph', '')}{f'#{number}' if number else ''}/"
            bound = [self._owner(owners, source) for source in call["inputs"]]
            for source in bound:
                if source and source[0].startswith(f"{name}:") and source[0] not in made:
                    made.add(source[0])
                    before = tuple(dict.fromkeys((*inputs, *(inner for inner, _ in back))))
                    self._add(_Memory(name=source[0], inputs=before, output=self.sizes[source], needs_grad=True))
            if "node" in call:
                self._node(call["node"], path, prefix, "", call["facts"], owners, nodes, given=bound, module=module)
                for index, source, place in call.get("outputs", ()):
                    owners[node, index] = ("", 0) if source == "" else owners.get((source, place), (name, index))
                    back.append((f"{prefix}{call['node']}", owners[node, index][0]))
                continue
            quiet, self.quiet = self.quiet, self.quiet or bool(facts.get("own_memory"))
            inside = self._graph(call["graph"], inner_prefix, bound, call.get("nodes"))
            self.quiet = quiet
            for index, source, place in call.get("outputs", ()):
                owners[node, index] = ("", 0) if source == "" else inside.get((source, place), (name, index))
                back.append((f"{inner_prefix}{source}", owners[node, index][0]))
        for index, size in enumerate(facts.get("storages", ())):
            owners[node, index] = (name, index)
            self.sizes[name, index] = _pair(size)
        saved = tuple(self._kept(owners, name, row) for row in facts.get("saved", ()))
        if self.quiet:
            saved = ()
        if facts.get("own_memory") or facts["kind"] not in ("graph", "value", "input", "parameter"):
            self.ledger.entries.append(
                Entry(
                    name=name,
                    node=node,
                    graph=path,
                    kind=facts["kind"],
                    operator=facts.get("operator", ""),
                    site=site,
                    items=tuple(_item(work, site) for work in facts.get("work", ())),
                    saved=saved,
                    unknown={key: _pair(size) for key, size in facts.get("unknown", {}).items()},
                    note=facts.get("note", ""),
                    dtype=facts.get("dtype", ""),
                    module=path if module is None else module,
                )
            )
        if facts["kind"] in ("value", "input", "parameter") and "inputs" not in facts:
            return
        nodes[node] = name
        self._remember(name, inputs, facts, owners, saved, back)

    def _remember(
        self,
        name: str,
        inputs: tuple[str, ...],
        facts: dict[str, Any],
        owners: dict[Storage, Storage],
        saved: tuple[Kept, ...],
        back: list[tuple[str, str]],
    ) -> None:
        runs_graph = facts["kind"] == "graph" and not facts.get("own_memory")
        storages = [_pair(size) for size in facts.get("storages", ())]
        alias: str | None = None
        size = (sum(each for each, _ in storages), sum(fixed for _, fixed in storages))
        needs_grad, passes = bool(facts.get("needs_grad")), bool(facts.get("passes_gradient"))
        back = [(source, owner) for source, owner in back if source in self.known and owner in self.known]
        if back and runs_graph:
            inputs, alias, size, passes = (
                tuple(dict.fromkeys(source for source, _ in back)),
                back[0][1],
                _pair(facts.get("tensor", (0, 0))),
                True,
            )
        elif back:
            inputs = tuple(dict.fromkeys((*(source for source, _ in back), *inputs)))
        if (not back and not storages) or (back and not runs_graph and not storages):
            size, owner = _pair(facts.get("tensor", (0, 0))), facts.get("alias")
            if owner is not None:
                alias = self._owner(owners, owner)[0] or None
                needs_grad = needs_grad and alias is not None
            size = size if alias is not None else (0, 0)
            passes = passes or not facts.get("work")
        kept = []
        for one in saved:
            owner = one.storage[0]
            if not owner.startswith("buffer:") and any(one.size):
                is_node = owner in self.known or owner == name
                kept.append((one.storage, (0, 0)) if is_node else ((":".join(map(str, one.storage)), 0), one.size))
        self._add(
            _Memory(
                name=name,
                inputs=inputs,
                output=size,
                parts=tuple(storages) if alias is None and len(storages) > 1 and not runs_graph else (),
                alias_of=alias,
                saved=tuple(kept),
                transient=tuple(facts.get("transient") or (0, 0, 0, 0)),
                parameters=tuple((key, number) for key, number in facts.get("parameters", ())),
                passes_gradient=passes,
                needs_grad=needs_grad,
            )
        )

    @staticmethod
    def _producers(facts: dict[str, Any], nodes: dict[str, str]) -> tuple[str, ...]:
        return tuple(nodes[other] for other in facts.get("inputs", ()) if other in nodes)

    def _add(self, row: _Memory) -> None:
        if self.quiet:
            return
        self.ledger.memory.append(row)
        self.known.add(row.name)

    def _given(self, name: str, size: Pair) -> None:
        self.ledger.given.append((name, size))
        self.sizes[name, 0] = size
        self.known.add(name)

    @staticmethod
    def _owner(owners: dict[Storage, Storage], source: Any) -> Any:
        """The storage that a graph's own name for it stands for; ("", NAME) for a parameter or buffer; None for none."""
        if source is None:
            return None
        return ("", 0) if source[0] == "" else owners.get((source[0], source[1]))

    def _kept(self, owners: dict[Storage, Storage], name: str, row: list[Any]) -> Kept:
        kind, source, index, each, fixed = row
        if kind == "node":
            storage = owners.get((source, index), (f"{name}:{source}", index))
            each, fixed = self.sizes.get(storage, (each, fixed))
        elif kind == "parameter":
            storage = (f"buffer:{source}", 0)
        else:
            storage = (f"{name}:own", index)
        return Kept(storage=storage, size=(each, fixed))


def _item(work: dict[str, Any], site: str) -> Item:
    values = {key: value for key, value in work.items() if key not in ("scales", "site")}
    return Item(workload=workload_from_dict(values), site=work.get("site", site), scales=work["scales"])


def _pair(size: Any) -> Pair:
    return int(size[0]), int(size[1])


def _at(size: Any, batch: int) -> int:
    return int(size[0]) * batch + int(size[1])


def moved_bytes(workload: Workload) -> int:
    """Bytes of a workload's operands, read and written once in each pass, whatever the machine; to weigh what is known."""
    if isinstance(workload, Pointwise):
        return sum(workload.pass_bytes(which) for which in ("forward", "grad_input", "grad_weight"))
    if isinstance(workload, Attention):
        return 4 * sum(workload.pass_elements(which) for which in ("forward", "grad_input"))
    return sum(_operand_bytes(product) for product in contractions_of(workload))


def _operand_bytes(product: Contraction) -> int:
    passes = 1 + bool(product.macs("grad_input")) + bool(product.macs("grad_weight"))
    return 4 * passes * (product.input_elements + product.output_elements + product.weight_elements)


def entries_of(model: CompiledModel) -> Iterator[Entry]:
    """Every execution of a node that is an operator."""
    yield from ledger_of(model).entries
