"""Prices the calls that graph nodes make; calls of one form are recorded once."""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils import _pytree as pytree

from fxsparse.cost_model.attention import Attention
from fxsparse.cost_model.recurrent import Recurrent

from ..capture.clone import clone_modules
from ..leaves import Form, flatten_call, leaves_of, map_leaves
from ..recurrent import recurrent
from .alike import Alike
from .device_free import device_free, on_meta
from .price import Leaf, Price, price_of, sample_of
from .products import attention
from .recording import Amount, BatchLeak, Recorder, Recording, Spec, record_call, spec_of, storage_of
from .recurrences import FEW_STEPS, at_steps, extrapolated, module_workload, recurrent_workload, time_axis

_META = torch.device("meta")
_SIMPLE = (int, float, str, bool, type(None), torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
_NAMED_PRODUCTS = frozenset(
    (
        *(torch.matmul, torch.mm, torch.bmm, torch.mv, operator.matmul, operator.imatmul, "matmul", "mm", "bmm", "mv", "__matmul__"),
        *(torch.addmm, torch.baddbmm, "addmm", "baddbmm", torch.einsum, torch.functional.einsum),
    )
)


@dataclass(frozen=True)
class Held:
    """A tensor in a graph: its form, and whose storage it lives in.

    Attributes:
        owner: the node that made the storage, and which of its storages; ("", NAME) for a parameter or buffer.
        node: the node whose value it is.
        fixed: it depends on no sample. parameter: its storage is a parameter's.
    """

    spec: Spec
    owner: tuple[str, int | str]
    node: str = ""
    fixed: bool = False
    parameter: bool = False


@dataclass
class InnerCall:
    """A call of a captured module by a module that keeps its Python.

    Attributes:
        storages: of each tensor argument, by the tensor's id. results: storages of the tensors that it returns, in order.
    """

    path: str
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    storages: dict[int, int]
    results: list[int]


@dataclass
class Answer:
    """The price of a call, the parameters and buffers that it read by itself, and the captured modules that it called.

    Attributes:
        places: of the storages that it gave to those modules or got back: its inputs ("in", i), or ("inner", i).
        spaces: bytes of what it made for them.
    """

    price: Price
    attributes: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    inner: list[InnerCall] = field(default_factory=list)
    places: dict[int, tuple[str, int]] = field(default_factory=dict)
    spaces: dict[int, Amount] = field(default_factory=dict)


class CallPricer:
    """Prices calls at one batch size, which stands for the samples.

    Args:
        exclusive: nothing but the number of samples has that size.
    """

    def __init__(self, batch: int, exclusive: bool) -> None:
        self.batch = batch
        self.exclusive = exclusive
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: dict[Any, Answer] = {}
        self._alike = Alike(batch, exclusive)

    def function(self, target: Any, args: Any, kwargs: Any) -> Answer:
        """A call of a function, or of a tensor's method if the target is its name."""
        leaves, form = flatten_call(args, kwargs)
        key = _key((target, form), leaves)
        if key is None or key not in self._known:
            answer = Answer(self._priced(target, None, leaves, form, lambda: (_callable(target),)))
            if key is None:
                return answer
            self._known[key] = answer
        return self._known[key]

    def module(self, module: nn.Module, args: Any, kwargs: Any, inside: dict[str, str]) -> Answer:
        """A call of a module by its own Python.

        Args:
            inside: the captured modules below it, from their names in it to their paths; they are left out of the price.
        """
        leaves, form = flatten_call(args, kwargs)
        own = None if inside else module_key(module)
        key = None if own is None else _key((own, form), leaves)
        attributes = _tensors_of(module)
        if key is not None and key in self._known:
            return Answer(self._known[key].price, attributes)
        answer = Answer(Price(operator=type(module).__name__), attributes)

        def faked() -> tuple[Any, ...]:
            twin = clone_modules(module, convert=self._meta if self._on_meta(module, leaves, attributes) else self._faked)
            return twin, [*twin.parameters(), *twin.buffers()], inside, answer

        answer.price = self._priced(module, own, leaves, form, faked)
        if key is not None:
            self._known[key] = answer
        return answer

    def _on_meta(self, target: Any, leaves: list[Any], attributes: list[tuple[str, torch.Tensor]]) -> bool:
        devices = [leaf.spec.device for leaf in leaves if isinstance(leaf, Held)] + [tensor.device for _, tensor in attributes]
        return device_free(target) and all(on_meta(device) for device in devices)

    @staticmethod
    def _meta(tensor: torch.Tensor) -> torch.Tensor:
        found = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found

    def _faked(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            return tensor
        with self.mode:
            found: torch.Tensor = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        return nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found

    def _priced(self, target: Any, own: Any, leaves: list[Any], form: Form, prepare: Callable[[], tuple[Any, ...]]) -> Price:
        """The price of a call: from one that is alike, or recorded."""
        held = list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Held)))
        specs = [item.spec for item in held]
        key = None
        if held and not any(item.fixed for item in held) and (own is not None or not isinstance(target, nn.Module)):
            if isinstance(target, nn.Module) and len(leaves) == 1:
                price = self._alike.convolution(target, specs[0], {name: spec_of(item) for name, item in target.named_parameters()})
                if price is not None:
                    return price
            places = {item: index for index, item in enumerate(held)}
            rest = (form, tuple((places[leaf], leaf.parameter) if isinstance(leaf, Held) else leaf for leaf in leaves))
            key = self._alike.key_of(target, None if own is None else sizeless(own), specs, rest) if _hashable(rest) else None
            price = None if key is None else self._alike.find(key, specs[0])
            if price is not None:
                return price
        price = self._few_steps(target, leaves, form, *prepare())
        if key is not None:
            self._alike.learn(key, specs[0], price)
        return price

    def _few_steps(self, target: Any, leaves: list[Any], form: Form, *rest: Any) -> Price:
        """A recorded call; many steps of a recurrent layer are priced from a few."""
        args, kwargs = form.fill(leaves)
        x = args[0] if args and isinstance(args[0], Held) else None
        axis = time_axis(target, args, x.spec if x is not None else None)
        if x is None or axis is None or x.spec.shape[axis] <= FEW_STEPS[1]:
            return self._record(target, leaves, form, *rest)
        steps = x.spec.shape[axis]
        if self.exclusive and steps == self.batch:
            raise BatchLeak("its number of steps is the inputs' first size")

        def with_steps(number: int) -> Price:
            shorter = replace(x, spec=at_steps(x.spec, axis, number))
            return self._record(target, [shorter if leaf is x else leaf for leaf in leaves], form, *rest)

        whole = self._whole(target, args, kwargs, ())
        assert whole is not None
        return extrapolated(with_steps(FEW_STEPS[0]), with_steps(FEW_STEPS[1]), steps, sample_of(whole, self.batch))

    def _record(
        self,
        target: Any,
        leaves: list[Any],
        form: Form,
        function: Callable[..., Any],
        attributes: list[torch.Tensor] | None = None,
        inside: dict[str, str] | None = None,
        answer: Answer | None = None,
    ) -> Price:
        held = list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Held)))
        attributes = attributes or []
        devices = [item.spec.device for item in held]
        quick = bool(held) and self._on_meta(target, leaves, []) and all(tensor.is_meta for tensor in attributes)

        def call(tensors: list[torch.Tensor], recorder: Recorder) -> Any:
            places = dict(zip(held, tensors, strict=True))
            values = [places[leaf] if isinstance(leaf, Held) else leaf for leaf in leaves]
            args, kwargs = form.fill(values)
            if not inside:
                return function(*args, **kwargs)
            assert isinstance(function, nn.Module)
            assert answer is not None
            with _children_apart(function, inside, recorder, answer.inner):
                return function(*args, **kwargs)

        record, sources = record_call(
            call,
            [item.spec._replace(device=_META) if quick else item.spec for item in held],
            mode=nullcontext() if quick else self.mode,
            batch=self.batch,
            exclusive=self.exclusive,
            fixed=[item.fixed for item in held],
            parameters=[tensor for tensor in attributes if isinstance(tensor, nn.Parameter)],
            buffers=[tensor for tensor in attributes if not isinstance(tensor, nn.Parameter)],
        )
        if answer is not None:
            _place(answer, record, sources, self.batch)
        parameters = {storage_of(tensor) for tensor, item in zip(sources, held, strict=True) if item.parameter}
        parameters |= {storage_of(tensor) for tensor in attributes if isinstance(tensor, nn.Parameter)}
        args, kwargs = form.fill(leaves)
        whole = self._whole(target, args, kwargs, record.operations)
        price = price_of(
            record,
            sources,
            batch=self.batch,
            operator=_operator_name(target),
            contraction="einsum" if not isinstance(target, nn.Module) and target in _NAMED_PRODUCTS else "linear",
            attributes=attributes,
            parameters=parameters,
            whole=whole,
            inner=answer.places if answer is not None else {},
        )
        if quick:
            price.output = map_leaves(lambda leaf: leaf.on(devices[0]) if isinstance(leaf, Leaf) else leaf, price.output)
        if self.exclusive:
            for work in price.work:
                _refuse_leak(work, self.batch)
        price.learned = tuple(
            slot
            for slot, (item, tensor) in enumerate(zip(held, sources, strict=True))
            if tensor.requires_grad and not item.spec.requires_grad
        )
        return price

    def _whole(self, target: Any, args: Any, kwargs: Any, operations: Any) -> Recurrent | Attention | None:
        """The one workload of a call that torch breaks into many operators."""
        if target is F.scaled_dot_product_attention:
            if any(operation.name.startswith("_scaled_dot_product") for operation in operations):
                return None
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            query, key, value = (given[name] for name in names[:3])
            with self.mode:
                tensors = [
                    torch.empty(item.spec.shape, device=item.spec.device, requires_grad=item.spec.requires_grad)
                    for item in (query, key, value)
                ]
            found = attention(self.batch, *tensors, causal=bool(given.get("is_causal", False)), backward="math")
            return found.workload if isinstance(found.workload, Attention) else None
        if target is recurrent:
            return recurrent_workload(self.batch, *specs_of(args))
        if isinstance(target, nn.RNNBase) and args and isinstance(args[0], Held) and len(args[0].spec.shape) == 3:
            return module_workload(target, args[0].spec)
        return None


