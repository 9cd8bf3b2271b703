"""Runs a call on fake tensors, forward and backward, and notes every operator below autograd and every tensor saved for backward.

Nothing is computed: fake tensors have shapes and storages only. What is seen is what torch itself dispatches on that device, so
that it does not matter how the model wrote it. Bytes and elements are pairs (per sample, fixed); they are told apart by running
with a batch size that no layer has by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .operators import CONTRACTIONS, FREE, Kind, kind_of, plain_name

_DEVICE = torch.ops.prim.device.default


class Amount(NamedTuple):
    """Something that grows with the batch: ``each`` for a sample, and what is ``fixed``."""

    each: int
    fixed: int

    def at(self, batch: int) -> int:
        return self.each * batch + self.fixed


class BatchLeak(Exception):
    """Something does not grow in proportion to the first size of the inputs, which therefore is no number of samples."""


def amount_of(number: int, batch: int, exclusive: bool) -> Amount:
    """A number of bytes or elements as a pair.

    Args:
        exclusive: ``batch`` is a size that nothing else has, so that a multiple of its square cannot be.

    Raises: BatchLeak.
    """
    each, rest = divmod(number, batch)
    if rest:
        return Amount(0, number)
    if exclusive and each and each % batch == 0:
        raise BatchLeak(_LEAK)
    return Amount(each, 0)


_LEAK = "it grows with the square of the inputs' first size"


class Spec(NamedTuple):
    """A tensor's form, hashable."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @property
    def stored_elements(self) -> int:
        """Elements that differ in address: an expanded dimension counts once."""
        return _distinct(self.shape, self.stride)


def spec_of(tensor: torch.Tensor) -> Spec:
    """The form of a tensor."""
    return Spec(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device, tensor.requires_grad)


def _distinct(shape: Sequence[int], stride: Sequence[int]) -> int:
    total = 1
    for size, step in zip(shape, stride, strict=True):
        if step or not size:
            total *= size
    return total


@dataclass
class Operation:
    """One operator that ran: the storages it touched, and what of them it moved.

    ``kind`` None is a contraction or an operator that is not known; ``arguments`` are kept for contractions only.
    """

    name: str
    kind: Kind | None
    backward: bool
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    read_bytes: Amount
    write_bytes: Amount
    elements: Amount
    arguments: tuple[Any, ...] = ()
    output: Any = None
    every: int = 1
    is_contraction: bool = False


@dataclass
class Recording:
    """What one call did.

    Attributes:
        operations: in order; those of the backward pass are marked.
        output: what it returned. saved: storages that autograd keeps, with their bytes. made: bytes of every storage made, by storage.
        tensors: keeps every tensor alive, so that no storage's address is used twice.
        gradients: of each source, the storage of its gradient. seeds: storages of the outputs' gradients.
        fixed: storages that depend on no sample. error: why the backward pass could not be followed.
    """

    operations: list[Operation] = field(default_factory=list)
    output: Any = None
    saved: dict[int, Amount] = field(default_factory=dict)
    made: dict[int, Amount] = field(default_factory=dict)
    tensors: list[torch.Tensor] = field(default_factory=list)
    gradients: dict[int, int] = field(default_factory=dict)
    seeds: set[int] = field(default_factory=set)
    fixed: set[int] = field(default_factory=set)
    error: str | None = None


