"""fxs.check: the compiled model against the original, on copies, with the same random numbers."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxsparse.passes.capture.rebuild import tensors_in
from fxsparse.passes.capture.watch import RandomWatch
from fxsparse.passes.state import STATE

from .compiled_model import CompiledModel
from .errors import VerificationError


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """How a compiled model compares with its original.

    Attributes:
        equal: whether every output, gradient and buffer is equal bit for bit.
        differences: largest absolute difference of each one that is not, by name ("output 0", "grad conv1.weight", ...).
        compared: how many tensors were compared.
    """

    equal: bool
    compared: int
    differences: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        if self.equal:
            return f"equal bit for bit: {self.compared} outputs, gradients and buffers"
        rows = sorted(self.differences.items(), key=lambda item: -item[1])
        lines = [f"{len(rows)} of {self.compared} outputs, gradients and buffers differ:"]
        return "\n".join([*lines, *(f"  {name}: by {size:.3g}" for name, size in rows[:20])])

    def raise_if_different(self) -> None:
        """Raises VerificationError with the table of differences unless all is equal."""
        if not self.equal:
            raise VerificationError(f"the compiled model differs from its original: {self}")


def check(
    compiled: CompiledModel,
    model: nn.Module,
    example_inputs: Sequence[Any] | torch.Tensor,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    train: bool = True,
) -> CheckReport:
    """Runs forward and backward of both on copies, from the same random state, and compares everything that comes out.

    Neither model, its buffers, its gradients nor any random state is changed. At a neutral policy all must be equal.

    Args:
        example_inputs, example_kwargs: real values; floating-point tensors get a gradient, which is compared too.
        train: in train mode, else in eval mode.
    """
    args = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    arguments = (args, dict(example_kwargs or {}))
    with _restored_randomness():
        learns = True
        try:
            expected = _run(copy.deepcopy(model), arguments, train)
        except RuntimeError:  # some models set requires_grad of their inputs, which must be leaves then
            expected, learns = _run(copy.deepcopy(model), arguments, train, learns=False), False
        own = copy.deepcopy(compiled)
        own.needs_no_attachment()
        found = _run(own, arguments, train, learns=learns)
    return compare(expected, found)


def compare(expected: Mapping[str, Any], found: Mapping[str, Any]) -> CheckReport:
    """A report on two named sets of tensors."""
    differences: dict[str, float] = {}
    for name in expected.keys() | found.keys():
        a, b = expected.get(name), found.get(name)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            if a.shape != b.shape or a.dtype != b.dtype:
                differences[name] = float("inf")
            elif not torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) or not torch.equal(a.isnan(), b.isnan()):
                differences[name] = float((a.double() - b.double()).abs().max()) if not a.is_complex() else float((a - b).abs().max())
        elif isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor) or (a is not b and a != b):
            differences[name] = float("inf")
    return CheckReport(equal=not differences, compared=len(expected.keys() | found.keys()), differences=differences)


def _run(model: nn.Module, arguments: tuple[Any, Any], train: bool, learns: bool = True) -> dict[str, Any]:
    """Outputs, gradients and buffers of one forward and backward, by name; of the inputs too, if those are to learn."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    model.train(train)
    model.zero_grad(set_to_none=True)
    inputs: list[torch.Tensor] = []

    def fresh(tensor: torch.Tensor) -> torch.Tensor:
        leaf = tensor.detach().clone()
        if learns and (leaf.is_floating_point() or leaf.is_complex()):
            inputs.append(leaf.requires_grad_())
            return leaf.view_as(leaf)
        return leaf

    args, kwargs = pytree.tree_map_only(torch.Tensor, fresh, arguments)
    with torch.enable_grad():
        outputs = _leaves(model(*args, **kwargs))
        learning = [out for out in outputs if isinstance(out, torch.Tensor) and out.requires_grad]
        if learning:
            torch.autograd.backward([_weighted_sum(out) for out in learning])
    found: dict[str, Any] = {f"output {i}": out.detach() if isinstance(out, torch.Tensor) else out for i, out in enumerate(outputs)}
    found |= {f"grad of input {i}": leaf.grad for i, leaf in enumerate(inputs)}
    found |= {f"grad {name}": parameter.grad for name, parameter in model.named_parameters()}
    found |= {f"buffer {name}": buffer for name, buffer in model.named_buffers() if not name.startswith(f"{STATE}.")}
    return found


def _leaves(output: Any) -> list[Any]:
    """Everything in a model's output; of an object of a foreign class (a cache, say) its class and its tensors."""
    found: list[Any] = []
    for leaf in pytree.tree_leaves(output):
        inner = [] if isinstance(leaf, torch.Tensor) else tensors_in(leaf)
        found += [type(leaf), *inner] if inner else [leaf]
    return found


def _weighted_sum(out: torch.Tensor) -> torch.Tensor:
    """A real scalar in which every element of ``out`` has another weight, so that no two gradients cancel unseen."""
    weights = torch.cos(torch.arange(out.numel(), device=out.device, dtype=torch.float64)).reshape(out.shape)
    total = (torch.view_as_real(out).sum(-1) if out.is_complex() else out) * weights.to(out.real.dtype if out.is_complex() else out.dtype)
    return total.sum()


@contextmanager
def _restored_randomness() -> Any:
    watch = RandomWatch()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        watch.restore()
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
