"""From a model to graphs: the root as one graph where that is right, and a graph for every part that is not in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from fxsparse.errors import TraceError

from ..leaves import leaves_of
from .before import leaving_no_trace, refuse_strange_states
from .by_example import ByExample
from .clone import clone_modules
from .fake_twin import FakeTwin
from .graph_forward import Facts, GraphForward, Variant
from .real_run import RealRun
from .recipes import RECIPES, is_composite
from .refusals import OutOfPatience, Refused
from .signature import Arguments, CallSignature, Mismatch, object_in, with_own_objects
from .tracer import CaptureTracer

_PATIENCE = 3  # parts that cannot be traced, before the whole is rather recorded
CONTRACTION_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.Bilinear,
)


@dataclass(kw_only=True)
class Capture:
    """A model as graphs.

    Attributes:
        root: a structural copy of the model; it shares the model's parameters and buffers.
        forwards: the graphs of each captured module, by its path; not yet installed.
        left: why a module keeps its Python, by path.
        failure: what the model raised on the example, if that was found out.
        composites: paths whose graph replaces torch's own Python only if a pass rewrites something in it.
    """

    root: nn.Module
    forwards: dict[str, GraphForward] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    composites: set[str] = field(default_factory=set)
    has_example: bool = False
    failure: Exception | None = None


def capture(model: nn.Module, example: Arguments | None) -> Capture:
    """The graphs of a model, made without touching its parameters, buffers, random states or attributes.

    The model runs on fake tensors; where its Python decides by values, a copy of it runs once on the example's own.

    Raises:
        TraceError: the example inputs do not fit the model, or the model is in no state to be captured.
    """
    refuse_strange_states(model)
    with leaving_no_trace():
        return _Capturer(clone_modules(model), example).run()


def capture_variant(owner: nn.Module, path: str, example: Arguments) -> Variant:
    """One more graph of a captured module, for a call of another form.

    Raises:
        TraceError: this form of the call cannot be captured.
    """
    owner_copy = clone_modules(owner)
    forward = owner_copy.__dict__.pop("forward", None)
    known = {str(node.target) for variant in getattr(forward, "variants", ()) for node in variant.graph_module.graph.nodes}
    capturer = _Capturer(owner_copy, None)
    try:
        with leaving_no_trace():
            try:
                graph, signature, facts = capturer.trace(owner_copy, "", example, _PATIENCE)
            except (Refused, OutOfPatience):
                return _recorded_variant(owner, path, capturer, example, known)
    except Refused as refusal:
        raise TraceError(f"module {path!r} cannot be captured for a call of this form: {refusal}") from None
    if capturer.left.keys() - {name for name, module in owner.named_modules() if "forward" in module.__dict__}:
        raise TraceError(f"module {path!r} cannot be captured for a call of this form: parts of it would keep their Python")
    signature.forget_example()
    return Variant(owner, graph, signature, facts)


def capture_parts(owner: nn.Module, example: Arguments) -> Capture:
    """A copy of a captured module that keeps its own Python, with its children captured; it shares parameters and buffers for good."""
    owner_copy = clone_modules(owner)
    owner_copy.__dict__.pop("forward", None)
    for module, copied in zip(owner.modules(), owner_copy.modules(), strict=True):
        if not isinstance(module, torch.jit.ScriptModule):
            copied.__dict__["_parameters"], copied.__dict__["_buffers"] = module._parameters, module._buffers
    capturer = _Capturer(owner_copy, example)
    with leaving_no_trace():
        capturer.left[""] = "its call has a form that no graph can be made for"
        capturer._in_parts(owner_copy, "", example)
    capturer.result.left = capturer.left
    return capturer.result


def _recorded_variant(owner: nn.Module, path: str, capturer: _Capturer, example: Arguments, known: set[str]) -> Variant:
    found = capturer.by_example.capture(capturer.root, "", example, both_modes=False)
    if found.left.keys() - known:
        raise Refused("parts of it would keep their Python")
    variant = found.variants[0]
    return Variant(owner, variant.graph_module.graph, variant.signature, variant.facts)


class _Capturer:
    def __init__(self, root: nn.Module, example: Arguments | None) -> None:
        self.root = root
        self.example = example
        self.twin = FakeTwin(root)
        self._probe: FakeTwin | None = None
        self.by_example = ByExample(self.twin, self.probe_twin)
        self.calls: dict[str, Arguments] = {}
        self._real: RealRun | None = None
        self.left: dict[str, str] = {}
        self.unrecorded: dict[str, str] = {}
        self.apart: set[str] = set()
        self.result = Capture(root=root, has_example=example is not None)

    def probe_twin(self) -> FakeTwin:
        if self._probe is None:
            self._probe = self.twin.for_other_batch()
        return self._probe

    def run(self) -> Capture:
        self._whole(self.root, "", self.example)
        self._beside_graphs()
        self.result.left = self.left
        self.result.failure = None if self._real is None else self._real.error
        return self.result

    def _beside_graphs(self) -> None:
        """Captures contractions in modules that are graphs, but that Python elsewhere calls, not those graphs."""
        read: set[str] = set()
        for path, forward in self.result.forwards.items():
            for variant in forward.variants:
                read |= {
                    _join(path, str(node.target)) for node in variant.graph_module.graph.nodes if node.op in ("call_module", "get_attr")
                }
        read |= {name.rpartition(".")[0] for name in read}
        for path in list(self.calls):
            module = self.root.get_submodule(path)
            if path not in read and isinstance(module, CONTRACTION_MODULES):
                self._whole(module, path, self.calls[path])

    def _whole(self, module: nn.Module, path: str, example: Arguments | None) -> None:
        """Captures a module as a graph: traced, or else recorded; if neither is right, its children."""
        if isinstance(module.__dict__.get("forward"), GraphForward):
            return  # of a copy whose parts run graphs already
        try:
            try:
                variants = self._variants(module, path, example, None if example is None else _PATIENCE)
            except OutOfPatience:
                if self._recorded(module, path, example):
                    return
                variants = self._variants(module, path, example)
        except Refused as refusal:
            self.left[path] = str(refusal)
            if path in self.unrecorded or not self._recorded(module, path, example):
                self._in_parts(module, path, example)
            return
        self._accept(module, path, variants)

    def _recorded(self, module: nn.Module, path: str, example: Arguments | None) -> bool:
        """Records a module that cannot be traced, by example. Returns whether that is right."""
        if example is None or is_composite(module) or "forward" in module.__dict__ or isinstance(module, torch.jit.ScriptModule):
            return False
        try:
            found = self.by_example.capture(module, path, example)
        except Refused as refusal:
            self.unrecorded[path] = str(refusal)
            return False
        self.left.pop(path, None)
        for name, reason in found.left.items():
            self.left[_join(path, name)] = self.unrecorded[_join(path, name)] = reason
        self.apart |= {_join(path, name) for name in found.apart}
        for name, call in found.calls.items():
            self.calls.setdefault(name, call)
        self._accept(module, path, found.variants)
        return True

    def _in_parts(self, module: nn.Module, path: str, example: Arguments | None) -> None:
        """Leaves a module its Python, and captures its children."""
        if path in self.unrecorded and "Error: " in self.left.get(path, ""):
            self.left[path] = self.unrecorded[path]  # what went wrong on proxies says less than what did on fake tensors
        if example is not None:
            self._record_calls(path, example)
        self._children(module, path)

    def _accept(self, module: nn.Module, path: str, variants: list[Variant]) -> None:
        self.result.forwards[path] = GraphForward(module, path, variants)
        if is_composite(module):
            self.result.composites.add(path)
        for variant in variants:
            for node in list(variant.graph_module.graph.nodes):
                if node.op == "call_module":
                    self._called(_join(path, str(node.target)))

    def _called(self, path: str) -> None:
        """Captures what a call_module node hides: a composite's inside, the children of a module that keeps its Python."""
        module = self.root.get_submodule(path)
        if path in self.result.forwards:
            return
        if is_composite(module) or path in self.apart:
            self._whole(module, path, self.calls.get(path))
        elif path in self.left and path not in self.unrecorded:
            if not self._recorded(module, path, self.calls.get(path)):
                self._in_parts(module, path, self.calls.get(path))
        elif path in self.left:
            self._children(module, path)
        elif not isinstance(module, CONTRACTION_MODULES):
            self._children(module, path, below_leaf=True)

    def _children(self, module: nn.Module, path: str, below_leaf: bool = False) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            return
        for name, child in module.named_children():
            below = _join(path, name)
            if below in self.result.forwards or below in self.left or self.root.get_submodule(below) is not child:
                continue
            if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
                self._children(child, below)
            elif isinstance(child, CONTRACTION_MODULES) or is_composite(child):
                self._whole(child, below, self.calls.get(below))
            elif child.__module__.startswith("torch.nn") and not isinstance(child, nn.Sequential):
                self._children(child, below, below_leaf=True)
            elif any(True for _ in child.parameters()) and not below_leaf:
                self._whole(child, below, self.calls.get(below))

    def _variants(self, module: nn.Module, path: str, example: Arguments | None, patience: int | None = None) -> list[Variant]:
        graph, signature, facts = self.trace(module, path, example, patience)
        variants = [Variant(module, graph, signature, facts)]
        if facts.training:
            parts = [module.get_submodule(name) for name, _ in facts.training]
            flags = [part.training for part in parts]
            twins = [self.twin.root.get_submodule(_join(path, name)) for name, _ in facts.training]
            try:
                for part in (*parts, *twins):
                    part.training = not part.training
                graph, signature, facts = self.trace(module, path, example)
                variants.append(Variant(module, graph, signature, facts))
            finally:
                for part, twin, flag in zip(parts, twins, flags, strict=True):
                    part.training = twin.training = flag
        for variant in variants:
            variant.signature.forget_example()
        return variants

    def trace(
        self, module: nn.Module, path: str, example: Arguments | None, patience: int | None = None
    ) -> tuple[fx.Graph, CallSignature, Facts]:
        if "forward" in module.__dict__:
            raise Refused("its forward was replaced on the instance")
        if isinstance(module, torch.jit.ScriptModule):
            raise Refused("it is a TorchScript module")
        forward = RECIPES.get(type(module)) or type(module).forward
        try:
            signature = CallSignature(forward, example)
        except Mismatch as mismatch:
            raise TraceError(f"the example inputs do not fit {_described(module, path)}: {mismatch}") from None
        given = object_in(example)
        if given is not None:
            raise Refused(f"it is given an object of type {given}, which may change from call to call")
        tracer = CaptureTracer(path, self.twin, self.probe_twin, signature, patience)
        graph = tracer.trace(module)
        if tracer.misfit is not None:
            self._explain(tracer.misfit, module, path, example)
        for name, reason in tracer.left.items():
            self.left.setdefault(_join(path, name), reason)
        self.apart |= {_join(path, name) for name in tracer.apart}
        for name, call in tracer.calls.items():
            self.calls.setdefault(name, call)
        examples = [node.meta["val"] for node in graph.nodes if node.op == "placeholder"]
        known = all(isinstance(value, torch.Tensor) for value in examples)
        return (
            graph,
            signature,
            Facts(
                ranks=tuple(value.dim() for value in examples) if known and tracer.rank_was_read else None,
                shapes=tuple(tuple(value.shape[1:]) for value in examples) if known and tracer.shapes_were_read else None,
                dtypes=tuple(value.dtype for value in examples) if known and tracer.dtypes_were_read else None,
                training=tuple(tracer.training_branches.items()),
            ),
        )

    def _explain(self, misfit: tuple[fx.Node, Exception], module: nn.Module, path: str, example: Arguments | None) -> None:
        """Raises TraceError if the module's own Python fails on the example's shapes too, as the graph did."""
        node, error = misfit
        if example is None:
            return
        try:
            args, kwargs = pytree.tree_map_only(torch.Tensor, self.twin.example, example)
            with self.twin.mode:
                self.twin.call(path, args, kwargs)
        except Exception:  # whatever the model's Python raises
            real = self._real_run()
            if real is not None and real.error is None:  # some models take another way on fake tensors
                return
            where = f"{node.target!r}" if node.op == "call_module" else f"{node.name!r}"
            shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)]
            message = (str(error).strip().splitlines() or ["no message"])[0]
            raise TraceError(
                f"the example inputs {shapes} do not fit {_described(module, path)}: at {where}: {message}; "
                "pass inputs of the shapes and dtypes that the model is trained with"
            ) from None

    def _real_run(self) -> RealRun | None:
        """The example's call of a copy, where fake tensors take another way or none; None without an example or its values."""
        is_fake = any(isinstance(leaf, FakeTensor) for leaf in leaves_of(self.example))
        if self._real is None and self.example is not None and not is_fake:
            self._real = RealRun(self.root, self.example, self.twin)
        return self._real

    def _record_calls(self, path: str, example: Arguments) -> None:
        """Runs a module's own Python on fake tensors, to learn how it calls its children; if it fails on them, a copy on real ones."""
        with self.twin.recording(path) as calls:
            try:
                args, kwargs = pytree.tree_map_only(torch.Tensor, self.twin.example, with_own_objects(example))
                with self.twin.mode:
                    self.twin.call(path, args, kwargs)
            except Exception:  # the model's own, or of what fake tensors cannot know
                real = self._real_run()
                calls.update(
                    {} if real is None else {name: call for name, call in real.calls.items() if not path or name.startswith(f"{path}.")}
                )
        for name, call in calls.items():
            self.calls.setdefault(name, call)


def _described(module: nn.Module, path: str) -> str:
    return f"module {path!r} ({type(module).__name__})" if path else f"the model ({type(module).__name__})"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
