"""fxs.compile: capture, describe, resolve, rewrite, verify."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fxsparse.cost_model.accelerator import Accelerator
from fxsparse.passes.annotate_cost import annotate_cost, example_batch_of
from fxsparse.passes.base import Change, GraphPass, PassResult, Skip
from fxsparse.passes.capture.before import leaving_no_trace
from fxsparse.passes.capture.capture import Capture, capture, capture_parts, capture_variant
from fxsparse.passes.capture.graph_forward import Variant
from fxsparse.passes.capture.origin import place_of_error
from fxsparse.passes.capture.refusals import reason_of
from fxsparse.passes.capture.signature import Arguments
from fxsparse.passes.choose_layout import ChooseLayout
from fxsparse.passes.choose_linear import ChooseLinear
from fxsparse.passes.compress_saved import CompressSaved
from fxsparse.passes.insert_masks import InsertMasks
from fxsparse.passes.insert_swat import InsertSwat
from fxsparse.passes.kernels.library import library
from fxsparse.passes.label import label_sites
from fxsparse.passes.masks.specs import MaskSpec
from fxsparse.passes.origins import origins_of, write_origins
from fxsparse.passes.saving.places import places_of
from fxsparse.passes.sites import Site, describe, execution_order, graphs_in_order
from fxsparse.passes.specs import SwatSpec
from fxsparse.passes.state import STATE, AddedState, add_masks, sites_state
from fxsparse.passes.swat_thresholds import call_slots, threshold_shape
from fxsparse.passes.verify import verify

from .compiled_model import CompiledModel
from .errors import FxSparseError, PolicyError, TraceError
from .estimator import annotate_figures, machine_of
from .onnx_export.example import CallForm
from .policy import Policy, as_policy
from .report import Report, SiteRow
from .resolve import Plan, resolve
from .resolve_saved import SavedPlan, resolve_saved
from .stages import CAPTURE, Trace
from .techniques import Technique, require_member

BACKENDS = ("auto", "reference", "native", "cpu", "cuda")


def compile(
    model: nn.Module,
    policy: Policy | Technique | str | Path | None = None,
    example_inputs: Sequence[Any] | torch.Tensor = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    accelerator: str | Accelerator | None = None,
    backend: str = "auto",
    extra_passes: Sequence[GraphPass] = (),
    check_graphs: bool = True,
    fuel: int | None = None,
    trace: bool = False,
) -> CompiledModel:
    """A model that trains as ``policy`` says, in an ordinary loop, with the parameters and buffers of ``model``.

    The model itself stays as it is. The example inputs give shapes and dtypes, and nothing runs on them, but where the model's
    Python decides by their values: there a copy of the model runs forward once. No buffer changes and no random number is
    drawn. The batch size is not baked in.

    Args:
        model: any nn.Module.
        policy: a Policy, a technique, a preset's name or the path of a policy file. None changes nothing.
        example_inputs, example_kwargs: one call's arguments.
        accelerator: the machine (a name, a YAML file) for which every node's cost is annotated; None: operations and bytes only.
        backend: "reference" (plain PyTorch), "native" (native kernels wherever they can compute), "cpu" or "cuda" (where there are some
            and they pay), or "auto" (as for the model's own device).
        extra_passes: passes of your own, run on every graph after fxsparse's.
        check_graphs: run the verifier after each pass.
        fuel: rewrite at most this many contractions, to find by bisection the one that misbehaves.
        trace: keep the readable code and the graph after each pass, for ``compiled.diff("insert_swat")`` and ``compiled.stages``.

    Raises:
        CostError: there is no such accelerator.
        TraceError: the model cannot be captured, or the example inputs do not fit it; what it raises on them by itself is the cause.
        PolicyError: the policy cannot be applied; nothing was rewritten.
        VerificationError: a pass broke a graph.
    """
    policy = as_policy(policy)
    machine = machine_of(accelerator)
    try:
        require_member("backend", backend, BACKENDS)
    except PolicyError as error:
        raise FxSparseError(str(error)) from None
    for item in extra_passes:
        if not isinstance(item, GraphPass):
            raise FxSparseError(f"extra_passes takes instances of fxsparse.passes.base.GraphPass, got {item!r}")
    _refuse_name_clash(model)
    example = _example(example_inputs, example_kwargs)
    captured = capture(model, example)
    if captured.failure is not None:
        raise TraceError(
            f"the model ({type(model).__name__}) fails on the example inputs by itself: {reason_of(captured.failure)} "
            f"({place_of_error(captured.failure)}); pass inputs that it takes"
        ) from captured.failure
    found = describe(captured)
    order = execution_order(captured, found)
    sites = {name: found[name] for name in order}
    weights = dict(captured.root.named_parameters(remove_duplicate=False))
    plan = resolve(policy, sites, order, weights)
    kept = resolve_saved(policy, sites, places_of(captured))
    state = sites_state(plan.specs, _threshold_shapes(plan.specs, sites), weights)
    add_masks(state, plan.masks.specs, plan.masks.regimes, weights)
    names = {alias: site.name for site in sites.values() for alias in (site.name, *site.aliases)}
    slots = {name: call_slots(sites[name]) for name in plan.specs}
    rewriter = Rewriter(dict(plan.masks.specs), dict(plan.specs), kept, names, slots, state, tuple(extra_passes), check_graphs, backend)
    label_sites(captured, names)
    stages = Trace() if trace else None
    results = rewriter.rewrite(captured, None if fuel is None else [fuel], stages)
    rewritten = {change.graph for result in results for change in result.changes}
    install(captured, rewritten, rewriter)
    with leaving_no_trace():
        root_cost = annotate_cost(captured, names, example, rewritten)
    report = replace(_report(model, captured, plan, sites, results), kernels=_kernels(results, rewriter.reference))
    compiled = CompiledModel(
        captured.root,
        captured.forwards,
        state,
        policy=policy,
        specs=_applied(plan.specs, "insert_swat", results),
        masks=_applied(plan.masks.specs, "insert_masks", results),
        kept=kept,
        sites=sites,
        report=report,
        example_batch=example_batch_of(captured, example) or 1,
        root_cost=root_cost,
        example=None if example is None else CallForm.of(*example),
        accelerator=machine,
        stages=() if stages is None else stages.stages,
    )
    annotate_figures(compiled, machine)
    return compiled


@dataclass(frozen=True)
class Rewriter:
    """Everything that is done to a graph after its capture; kept by the compiled model for calls of another form."""

    masks: dict[str, MaskSpec]
    specs: dict[str, SwatSpec]
    kept: SavedPlan
    names: dict[str, str]
    slots: dict[str, dict[tuple[str, int], int]]
    state: AddedState
    extra_passes: tuple[GraphPass, ...]
    check_graphs: bool
    backend: str = "auto"

    @property
    def reference(self) -> bool:
        """Whether to do without native kernels."""
        return self.backend == "reference"

    def rewrite(self, captured: Capture, fuel: list[int] | None, trace: Trace | None = None) -> list[PassResult]:
        """Runs all passes over all graphs."""
        results = []
        for path, variant, gm in graphs_in_order(captured):
            captured.forwards[path].owner.__dict__[STATE] = self.state
            keep = None if trace is None else partial(trace.keep, path=path, variant=variant, gm=gm)
            results += self._passes(path, captured.forwards[path].variants[variant], gm, fuel, keep)
        return results

    def _passes(
        self, path: str, variant: Variant, gm: Any, fuel: list[int] | None, keep: Callable[[str], None] | None = None
    ) -> list[PassResult]:
        gm.__dict__[STATE] = self.state
        origins = origins_of(gm, path)
        results = []
        first = {site: slots[path, 0] for site, slots in self.slots.items() if (path, 0) in slots}
        inserted: list[GraphPass] = [InsertMasks(path, self.masks, self.names, fuel)] if self.masks else []
        inserted += [InsertSwat(path, self.specs, self.names, first, fuel)] if self.specs else []
        if (self.specs or self.masks) and not self.reference and not self.kept:
            inserted += [kind(path, self.specs, self.masks, everything=self.backend == "native") for kind in (ChooseLayout, ChooseLinear)]
        if self.kept or self.specs:
            inserted.append(CompressSaved(path, self.kept.blpa, self.kept.saved, self.names, fuel, self.reference))
        if keep is not None:
            keep(CAPTURE)
        for item in (*inserted, *self.extra_passes):
            results.append(item(gm))
            if keep is not None:
                keep(item.name)
            if self.check_graphs:
                verify(gm, path)
        write_origins(gm, origins, results)
        return results

    def __call__(self, owner: nn.Module, path: str, example: Arguments) -> Variant:
        """A rewritten graph for a call of another form."""
        variant = capture_variant(owner, path, example)
        self._passes(path, variant, variant.graph_module, None)
        return variant

    def in_parts(self, owner: nn.Module, path: str, example: Arguments, error: TraceError) -> nn.Module:
        """A copy of a module that keeps its Python, with rewritten graphs for its children.

        Raises: the error if a weight that is rewritten is read by Python that stays.
        """
        captured = capture_parts(owner, example)
        planned = {*self.specs, *self.masks}
        for left in captured.left:
            own = captured.root.get_submodule(left).named_parameters(prefix=left, recurse=False)
            if any(self.names.get(f"{path}.{name}" if path else name) in planned for name, _ in own):
                raise error
        rewritten = set()
        for inner, variant, gm in graphs_in_order(captured):
            forward = captured.forwards[inner]
            forward.owner.__dict__[STATE] = self.state
            full = f"{path}.{inner}" if path and inner else path or inner
            if any(result.changes for result in self._passes(full, forward.variants[variant], gm, None)):
                rewritten.add(inner)
        install(captured, rewritten, self)
        for inner, forward in captured.forwards.items():
            forward.path = f"{path}.{inner}" if path and inner else path or inner
        return captured.root


def install(captured: Capture, rewritten: set[str], rewriter: Rewriter) -> None:
    """Puts the graphs in place of their modules' Python. Composites keep torch's own unless something in them was rewritten."""
    for path, forward in captured.forwards.items():
        forward.recapture = rewriter
        changed_inside = any(other == path or not path or other.startswith(f"{path}.") for other in rewritten)
        forward.exact = not changed_inside
        if path not in captured.composites or changed_inside:
            forward.owner.__dict__["forward"] = forward
    if rewritten:
        for module in captured.root.modules():
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False


def _refuse_name_clash(model: nn.Module) -> None:
    if isinstance(model, CompiledModel):
        raise FxSparseError("the model is compiled already; compile the original once, with all techniques in one policy")
    if hasattr(model, STATE):
        raise FxSparseError(f"the model has an attribute {STATE!r}, the name under which fxsparse keeps its state; rename it")


def _example(inputs: Sequence[Any] | torch.Tensor, kwargs: Mapping[str, Any] | None) -> Arguments | None:
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, (tuple, list)):
        raise TraceError(f"example_inputs is a tuple of the model's positional arguments, got {type(inputs).__name__}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TraceError(f"example_kwargs is a mapping of the model's keyword arguments, got {type(kwargs).__name__}")
    if not inputs and not kwargs:
        return None
    return tuple(inputs), dict(kwargs or {})


def _threshold_shapes(specs: Mapping[str, SwatSpec], sites: Mapping[str, Site]) -> dict[str, list[tuple[int, ...]]]:
    """For each site the shape of every call's activation threshold."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for name, spec in specs.items():
        slots = call_slots(sites[name])
        made: dict[int, tuple[int, ...]] = {}
        for call in sites[name].calls:
            shape = threshold_shape(call.operator, call.activation_shape, spec.granularity, call.equation)
            made.setdefault(slots[call.graph, call.index], shape)
        shapes[name] = [made[slot] for slot in sorted(made)]
    return shapes


_Spec = TypeVar("_Spec", SwatSpec, MaskSpec)


def _applied(specs: Mapping[str, _Spec], made_by: str, results: list[PassResult]) -> dict[str, _Spec]:
    """The specs that a pass has carried out somewhere."""
    changed = {change.site for result in results if result.name == made_by for change in result.changes}
    return {name: spec for name, spec in specs.items() if name in changed}


def _kernels(results: list[PassResult], reference: bool) -> str:
    """What makes the codes of saved activations, in words."""
    if not any(result.name == "compress_saved" and result.changes for result in results):
        return ""
    if reference:
        return "PyTorch, as asked for"
    native = library()
    return f"native kernels ({native.level})" if native else "PyTorch, since the native kernels were not built or cannot be used"


def _report(model: nn.Module, captured: Capture, plan: Plan, sites: Mapping[str, Site], results: list[PassResult]) -> Report:
    changes: tuple[Change, ...] = tuple(change for result in results for change in result.changes)
    skips: tuple[Skip, ...] = (*plan.skips, *(skip for result in results for skip in result.skips))
    swat = _applied(plan.specs, "insert_swat", results)
    masks = _applied(plan.masks.specs, "insert_masks", results)
    native = {change.site: change.what for change in changes if change.what.startswith("native kernels")}
    rows = []
    for name, site in sites.items():
        spec, mask = swat.get(name), masks.get(name)
        titles = [f"{mask.technique} ({mask.structure.name})"] if mask else []
        titles += [f"SWAT ({spec.distribution}, {spec.structure})"] if spec else []
        rows.append(
            SiteRow(
                site=name,
                operator=site.operator,
                shape=site.shape,
                technique=" + ".join(titles),
                weight_density=mask.weight_density if mask else spec.weight_density if spec else 1.0,
                activation_density=spec.activation_density if spec else 1.0,
                backend=native.get(name, "reference" if titles else "PyTorch"),
                calls=len({(call.graph, call.index) for call in site.calls}),
            )
        )
    return Report(
        model=type(model).__name__,
        graphs={path: len(forward.current().graph.nodes) for path, forward in captured.forwards.items()},
        sites=tuple(rows),
        changes=changes,
        skips=skips,
        left=dict(captured.left),
        recorded=tuple(path for path, forward in captured.forwards.items() if forward.current_variant().is_recorded),
    )
