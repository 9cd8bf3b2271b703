"""The form of one call of a model: its arguments with shapes and dtypes in place of tensors, as plain data and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..errors import ExportError

_SMALLEST_DYNAMIC = 2


@dataclass(frozen=True)
class TensorForm:
    """Shape and dtype of a tensor argument."""

    shape: tuple[int, ...]
    dtype: str

    def zeros(self, batch: int | None = None) -> torch.Tensor:
        """A tensor of zeros on the CPU, its first size replaced if ``batch`` is given."""
        shape = self.shape if batch is None else (batch, *self.shape[1:])
        return torch.zeros(shape, dtype=getattr(torch, self.dtype))


@dataclass(frozen=True)
class CallForm:
    """Positional and keyword arguments of one call, each tensor as its TensorForm."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> CallForm:
        """The form of a call."""
        positional, named = pytree.tree_map_only(torch.Tensor, _form, (tuple(args), dict(kwargs or {})))
        return cls(positional, named)

    @property
    def forms(self) -> list[TensorForm]:
        """The tensors of the call, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, TensorForm)]

    @property
    def batch(self) -> int | None:
        """The first size of the first tensor that has one."""
        return next((form.shape[0] for form in self.forms if form.shape), None)

    def zeros(self, *, dynamic: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of zeros. With ``dynamic``, a batch of 1, which an exporter would take for a constant, is made 2."""
        batch = self.batch

        def made(form: TensorForm) -> torch.Tensor:
            grown = dynamic and batch == 1 and form.shape[:1] == (1,)
            return form.zeros(_SMALLEST_DYNAMIC if grown else None)

        args, kwargs = pytree.tree_map_only(TensorForm, made, (self.args, self.kwargs))
        return args, kwargs

    def shapes(self, batch: Any) -> tuple[Any, Any]:
        """For torch.export, the dynamic sizes of each argument: ``batch`` for the first size of all that share the batch's."""
        own = self.batch

        def dims(leaf: Any) -> Any:
            return {0: batch} if isinstance(leaf, TensorForm) and leaf.shape and leaf.shape[0] == own else None

        args, kwargs = pytree.tree_map(dims, (self.args, self.kwargs))
        return args, kwargs

    def to_dict(self) -> dict[str, Any] | None:
        """The form as JSON-able data; None where an argument is neither a tensor nor plain."""

        def plain(value: Any) -> Any:
            if isinstance(value, TensorForm):
                return {"shape": list(value.shape), "dtype": value.dtype}
            if value is None or isinstance(value, (bool, int, float, str)):
                return {"value": value}
            raise TypeError

        try:
            return {"args": [plain(value) for value in self.args], "kwargs": {key: plain(value) for key, value in self.kwargs.items()}}
        except TypeError:
            return None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CallForm:
        """The form that plain data describes."""

        def full(item: Mapping[str, Any]) -> Any:
            return TensorForm(tuple(item["shape"]), item["dtype"]) if "shape" in item else item["value"]

        return cls(tuple(full(item) for item in data["args"]), {key: full(item) for key, item in data["kwargs"].items()})


def call_form(given: Sequence[Any] | torch.Tensor | None, known: CallForm | None) -> CallForm:
    """The form of the call to export: of the inputs given, or of those that the model was compiled with.

    Raises: ExportError if there are neither.
    """
    if given is not None:
        inputs = (given,) if isinstance(given, torch.Tensor) else given
        if not isinstance(inputs, (tuple, list)):
            raise ExportError(f"example_inputs is a tuple of the model's positional arguments, got {type(given).__name__}")
        return CallForm.of(inputs)
    if known is None or not known.forms:
        raise ExportError("the model was compiled without example inputs, and an export needs their shapes: export_onnx(path, (x,))")
    return known


def _form(tensor: torch.Tensor) -> TensorForm:
    return TensorForm(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
