"""The forward of a captured module: picks the graph that fits the call, and runs it on the live module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx, nn

from fxsparse.errors import TraceError

from ..graph_state import freeze, thaw
from .signature import Arguments, CallSignature, Mismatch

MAX_VARIANTS = 8


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What tracing relied on beside the form of the call. None or empty: it relied on nothing of the kind.

    Attributes:
        ranks: number of dimensions of each input.
        shapes: each input's sizes after the first. dtypes: each input's dtype.
        training: ``training`` flags, by path from the module, on which Python branched.
        sizes: each input's exact size; None in the first place stands for the number of samples, which is the same in all
            inputs and at least ``least``.
        parameter: a parameter's path and dtype, for Python that read it.
    """

    ranks: tuple[int, ...] | None = None
    shapes: tuple[tuple[int, ...], ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    training: tuple[tuple[str, bool], ...] = ()
    sizes: tuple[tuple[int | None, ...], ...] | None = None
    least: int = 0
    parameter: tuple[str, torch.dtype] | None = None

    def hold(self, owner: nn.Module, tensors: tuple[torch.Tensor, ...]) -> bool:
        """Whether they are true of this call."""
        if self.training and any(owner.get_submodule(path).training != flag for path, flag in self.training):
            return False
        if self.ranks is not None and self.ranks != tuple([tensor.dim() for tensor in tensors]):
            return False
        if self.dtypes is not None and self.dtypes != tuple([tensor.dtype for tensor in tensors]):
            return False
        if self.parameter is not None and owner.get_parameter(self.parameter[0]).dtype != self.parameter[1]:
            return False
        if self.sizes is not None and not self._sizes_hold(self.sizes, tensors):
            return False
        return self.shapes is None or self.shapes == tuple([tuple(tensor.shape[1:]) for tensor in tensors])

    def _sizes_hold(self, sizes: tuple[tuple[int | None, ...], ...], tensors: tuple[torch.Tensor, ...]) -> bool:
        samples = None
        for tensor, wanted in zip(tensors, sizes, strict=True):
            shape = tensor.shape
            if len(shape) != len(wanted) or tuple(shape[1:]) != wanted[1:]:
                return False
            if not wanted:
                continue
            if wanted[0] is not None:
                if shape[0] != wanted[0]:
                    return False
            elif samples is None:
                samples = shape[0]
            elif samples != shape[0]:
                return False
        return samples is None or samples >= self.least


class Variant:
    """One graph of a module, and the calls that it is right for."""

    def __init__(self, owner: nn.Module, graph: fx.Graph, signature: CallSignature, facts: Facts) -> None:
        self.signature = signature
        self.facts = facts
        self._graph: Any = graph
        self.graph_module: fx.GraphModule = fx.GraphModule(owner, graph, class_name=f"{type(owner).__name__}Graph")

    @property
    def is_recorded(self) -> bool:
        """Whether one call was recorded; else the module was traced."""
        return self.facts.sizes is not None

    def tensors(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...] | None:
        """The graph's inputs for a call; None if the graph is not right for it."""
        try:
            tensors = self.signature.tensors(args, kwargs)
        except Mismatch:
            return None
        return tensors if self.facts.hold(owner, tensors) else None

    def __getstate__(self) -> dict[str, Any]:
        return {"signature": self.signature, "facts": self.facts, "graph": freeze(self.graph_module.graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.signature, self.facts, self._graph = state["signature"], state["facts"], state["graph"]

    def rebuild(self, owner: nn.Module) -> None:
        """Makes the graph module anew after copying or unpickling, when ``owner`` is whole again."""
        self.graph_module = fx.GraphModule(owner, thaw(self._graph), class_name=f"{type(owner).__name__}Graph")


class Recapture(Protocol):
    """Makes what a call of another form needs: a graph, or else a copy of the module that runs the graphs of its children."""

    def __call__(self, owner: nn.Module, path: str, example: Arguments) -> Variant: ...

    def in_parts(self, owner: nn.Module, path: str, example: Arguments, error: TraceError) -> nn.Module: ...


class GraphForward:
    """Callable in place of a module's ``forward``.

    Args:
        recapture: makes a variant for a call that none fits; None refuses such calls.

    Attributes:
        exact: nothing in the graphs was rewritten, so that the module's own Python may take calls that cannot be captured.
    """

    def __init__(self, owner: nn.Module, path: str, variants: list[Variant], recapture: Recapture | None = None) -> None:
        self.owner = owner
        self.path = path
        self.variants = variants
        self.recapture = recapture
        self.exact = False
        self._parts: nn.Module | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        owner = self.owner
        for variant in self.variants:
            tensors = variant.tensors(owner, args, kwargs)
            if tensors is not None:
                return type(variant.graph_module).forward(owner, *tensors)
        try:
            variant = self._another(args, kwargs)
            tensors = variant.tensors(owner, args, kwargs)
            if tensors is None:
                raise TraceError(f"the graph captured for this call of {self._name()} does not accept the call itself")
        except TraceError as error:
            if self.exact:
                return type(owner).forward(owner, *args, **kwargs)
            return self._in_parts(error, args, kwargs)
        return type(variant.graph_module).forward(owner, *tensors)

    def _in_parts(self, error: TraceError, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's own Python, which calls the graphs of its children.

        Raises: the error if something that was rewritten is not in any child.
        """
        owner = self.owner
        if self._parts is None:
            if self.recapture is None:
                raise error
            self._parts = self.recapture.in_parts(owner, self.path, (args, kwargs), error)
        for module, copied in zip(owner.modules(), self._parts.modules(), strict=True):
            if copied.training != module.training:
                copied.training = module.training
        return type(owner).forward(self._parts, *args, **kwargs)

    def current(self) -> fx.GraphModule:
        """The graph for the module's present mode; the first captured one if the mode decides nothing."""
        return self.current_variant().graph_module

    def current_variant(self) -> Variant:
        """The variant of ``current``."""
        fitting = [v for v in self.variants if all(self.owner.get_submodule(p).training == flag for p, flag in v.facts.training)]
        return (fitting or self.variants)[0]

    def rebuild(self) -> None:
        """Makes every graph module anew after copying or unpickling."""
        for variant in self.variants:
            variant.rebuild(self.owner)

    def _another(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
        try:
            self.variants[0].signature.tensors(args, kwargs)
            difference = "other shapes, dtypes or modes than captured"
        except Mismatch as mismatch:
            difference = str(mismatch)
        if self.recapture is None or len(self.variants) >= MAX_VARIANTS:
            raise TraceError(
                f"{self._name()} was called in a form that was not captured: {difference}. "
                f"{len(self.variants)} forms are captured, and at most {MAX_VARIANTS} are kept; "
                "compile it with example inputs of this form, and pass a number that changes from call to call as a tensor"
            )
        variant = self.recapture(self.owner, self.path, (args, kwargs))
        self.variants.append(variant)
        return variant

    def _name(self) -> str:
        return f"module {self.path!r} ({type(self.owner).__name__})" if self.path else f"the model ({type(self.owner).__name__})"
