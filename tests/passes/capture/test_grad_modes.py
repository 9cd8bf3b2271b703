"""Regions in which autograd or autocast works otherwise: a graph would lose them, so they keep their Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxsparse as fxs

from .neutral import assert_left, assert_whole, compile_neutral, operators

X = torch.randn(2, 4)


class Inside(nn.Module):
    """A layer, a part with the idea under test, and a layer."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.part = part
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.part(self.first(x)))


class Part(nn.Module):
    """A part with a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)


class NoGrad(Part):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.inner(x).sum()
        return x * scale


class NoGradDecorator(Part):
    @torch.no_grad()
    def scale(self, x: Tensor) -> Tensor:
        return self.inner(x).sum()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x)


class SetGradEnabled(Part):
    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.training):
            scale = self.inner(x).sum()
        return x * scale


class EnableGrad(Part):
    """Changes nothing while gradients are on, and everything under torch.no_grad()."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return self.inner(x)


class InferenceMode(Part):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            scale = 2.0
            self.inner(x.detach())
        return x * scale


class Autocast(Part):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x).float()


class AutocastOff(Part):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.inner(x.float())


MODES = "it changes grad mode, inference mode or autocast inside its forward"


@pytest.mark.parametrize("part", [NoGrad, NoGradDecorator, SetGradEnabled, InferenceMode, Autocast])
def test_part_that_changes_a_mode_keeps_its_python(part: type[Part]) -> None:
    compiled = compile_neutral(Inside(part()), X)
    assert_left(compiled, "part", MODES)
    assert {"", "part.inner"} <= set(compiled.graphs)


@pytest.mark.parametrize("part", [EnableGrad, AutocastOff])
def test_region_that_changes_nothing_while_compiling_keeps_its_python(part: type[Part]) -> None:
    model = part()
    compiled = compile_neutral(model, X)
    assert_left(compiled, "", MODES, {"inner"})
    with torch.no_grad():
        assert compiled(X).requires_grad == model(X).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(X).dtype == model(X).dtype


def test_mode_around_the_whole_forward_keeps_the_root() -> None:
    compiled = compile_neutral(NoGrad(), X)
    assert_left(compiled, "", MODES, {"inner"})


class Detach(Part):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.inner(x).detach() + self.inner.weight.detach().sum()


def test_detach_is_a_node() -> None:
    compiled = compile_neutral(Inside(Detach()), X)
    assert_whole(compiled)
    assert operators(compiled).count("detach") == 2


class DetachInPlace(Part):
    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        y.detach_()
        return x * y


def test_detach_in_place() -> None:
    assert_whole(compile_neutral(Inside(DetachInPlace()), X))


class Reversal(torch.autograd.Function):
    """Old style: the identity whose gradient is turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class ReversalWithSetup(torch.autograd.Function):
    """New style, with setup_context."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class PassThrough(torch.autograd.Function):
    """A forward that makes no node of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * grad


reverse = Reversal.apply
pass_through = PassThrough.apply


class AppliedByReference(Part):
    """Calls ``apply`` through a name that was bound when the module was imported."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(reverse(x) + pass_through(x))


def test_custom_autograd_function_called_by_reference() -> None:
    compiled = compile_neutral(Inside(AppliedByReference()), X)
    assert_left(compiled, "part", "torch.autograd.Function (Reversal)", {"", "part.inner"})


class Applied(Part):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.function.apply(x))


@pytest.mark.parametrize("function", [Reversal, ReversalWithSetup, PassThrough])
def test_custom_autograd_function_keeps_its_backward(function: type[torch.autograd.Function]) -> None:
    compiled = compile_neutral(Inside(Applied(function)), X)
    assert_left(compiled, "part", "it calls a torch.autograd.Function", {"", "part.inner"})


class AppliedToParameter(Part):
    """A straight-through weight: the function's input is no activation."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, PassThrough.apply(self.inner.weight))


def test_custom_autograd_function_of_a_parameter() -> None:
    compiled = compile_neutral(Inside(AppliedToParameter()), X)
    assert "torch.autograd.Function" in compiled.report.left["part"]


class Checkpointed(Part):
    def __init__(self, reentrant: bool, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.inner = layer or nn.Linear(4, 4)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_still_recomputes(reentrant: bool) -> None:
    counter = Counting()
    model = Inside(Checkpointed(reentrant, counter))
    compiled = compile_neutral(model, X)
    assert_left(compiled, "part", "it checkpoints activations")
    assert compiled.part.inner is not counter
    before = compiled.part.inner.layer.weight
    assert before is counter.layer.weight
    saved = saved_by(compiled)
    assert saved == saved_by(model)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh().sigmoid()


def saved_by(model: nn.Module) -> int:
    """How many tensors autograd saves in a forward pass."""
    seen: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (seen.append(t), t)[1], lambda t: t):
        model(X)
    return len(seen)


class SavedHooks(Part):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t):
            return self.inner(x).sigmoid()


class AttentionKernel(Part):
    def forward(self, x: Tensor) -> Tensor:
        q = self.inner(x)[None, None]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return nn.functional.scaled_dot_product_attention(q, q, q)[0, 0]


@pytest.mark.parametrize("part", [SavedHooks, AttentionKernel])
def test_region_with_other_settings_keeps_its_python(part: type[Part]) -> None:
    assert_left(compile_neutral(Inside(part()), X), "part", "it changes a global setting of torch", {"", "part.inner"})


class GradInside(Part):
    """An energy model: its output is a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        energy = self.inner(x).pow(2).sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return force


class NeedsGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.requires_grad_()
        return self.inner(x)


def test_autograd_grad_inside_forward() -> None:
    model = Inside(GradInside())
    fxs.check(fxs.compile(model, None, (X,)), model, (X,)).raise_if_different()


def test_requires_grad_inside_forward() -> None:
    model = NeedsGrad()
    compiled = fxs.compile(model, None, (X.clone(),))
    x = X.clone()
    compiled(x)
    assert x.requires_grad


class AsksRequiresGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.requires_grad else self.inner(x) * 2


def test_branch_on_requires_grad_is_not_frozen() -> None:
    model = AsksRequiresGrad()
    compiled = compile_neutral(model, X)
    assert "" in compiled.report.left
    for x in (X, X.clone().requires_grad_()):
        assert torch.equal(model(x), compiled(x))


class AsksGradMode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if torch.is_grad_enabled() else self.inner(x) * 2


def test_branch_on_the_grad_mode_is_not_frozen() -> None:
    model = AsksGradMode()
    compiled = compile_neutral(model, X)
    with torch.no_grad():
        assert torch.equal(model(X), compiled(X))
