"""From a recording to a price: workloads, saved storages and transient bytes, relative to the call's own inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxsparse.cost_model.attention import Attention
from fxsparse.cost_model.pointwise import Pointwise
from fxsparse.cost_model.recurrent import Recurrent
from fxsparse.cost_model.workload import Contraction

from ..leaves import map_leaves
from .products import Priced, product_of
from .recording import Amount, Operation, Recording, Spec, amount_of, spec_of, storage_of

NOTHING = Amount(0, 0)
_GENERIC = frozenset(("add", "mul", "copy", "reduce", "elementwise"))  # names of a call only if nothing in it has a better one


@dataclass(frozen=True)
class Leaf:
    """A tensor in a call's output: its form and where its storage is from: ("in", i), ("attr", i), ("new", i),
    or ("inner", i) if another graph made it or was given it."""

    spec: Spec
    origin: tuple[str, int]
    fixed: bool

    def on(self, device: torch.device) -> Leaf:
        """The same on another device."""
        return Leaf(self.spec._replace(device=device), self.origin, self.fixed)


@dataclass
class Price:
    """What one call costs.

    Attributes:
        operator: its name in reports. work: JSON-able workloads for one sample, each with ``scales``.
        output: the returned structure with Leaf in place of tensors. storages: bytes of the storages that the output newly holds.
        saved: (origin, bytes) of what backward keeps; origin "own" is kept inside.
        unknown: bytes of operators that are not known, by name. note: what could not be followed.
        learned: inputs that need a gradient from now on, since something that learns was written into them.
    """

    operator: str
    work: list[dict[str, Any]] = field(default_factory=list)
    output: Any = None
    storages: list[Amount] = field(default_factory=list)
    output_bytes: Amount = NOTHING
    saved: list[tuple[str, int, Amount]] = field(default_factory=list)
    forward_transient: Amount = NOTHING
    backward_transient: Amount = NOTHING
    passes_gradient: bool = False
    needs_grad: bool = False
    unknown: dict[str, Amount] = field(default_factory=dict)
    note: str = ""
    dtype: str = ""
    learned: tuple[int, ...] = ()


@dataclass
class _Moved:
    reads: Amount = NOTHING
    writes: Amount = NOTHING
    each_flops: float = 0.0
    fixed_flops: float = 0.0
    largest: int = 0  # tensor made, per sample


def price_of(
    record: Recording,
    sources: Sequence[torch.Tensor],
    *,
    batch: int,
    operator: str = "",
    contraction: str = "linear",
    attributes: Sequence[torch.Tensor] = (),
    parameters: Collection[int] = (),
    whole: Recurrent | Attention | None = None,
    inner: Mapping[int, tuple[str, int]] | None = None,
) -> Price:
    """The price of a recorded call.

    Args:
        operator: a name for reports where the operators do not give one. contraction: what a product with a weight is called.
        attributes: the parameters and buffers that the call read by itself. parameters: storages of parameters.
        whole: the workload that stands for every contraction of the call.
        inner: where storages are from that other graphs make or get.
    """
    places = {storage_of(tensor): ("in", slot) for slot, tensor in reversed(list(enumerate(sources)))}
    places |= {storage_of(tensor): ("attr", slot) for slot, tensor in enumerate(attributes)}
    for storage, place in (inner or {}).items():
        places.setdefault(storage, place)
    price = Price(operator="")
    labels: dict[str, int] = {}
    _work(price, record, batch, contraction, whole, labels)
    _output(price, record, places, batch)
    for storage, amount in record.saved.items():
        if storage in parameters or not any(amount):
            continue
        kind, slot = places.get(storage, ("own", storage))
        price.saved.append((kind, slot if kind != "own" else 0, amount))
    kept = set(record.saved) | {storage for storage, place in places.items() if place[0] == "new"}
    price.forward_transient = _transient(record, backward=False, kept=kept, batch=batch)
    final = set(record.gradients.values()) | record.seeds
    price.backward_transient = _transient(record, backward=True, kept=final | kept, batch=batch)
    needed = [slot for slot, tensor in enumerate(sources) if tensor.requires_grad]
    price.passes_gradient = bool(needed) and all(record.gradients.get(slot) in record.seeds for slot in needed)
    price.operator = max(labels, key=lambda name: (name not in _GENERIC, labels[name])) if labels else operator or "reshape"
    price.note = record.error or ""
    return price


def _work(
    price: Price, record: Recording, batch: int, contraction: str, whole: Recurrent | Attention | None, labels: dict[str, int]
) -> None:
    forward, backward = _Moved(), _Moved()
    if whole is not None:
        price.work.append(sample_of(whole, batch))
        labels[whole.operator] = 1 << 62
    multiplies = whole is not None
    unmade = dict(record.made)
    for operation in record.operations:
        fresh = max((unmade.pop(storage, NOTHING).each for storage in operation.writes), default=0)
        if operation.is_contraction and not operation.backward and whole is None:
            found = product_of(operation, batch=batch, fixed=record.fixed, operator=contraction)
            if found is not None:
                price.work.append(_sample(found))
                labels[found.workload.operator] = 1 << 61
                price.dtype = price.dtype or str(operation.output.dtype if isinstance(operation.output, torch.Tensor) else "").removeprefix(
                    "torch."
                )
                multiplies = True
                continue
        if operation.is_contraction and multiplies:
            continue
        if isinstance(whole, Attention):
            continue
        moved = backward if operation.backward else forward
        reads, writes = _shared(operation.read_bytes, operation.every), _shared(operation.write_bytes, operation.every)
        moved.reads, moved.writes = _sum(moved.reads, reads), _sum(moved.writes, writes)
        moved.largest = max(moved.largest, fresh)
        if operation.kind is None:
            known = price.unknown.get(operation.name, NOTHING)
            price.unknown[operation.name] = _sum(known, _sum(reads, writes))
        else:
            flops = operation.kind.flops_per_element / operation.every
            moved.each_flops += flops * operation.elements.each
            moved.fixed_flops += flops * operation.elements.fixed
        if not operation.backward:
            label = operation.name if operation.kind is None else operation.kind.label
            labels[label] = labels.get(label, 0) + reads.at(batch) + writes.at(batch)
    bytes_moved = (forward.reads, forward.writes, backward.reads, backward.writes)
    if any(any(amount) for amount in bytes_moved):
        own = {name: weight for name, weight in labels.items() if weight < 1 << 61}
        label = max(own, key=lambda name: (name not in _GENERIC, own[name]), default="other")
        price.work.append(
            {
                **Pointwise(
                    operator=label,
                    batch=1,
                    read_bytes=forward.reads.each,
                    write_bytes=forward.writes.each,
                    fixed_bytes=forward.reads.fixed + forward.writes.fixed,
                    flops=forward.each_flops,
                    fixed_flops=forward.fixed_flops,
                    backward_read_bytes=backward.reads.each,
                    backward_write_bytes=backward.writes.each,
                    fixed_backward_bytes=backward.reads.fixed + backward.writes.fixed,
                    backward_flops=backward.each_flops,
                    fixed_backward_flops=backward.fixed_flops,
                    made_bytes=forward.largest,
                    backward_made_bytes=backward.largest,
                ).to_dict(),
                "scales": True,
            }
        )


def sample_of(whole: Recurrent | Attention, batch: int) -> dict[str, Any]:
    """A whole workload as plain data, for one sample if it grows with them."""
    scales = whole.batch % batch == 0
    return {**(whole.with_batch(whole.batch // batch) if scales else whole).to_dict(), "scales": scales}


def _sample(found: Priced) -> dict[str, Any]:
    """The workload as plain data, for one sample if it grows with them."""
    workload: Contraction | Attention = found.workload.with_batch(1) if found.scales else found.workload
    return {**workload.to_dict(), "scales": found.scales}


def _output(price: Price, record: Recording, places: dict[int, tuple[str, int]], batch: int) -> None:
    def leaf(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        storage = storage_of(value)
        if storage not in places:
            places[storage] = ("new", len(price.storages))
            price.storages.append(_amount(value.untyped_storage().nbytes(), batch))
        price.needs_grad = price.needs_grad or value.requires_grad
        price.output_bytes = _sum(price.output_bytes, _amount(value.numel() * value.element_size(), batch))
        return Leaf(spec_of(value), places[storage], storage in record.fixed)

    price.output = map_leaves(leaf, record.output)


def _transient(record: Recording, *, backward: bool, kept: set[int], batch: int) -> Amount:
    """The most bytes that are alive at one operator and belong to nobody outside the call."""
    steps = [operation for operation in record.operations if operation.backward == backward]
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, operation in enumerate(steps):
        for storage in operation.writes:
            first.setdefault(storage, index)
        for storage in (*operation.reads, *operation.writes):
            last[storage] = index
    inner = [storage for storage in first if storage in record.made and storage not in kept]
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for storage in inner:
        begins.setdefault(first[storage], []).append(storage)
        ends.setdefault(last[storage], []).append(storage)
    best = alive = NOTHING
    for index in range(len(steps)):
        alive = _sum(alive, total(record.made[storage] for storage in begins.get(index, ())))
        if alive.at(batch) > best.at(batch):
            best = alive
        gone = total(record.made[storage] for storage in ends.get(index, ()))
        alive = Amount(alive.each - gone.each, alive.fixed - gone.fixed)
    return best


def _amount(number: int, batch: int) -> Amount:
    return amount_of(number, batch, False)


def _shared(amount: Amount, every: int) -> Amount:
    """The mean of what is moved once in ``every`` steps, rounded up."""
    return amount if every == 1 else Amount(math.ceil(amount.each / every), math.ceil(amount.fixed / every))


def _sum(first: Amount, second: Amount) -> Amount:
    return Amount(first.each + second.each, first.fixed + second.fixed)


def total(amounts: Iterable[Amount]) -> Amount:
    """The sum of several amounts."""
    each = fixed = 0
    for amount in amounts:
        each += amount.each
        fixed += amount.fixed
    return Amount(each, fixed)


__all__ = ["Leaf", "Operation", "Price", "price_of", "sample_of", "total"]
