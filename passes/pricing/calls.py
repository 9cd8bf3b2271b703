"""Prices the calls that graph nodes make; calls of one form are recorded once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fxsparse.cost_model.attention import Attention
from fxsparse.cost_model.recurrent import Recurrent

from ..capture.clone import clone_modules
from ..leaves import Form, flatten_call, map_leaves
from ..recurrent import recurrent
from .alike import Alike
from .children import Answer, children_apart, place
from .device_free import device_free, on_meta
from .keys import Held, call_key, is_hashable, module_key, sizeless, specs_of
from .price import Leaf, Price, price_of, sample_of
from .products import attention
from .recording import BatchLeak, Recorder, record_call, spec_of, storage_of
from .recurrences import FEW_STEPS, at_steps, extrapolated, module_workload, recurrent_workload, time_axis

_META = torch.device("meta")
_NAMED_PRODUCTS = frozenset(
    (
        *(torch.matmul, torch.mm, torch.bmm, torch.mv, operator.matmul, operator.imatmul, "matmul", "mm", "bmm", "mv", "__matmul__"),
        *(torch.addmm, torch.baddbmm, "addmm", "baddbmm", torch.einsum, torch.functional.einsum),
    )
)


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
        key = call_key((target, form), leaves)
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
        key = None if own is None else call_key((own, form), leaves)
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
            key = self._alike.key_of(target, None if own is None else sizeless(own), specs, rest) if is_hashable(rest) else None
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
            with children_apart(function, inside, recorder, answer.inner):
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
            place(answer, record, sources, self.batch)
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


def _callable(target: Any) -> Callable[..., Any]:
    if isinstance(target, str):
        return lambda tensor, *args, **kwargs: getattr(tensor, target)(*args, **kwargs)
    found: Callable[..., Any] = target
    return found


def _operator_name(target: Any) -> str:
    if isinstance(target, nn.Module):
        return type(target).__name__
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))
