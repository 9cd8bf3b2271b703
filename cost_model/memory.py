"""Peak memory of a training step: a walk over its steps that counts which storages are alive at each.

The input is plain data. A storage is named once, however many tensors view it; it lives from the step that allocates it to the
last step that mentions it. What only exists while a step runs (work space, unpacked copies) is its transient.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxsparse.errors import CostError

from .validate import require_count

_GRADIENT, _PARAMETERS = "gradient:", "parameters:"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a program: the storages it makes (name, bytes), those it reads, and its transient bytes."""

    name: str
    allocates: tuple[tuple[str, int], ...] = ()
    reads: tuple[str, ...] = ()
    transient_bytes: int = 0


# What a storage is there for, as its name tells: see `training_steps`.
KINDS = ("resident", "activations", "gradients", "parameter gradients", "work space")


@dataclass(frozen=True, kw_only=True)
class MemoryTimeline:
    """Bytes alive while each step runs (transients included), the largest of them, and the step where that is.

    Attributes:
        step_names, step_bytes: the steps in order. step_kinds: for each one its bytes by `KINDS`, which sum up to `step_bytes`.
        peak_step: empty if nothing is alive but what always is. peak_storages: what is alive there, the largest first.
    """

    step_names: tuple[str, ...]
    step_bytes: tuple[int, ...]
    step_kinds: tuple[tuple[int, ...], ...]
    peak_bytes: int
    peak_step: str
    peak_storages: tuple[tuple[str, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """The timeline as plain data."""
        return {
            "kinds": list(KINDS),
            "steps": [
                {"name": name, "bytes": size, "by_kind": list(kinds)}
                for name, size, kinds in zip(self.step_names, self.step_bytes, self.step_kinds, strict=True)
            ],
            "peak_bytes": self.peak_bytes,
            "peak_step": self.peak_step,
            "peak_storages": [list(entry) for entry in self.peak_storages],
        }


def _kind_of(storage: str) -> int:
    """The position in `KINDS` of a storage that is not resident."""
    return 3 if storage.startswith(_PARAMETERS) else 2 if storage.startswith(_GRADIENT) else 1


def peak_memory(steps: Sequence[Step], *, resident: Mapping[str, int] | None = None, kept: Collection[str] = ()) -> MemoryTimeline:
    """The timeline of a program. resident: bytes of what is alive throughout (parameters, inputs); kept: never freed once made.

    Raises: CostError for a storage that is made twice or read before it is made.
    """
    resident = dict(resident or {})
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        for storage in (*step.reads, *(name for name, _ in step.allocates)):
            last[storage] = index
    alive = dict(resident)
    total, peak, peak_step = sum(alive.values()), sum(alive.values()), ""
    at_peak = dict(alive)
    step_bytes, step_kinds = [], []
    kinds = [total, 0, 0, 0, 0]
    for index, step in enumerate(steps):
        for storage, size in step.allocates:
            require_count(f"bytes of {storage!r} in step {step.name!r}", size, at_least=0)
            if storage in alive:
                raise CostError(f"step {step.name!r} makes storage {storage!r}, which is alive already; expected a new name")
            alive[storage] = size
            total += size
            kinds[_kind_of(storage)] += size
        for storage in step.reads:
            if storage not in alive:
                raise CostError(f"step {step.name!r} reads storage {storage!r}, which is not alive; expected a step before that makes it")
        now = total + step.transient_bytes
        step_bytes.append(now)
        step_kinds.append((*kinds[:-1], step.transient_bytes))
        if now > peak:
            peak, peak_step, at_peak = now, step.name, dict(alive)
        for storage in {*step.reads, *(name for name, _ in step.allocates)}:
            if last[storage] == index and storage not in resident and storage not in kept:
                freed = alive.pop(storage)
                total -= freed
                kinds[_kind_of(storage)] -= freed
    return MemoryTimeline(
        step_names=tuple(step.name for step in steps),
        step_bytes=tuple(step_bytes),
        step_kinds=tuple(step_kinds),
        peak_bytes=peak,
        peak_step=peak_step,
        peak_storages=tuple(sorted(at_peak.items(), key=lambda entry: -entry[1])),
    )


@dataclass(frozen=True, kw_only=True)
class SavedTensor:
    """One tensor kept for backward.

    storage: a node's name (its output is kept as it is), a resident's name, or any new name with its own `stored_bytes`.
    unpacked_bytes: the full copy that backward makes of a packed one, just before use.
    """

    storage: str
    stored_bytes: int = 0
    unpacked_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class NodeMemory:
    """What one forward node and its backward make and keep.

    inputs: names of the nodes (or residents) it reads. gradient_bytes: of its output's gradient, None: as its output.
    alias_of: the input whose storage its output shares (views, in-place ops).
    passes_gradient: its inputs' gradients are the output's own (an add); None: exactly if it is an alias.
    needs_grad False: backward never reaches it.
    """

    name: str
    inputs: tuple[str, ...] = ()
    output_bytes: int = 0
    gradient_bytes: int | None = None
    alias_of: str | None = None
    saved: tuple[SavedTensor, ...] = ()
    forward_transient_bytes: int = 0
    backward_transient_bytes: int = 0
    parameter_gradient_bytes: int = 0
    passes_gradient: bool | None = None
    needs_grad: bool = True


def saved_bytes(nodes: Sequence[NodeMemory]) -> int:
    """Bytes kept for backward by all nodes, each storage once however many save it; resident storages are not counted."""
    owner = _owners(nodes)
    sizes = {node.name: node.output_bytes for node in nodes if node.alias_of is None}
    kept: dict[str, int] = {}
    for node in nodes:
        for tensor in node.saved:
            storage = owner.get(tensor.storage, tensor.storage)
            kept[storage] = sizes.get(storage, tensor.stored_bytes)
    return sum(kept.values())


def training_steps(nodes: Sequence[NodeMemory]) -> list[Step]:
    """Forward in order, then backward in reverse, as steps for `peak_memory`; parameters' gradients are named "parameters:NODE".

    The last node is the loss, its gradient the seed. Where gradients meet, the second is added to the first.
    """
    owner = _owners(nodes)
    by_name = {node.name: node for node in nodes}
    made: set[str] = set()
    steps = []
    for node in nodes:
        allocates = [] if node.alias_of is not None else [(node.name, node.output_bytes)]
        made.add(node.name)
        for tensor in node.saved:
            storage = owner.get(tensor.storage, tensor.storage)
            if storage not in made and tensor.stored_bytes:
                allocates.append((storage, tensor.stored_bytes))
                made.add(storage)
        steps.append(
            Step(
                name=node.name,
                allocates=tuple(allocates),
                reads=tuple(dict.fromkeys(owner.get(name, name) for name in node.inputs)),
                transient_bytes=node.forward_transient_bytes,
            )
        )
    return steps + _backward_steps(nodes, owner, by_name)


def _backward_steps(nodes: Sequence[NodeMemory], owner: Mapping[str, str], by_name: Mapping[str, NodeMemory]) -> list[Step]:
    gradient: dict[str, str] = {}
    shared: set[str] = set()
    steps = []
    for position, node in enumerate(reversed(nodes)):
        allocates: list[tuple[str, int]] = []
        if position == 0 and node.needs_grad:
            gradient[node.name] = f"{_GRADIENT}{node.name}"
            allocates.append((gradient[node.name], _gradient_bytes(node)))
        if not node.needs_grad or node.name not in gradient:
            continue
        incoming = gradient[node.name]
        transient = node.backward_transient_bytes + sum(tensor.unpacked_bytes for tensor in node.saved)
        passed = node.alias_of is not None if node.passes_gradient is None else node.passes_gradient
        reads = [incoming, *(owner.get(tensor.storage, tensor.storage) for tensor in node.saved)]
        for name in dict.fromkeys(node.inputs):
            source = by_name.get(name)
            if source is None or not source.needs_grad:
                continue
            if name not in gradient:
                gradient[name] = incoming if passed else f"{_GRADIENT}{name}"
                if passed:
                    shared.add(incoming)
                else:
                    allocates.append((gradient[name], _gradient_bytes(source)))
            elif gradient[name] in shared:
                reads.append(gradient[name])
                gradient[name] = f"{_GRADIENT}{name}:{node.name}"
                allocates.append((gradient[name], _gradient_bytes(source)))
                transient += 0 if passed else _gradient_bytes(source)
            else:
                reads.append(gradient[name])
                transient += 0 if passed else _gradient_bytes(source)
        if node.parameter_gradient_bytes:
            allocates.append((f"{_PARAMETERS}{node.name}", node.parameter_gradient_bytes))
        steps.append(
            Step(
                name=f"backward of {node.name}",
                allocates=tuple(allocates),
                reads=tuple(dict.fromkeys(reads)),
                transient_bytes=transient,
            )
        )
    return steps


def _gradient_bytes(node: NodeMemory) -> int:
    return node.output_bytes if node.gradient_bytes is None else node.gradient_bytes


def training_peak(nodes: Sequence[NodeMemory], *, resident: Mapping[str, int] | None = None) -> MemoryTimeline:
    """The timeline of one training step; the gradients of parameters and the last node's output stay to the end."""
    kept = {f"{_PARAMETERS}{node.name}" for node in nodes} | ({nodes[-1].name} if nodes else set())
    return peak_memory(training_steps(nodes), resident=resident, kept=kept)


def _owners(nodes: Sequence[NodeMemory]) -> dict[str, str]:
    """Node name -> name of the storage its output lives in."""
    owner: dict[str, str] = {}
    for node in nodes:
        owner[node.name] = node.name if node.alias_of is None else owner.get(node.alias_of, node.alias_of)
    return owner
