"""How the operators of fxsparse are defined: like torch.library.custom_op, at a fraction of its time for a call.

custom_op checks at every call that no output aliases an input and wraps the kernel in Python for each dispatch key; for
operators that take microseconds this is most of their time (22 us against 9 us for a small sparsify). The schema, the fake
and autograd rules, and what torch.library.opcheck demands are the same. An operator here never returns one of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

NAMESPACE = "fxsparse"
REFERENCE = "reference"  # the last argument of operators that have native kernels: whether to do without

_LIBRARY_CLASS: Any = torch.library.Library
LIBRARY = _LIBRARY_CLASS(NAMESPACE, "FRAGMENT")


class Operator:
    """A function as ``torch.ops.fxsparse.<name>``, callable like it."""

    def __init__(self, function: Callable[..., Any], mutates: Iterable[str]) -> None:
        self.name = function.__name__
        self.__doc__ = function.__doc__
        LIBRARY.define(self.name + torch.library.infer_schema(function, mutates_args=tuple(mutates)))
        LIBRARY.impl(self.name, function, "CompositeExplicitAutograd")
        self.overload = getattr(getattr(torch.ops, NAMESPACE), self.name).default

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.overload(*args, **kwargs)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Registers what the operator returns on fake tensors."""
        torch.library.register_fake(f"{NAMESPACE}::{self.name}", function, lib=LIBRARY)
        return function

    def without_derivative(self) -> Operator:
        """Declares that no gradient flows through the operator: its outputs need none, whatever its inputs do."""
        LIBRARY.impl(self.name, torch.library.fallthrough_kernel, "Autograd")
        return self

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]) -> None:
        """Registers the operator's derivative."""
        torch.library.register_autograd(f"{NAMESPACE}::{self.name}", backward, setup_context=setup_context, lib=LIBRARY)


def operator(*, mutates: Iterable[str] = ()) -> Callable[[Callable[..., Any]], Operator]:
    """Makes the decorated function an operator of its name; ``mutates`` names the arguments that it writes to."""
    return lambda function: Operator(function, mutates)


def owned(out: torch.Tensor) -> torch.Tensor:
    """The same values as a tensor that is no view to autograd, so that what follows may write to it in place."""
    return torch.ops.aten._unsafe_view.default(out, out.shape) if out._is_view() else out