def _refuse_leak(work: dict[str, Any], batch: int) -> None:
    """Raises BatchLeak if a size that is no number of samples is a multiple of the batch."""
    for name, value in work.items():
        sizes = value if isinstance(value, (list, tuple)) else (value,)
        numbers = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool)]
        if work["kind"] != "pointwise" and any(size and size % batch == 0 for size in numbers):
            raise BatchLeak(f"its {name} grows with the inputs' first size")


def _tensors_of(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    if module._modules:
        return [*module.named_parameters(), *module.named_buffers()]
    return [(name, tensor) for name, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None]


def specs_of(arguments: Any) -> Any:
    """Arguments with the forms of tensors in place of tensors."""
    return pytree.tree_map_only(Held, lambda item: item.spec, arguments)


def module_key(module: nn.Module) -> Any:
    """What a module's price depends on beside its arguments; None if that cannot be said."""
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.") or "forward" in module.__dict__:
        return None
    if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
        return None
    config = []
    for name, value in module.__dict__.items():
        plain = isinstance(value, (*_SIMPLE, types.FunctionType, types.BuiltinFunctionType))
        if plain or (isinstance(value, (tuple, list)) and all(isinstance(item, _SIMPLE) for item in value)):
            config.append((name, tuple(value) if isinstance(value, list) else value))
    tensors = [
        (name, None if tensor is None else spec_of(tensor)) for name, tensor in (*module._parameters.items(), *module._buffers.items())
    ]
    children = [(name, None if child is None else module_key(child)) for name, child in module._modules.items()]
    if any(child is not None and key is None for (_, key), child in zip(children, module._modules.values(), strict=True)):
        return None
    return kind, tuple(config), tuple(tensors), tuple(children)


def sizeless(key: Any) -> Any:
    """A module's key without its sizes: of its tensors only dtypes and whether they learn."""
    kind, config, tensors, children = key
    settings = tuple(item for item in config if item[0] not in ("num_features", "normalized_shape"))
    return kind, settings, tuple((name, None if spec is None else spec[2:]) for name, spec in tensors), children


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _key(head: Any, leaves: list[Any]) -> Any:
    """A hashable description of a call; None if an argument cannot be part of one."""
    parts: list[Any] = []
    seen: dict[Held, int] = {}
    for leaf in leaves:
        if isinstance(leaf, Held):
            parts.append((leaf.spec, leaf.fixed, leaf.parameter, seen.setdefault(leaf, len(seen))))
        elif isinstance(leaf, slice):
            bounds = (leaf.start, leaf.stop, leaf.step)
            if not all(isinstance(bound, _SIMPLE) for bound in bounds):
                return None
            parts.append(("slice", *bounds))
        elif isinstance(leaf, _SIMPLE) or leaf is Ellipsis:
            parts.append((type(leaf), leaf))
        else:
            return None
    try:
        key = (head, tuple(parts))
        hash(key)
    except TypeError:
        return None
    return key


def _callable(target: Any) -> Callable[..., Any]:
    if isinstance(target, str):
        return lambda tensor, *args, **kwargs: getattr(tensor, target)(*args, **kwargs)
    found: Callable[..., Any] = target
    return found


def _operator_name(target: Any) -> str:
    if isinstance(target, nn.Module):
        return type(target).__name__
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


@contextmanager
def _children_apart(module: nn.Module, inside: dict[str, str], recorder: Recorder, calls: list[InnerCall]) -> Iterator[None]:
    """The module's captured children run unnoticed; what they return is cut off from what they were given."""

    def stand_in(child: nn.Module, path: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            with recorder.pause():
                out = type(child).forward(child, *args, **kwargs)
                tensors = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, torch.Tensor)]
                found = pytree.tree_map_only(torch.Tensor, lambda tensor: _cut(tensor, recorder), out)
                results = [leaf for leaf in leaves_of(found) if isinstance(leaf, torch.Tensor)]
                recorder.record.tensors += [*tensors, *results]
                storages = {id(tensor): storage_of(tensor) for tensor in tensors}
                calls.append(InnerCall(path, (args, kwargs), storages, [storage_of(tensor) for tensor in results]))
                return found

        return forward

    replaced = []
    for name, path in inside.items():
        child = module.get_submodule(name)
        child.__dict__["forward"] = stand_in(child, path)
        replaced.append(child)
    try:
        yield
    finally:
        for child in replaced:
            child.__dict__.pop("forward", None)


def _place(answer: Answer, record: Recording, sources: list[torch.Tensor], batch: int) -> None:
    """Names the storages that go into and come out of captured children."""
    answer.places = {storage_of(tensor): ("in", slot) for slot, tensor in enumerate(sources)}
    for call in answer.inner:
        for storage in call.storages.values():
            if storage not in answer.places:
                answer.places[storage] = ("inner", len(answer.places))
                answer.spaces[answer.places[storage][1]] = record.made.get(storage, Amount(0, 0))
        for storage in call.results:
            answer.places[storage] = ("inner", len(answer.places))


def _cut(tensor: torch.Tensor, recorder: Recorder) -> torch.Tensor:
    """A tensor of the same form without its history."""
    cut = tensor.detach().clone()
    if not tensor.requires_grad:
        return cut
    recorder.leaves.append(cut.requires_grad_())
    return cut.clone()


__all__ = ["Answer", "CallPricer", "Held", "InnerCall", "module_key", "specs_of"]