def storage_of(tensor: torch.Tensor) -> int:
    """The identity of a tensor's storage, valid while the tensor lives."""
    return int(tensor.untyped_storage()._cdata)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operators while it is active.

    Args:
        batch: the size that marks what grows with the samples. exclusive: nothing else has that size.
    """

    def __init__(self, batch: int, exclusive: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.batch = batch
        self.exclusive = exclusive
        self.record = Recording()
        self.backward = False
        self.paused = 0
        self.leaves: list[torch.Tensor] = []

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Nothing is noted inside."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    def amount(self, number: int) -> Amount:
        """A number of bytes or elements as a pair."""
        return amount_of(number, self.batch, self.exclusive)

    def of_storage(self, tensor: torch.Tensor) -> Amount:
        """The bytes of a tensor's whole storage."""
        return self.amount(tensor.untyped_storage().nbytes())

    def save(self, tensor: torch.Tensor) -> torch.Tensor:
        """The hook for what autograd saves."""
        if not self.paused:
            self.record.tensors.append(tensor)
            self.record.saved.setdefault(storage_of(tensor), self.of_storage(tensor))
        return tensor

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if function.namespace == "prim":
            return function(*args, **kwargs)
        out = function(*args, **kwargs)
        if not self.paused:
            self._note(function, args, kwargs, out)
        return out

    def _note(self, function: Any, args: Any, kwargs: Any, out: Any) -> None:
        record = self.record
        inputs, outputs = list(_tensors(args)), list(_tensors((out,)))
        if kwargs:
            inputs += _tensors(tuple(kwargs.values()))
        record.tensors += outputs
        record.tensors += inputs
        sources = [storage_of(tensor) for tensor in inputs]
        results = [storage_of(tensor) for tensor in outputs]
        fresh = [(storage, tensor) for storage, tensor in zip(results, outputs, strict=True) if storage not in sources]
        for storage, tensor in fresh:
            record.made.setdefault(storage, self.of_storage(tensor))
        if all(storage in record.fixed for storage in sources):
            record.fixed.update(storage for storage, _ in fresh if sources or not record.made[storage].each)
        name = plain_name(function)
        if name in FREE or function.is_view:
            return
        if (name == "sparsify" and not args[4]) or (name == "pack_sparse" and not args[2]):
            return
        is_contraction = name in CONTRACTIONS
        overwritten = name in ("copy", "fill", "zero", "bernoulli", "uniform", "normal") and not fresh
        read = self._bytes(dict(list(zip(sources, inputs, strict=True))[int(overwritten) :]))
        written = outputs if outputs else inputs[:1] if name.startswith("_foreach") else []
        every = 1
        if name in ("refresh_threshold", "count_kept"):
            every = int(args[4])
            if name == "refresh_threshold" and not args[8]:
                return
        record.operations.append(
            Operation(
                name=name,
                kind=None if is_contraction else kind_of(function, name),
                backward=self.backward,
                reads=tuple(sources),
                writes=tuple(results),
                read_bytes=read,
                write_bytes=self._bytes({id(tensor): tensor for tensor in written}),
                elements=self._elements([*inputs, *outputs]),
                arguments=args if is_contraction else (),
                output=out if is_contraction else None,
                every=every,
                is_contraction=is_contraction,
            )
        )

    def _bytes(self, tensors: dict[int, torch.Tensor]) -> Amount:
        each = fixed = 0
        for tensor in tensors.values():
            amount = self.amount(_distinct(tensor.shape, tensor.stride()) * tensor.element_size())
            each += amount.each
            fixed += amount.fixed
        return Amount(each, fixed)

    def _elements(self, tensors: list[torch.Tensor]) -> Amount:
        return self.amount(max((_distinct(tensor.shape, tensor.stride()) for tensor in tensors), default=0))


class _Source(torch.autograd.Function):
    """A tensor of a given form that is no leaf, so that it may be changed in place; notes its gradient."""

    @staticmethod
    def forward(ctx: Any, seed: torch.Tensor, spec: Spec, slot: int, note: Callable[[int, torch.Tensor], None]) -> torch.Tensor:
        ctx.slot, ctx.note = slot, note
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if gradients[0] is not None:
            ctx.note(ctx.slot, gradients[0])
        return None, None, None, None


def record_call(
    call: Callable[[list[torch.Tensor], Recorder], Any],
    specs: Sequence[Spec],
    *,
    mode: Any,
    batch: int,
    exclusive: bool,
    fixed: Sequence[bool],
    parameters: Sequence[torch.Tensor] = (),
    buffers: Sequence[torch.Tensor] = (),
) -> tuple[Recording, list[torch.Tensor]]:
    """Runs ``call`` on fake tensors of the given forms, then its backward pass. Returns the recording and the tensors made for it.

    Args:
        fixed: for each tensor whether it is computed from parameters alone.
        parameters, buffers: fake tensors that the call reads by itself.

    Raises: what the call raises.
    """
    recorder = Recorder(batch, exclusive)
    record = recorder.record

    def note(slot: int, gradient: torch.Tensor) -> None:
        record.tensors.append(gradient)
        record.gradients[slot] = storage_of(gradient)

    with mode, torch.enable_grad():
        seed = torch.empty((), requires_grad=True)
        sources: list[torch.Tensor] = []
        for slot, spec in enumerate(specs):
            if spec.requires_grad:
                sources.append(_Source.apply(seed, spec, slot, note))
            else:
                sources.append(torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device))
        record.tensors += sources
        record.fixed.update(storage_of(tensor) for tensor, is_fixed in zip(sources, fixed, strict=True) if is_fixed)
        record.fixed.update(storage_of(tensor) for tensor in (*parameters, *buffers))
        with recorder, torch.autograd.graph.saved_tensors_hooks(recorder.save, _same):
            record.output = call(list(sources), recorder)
        _follow_backward(recorder, seed, parameters)
    return record, sources


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _follow_backward(recorder: Recorder, seed: torch.Tensor, parameters: Sequence[torch.Tensor]) -> None:
    record = recorder.record
    learning: dict[int, torch.Tensor] = {}
    for leaf in pytree.tree_leaves(record.output):
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad and leaf.grad_fn is not None:
            learning.setdefault(id(leaf), leaf)
    if not learning:
        return
    outputs = list(learning.values())
    gradients = [torch.empty_like(leaf) for leaf in outputs]
    record.tensors += gradients
    record.seeds = {storage_of(gradient) for gradient in gradients}
    wanted = [seed, *recorder.leaves, *(parameter for parameter in parameters if parameter.requires_grad)]
    recorder.backward = True
    try:
        with recorder:
            found = torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        record.error = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return
    record.tensors += [gradient for gradient in found if gradient is not None]


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
