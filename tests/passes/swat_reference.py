"""SWAT by its definition, in plain autograd operations: what the compiled graphs are compared with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxsparse as fxs

Contract = Callable[[Tensor, Tensor], Tensor]


def top_k(scores: Tensor, sparsity: float, kept_dims: Sequence[int] = ()) -> Tensor:
    """True where a score is among the ceil((1 - sparsity) n) largest of its slice, ties included. One slice for each index of kept_dims."""
    rest = [dim for dim in range(scores.dim()) if dim not in kept_dims]
    rows = scores.permute(*kept_dims, *rest).reshape(math.prod(scores.shape[dim] for dim in kept_dims), -1)
    count = math.ceil((1 - sparsity) * rows.shape[1] - 1e-6)
    tau = rows.sort(dim=1, descending=True).values[:, count - 1]
    return scores >= tau.reshape([scores.shape[dim] if dim in kept_dims else 1 for dim in range(scores.dim())])


def straight_through(value: Tensor, mask: Tensor) -> Tensor:
    """value where the mask is true, 0 elsewhere; the gradient passes whole."""
    return value + (value * mask - value).detach()


def swat(contract: Contract, x: Tensor, w: Tensor, w_mask: Tensor | float = 1.0, a_mask: Tensor | float = 1.0) -> Tensor:
    """contract(x, w_hat), whose gradient for w is that of contract(a_hat, w_hat)."""
    w_hat = straight_through(w, torch.as_tensor(w_mask, dtype=w.dtype)) if not isinstance(w_mask, Tensor) else straight_through(w, w_mask)
    out = contract(x, w_hat.detach())
    learned = contract((x * a_mask).detach(), w_hat)
    return out + (learned - learned.detach())


def gradients(out: Tensor, *leaves: Tensor) -> list[Tensor]:
    """The gradients of a sum in which every output element has another weight."""
    weights = torch.linspace(-1.0, 2.0, out.numel(), dtype=torch.float64).cos().reshape(out.shape).to(out.dtype)
    return list(torch.autograd.grad((out * weights).sum(), leaves))


def compiled_copy(model: nn.Module, *example: Any, **settings: Any) -> fxs.CompiledModel:
    """A copy of the model, compiled with SWAT on every contraction."""
    settings = {"weight_sparsity": 0.7, "dense_first": False, **settings}
    return fxs.compile(copy.deepcopy(model), fxs.SWAT(**settings), example)


def assert_swat(
    model: nn.Module,
    x: Tensor,
    reference: Callable[..., Tensor],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    others: Sequence[Tensor] = (),
    **settings: Any,
) -> fxs.CompiledModel:
    """The compiled model's output and all gradients are those of ``reference(x, *others, **parameters by name)``."""
    if type(model).__module__.startswith("torch.nn.modules") and not others:
        model = nn.Sequential(model)
    compiled = compiled_copy(model, x.detach(), *others, **settings)
    assert compiled.report.changes, str(compiled.report)
    assert not compiled.report.skips, str(compiled.report)
    names = [name for name, _ in model.named_parameters()]
    found_x = x.detach().clone().requires_grad_()
    found = compiled(found_x, *others)
    expected_x = x.detach().clone().requires_grad_()
    parameters = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    expected = reference(
        expected_x, *others, **{name.removeprefix("0.").replace(".", "_"): parameter for name, parameter in parameters.items()}
    )
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    found_grads = gradients(found, found_x, *(compiled.get_parameter(name) for name in names))
    expected_grads = gradients(expected, expected_x, *parameters.values())
    for name, a, b in zip(["x", *names], found_grads, expected_grads, strict=True):
        scale = float(b.abs().max()) + 1e-12
        torch.testing.assert_close(a / scale, b / scale, rtol=rtol, atol=atol, msg=lambda text, name=name: f"gradient of {name}: {text}")
    return compiled
