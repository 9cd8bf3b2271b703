"""The compiled model: an ordinary nn.Module that runs graphs where they are right and the model's Python elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxsparse.cost_model.accelerator import Accelerator
from fxsparse.passes.capture.graph_forward import GraphForward
from fxsparse.passes.final_weights import kept_under, threshold_in_use
from fxsparse.passes.masks.specs import MaskSpec
from fxsparse.passes.masks.state import RegimeState
from fxsparse.passes.sites import Site
from fxsparse.passes.specs import CombinedSpec, SwatSpec
from fxsparse.passes.state import STATE, AddedState

from .attach import Attachment, attach
from .cost_report import CostReport
from .errors import FxSparseError
from .estimator import cost_of
from .inspecting import Inspecting
from .mask_machine import MaskMachine
from .onnx_export.exporting import Exporting
from .policy import Policy
from .ranks import whole
from .report import Report
from .resolve_saved import SavedPlan
from .run_report import RunReport, run_report
from .showing import Showing

if TYPE_CHECKING:
    from .onnx_export.example import CallForm
    from .stages import Stage


class CompiledModel(Exporting, Inspecting, Showing, nn.Module):
    """A model whose forward runs rewritten graphs, with the original's parameters, buffers, names and signature.

    Made by ``fxs.compile``. The state that fxsparse adds stands under ``fxsparse.`` in ``state_dict()``; everything else
    has the original's names. Attributes that it does not have are the original model's.
    """

    fxsparse: AddedState
    _root: nn.Module
    _forwards: dict[str, GraphForward]
    _specs: dict[str, SwatSpec]
    _masks: dict[str, MaskSpec]
    _machine: MaskMachine | None
    _kept: SavedPlan
    _sites: dict[str, Site]
    _policy: Policy
    _report: Report
    _example_batch: int
    _root_cost: dict[str, Any]
    _example: CallForm | None
    _accelerator: Accelerator | None
    _attached: bool

    def __init__(
        self,
        root: nn.Module,
        forwards: dict[str, GraphForward],
        state: AddedState,
        *,
        policy: Policy,
        specs: Mapping[str, SwatSpec],
        masks: Mapping[str, MaskSpec],
        sites: Mapping[str, Site],
        kept: SavedPlan | None = None,
        report: Report,
        example_batch: int = 1,
        root_cost: Mapping[str, Any] | None = None,
        example: CallForm | None = None,
        accelerator: Accelerator | None = None,
        stages: Sequence[Stage] = (),
    ) -> None:
        super().__init__()
        own = self.__dict__
        own["_root"] = root
        own["_forwards"] = forwards
        own["_specs"] = dict(specs)
        own["_masks"] = dict(masks)
        own["_machine"] = None
        own["_waits"] = any(regime.spec.moves for regime in getattr(state, "regimes", ()))
        own["_kept"] = kept or SavedPlan()
        own["_sites"] = dict(sites)
        own["_policy"] = policy
        own["_report"] = report
        own["_example_batch"] = example_batch
        own["_root_cost"] = dict(root_cost or {})
        own["_example"] = example
        own["_accelerator"] = accelerator
        own["_stages"] = tuple(stages)
        own["_attached"] = False
        own["_parameters"] = root._parameters
        own["_buffers"] = root._buffers
        own["_non_persistent_buffers_set"] = root._non_persistent_buffers_set
        own["_modules"] = {**root._modules, STATE: state}
        own["training"] = root.training
        # DistributedDataParallel broadcasts buffers over the devices' own network, which host buffers are not on.
        # Masks are the same on all ranks by how they are made, which attach() checks.
        here = [*state.host_buffer_names(), *(f"sites.{name}.mask" for name in masks)]
        own["_ddp_params_and_buffers_to_ignore"] = [f"{STATE}.{name}" for name in here]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        live = self.training and torch.is_grad_enabled()
        if live and self._waits:
            raise FxSparseError(self._what_it_waits_for())
        if self._specs or self._kept:
            if live and self.needs_attach and not self._attached:
                raise FxSparseError(
                    "distribution='momentum' reads the optimizer's momentum: call compiled.attach(optimizer) before training "
                    "(and again on a copy, or after loading one)"
                )
            self.fxsparse.clock.advance(live)
        return self._root(*args, **kwargs)

    # What was done

    @property
    def graphs(self) -> Mapping[str, fx.GraphModule]:
        """The graph of each captured module, by its path; "" is the root. A module with several has that of its present mode."""
        return MappingProxyType({path: forward.current() for path, forward in self._forwards.items()})

    @property
    def plan(self) -> Mapping[str, SwatSpec | MaskSpec | CombinedSpec]:
        """The spec of each rewritten site."""
        plan: dict[str, SwatSpec | MaskSpec | CombinedSpec] = {**self._masks, **self._specs}
        for name in self._masks.keys() & self._specs.keys():
            plan[name] = CombinedSpec(site=name, specs=(self._masks[name], self._specs[name]))
        return MappingProxyType(plan)

    @property
    def swat(self) -> Mapping[str, SwatSpec]:
        """The spec of each site that SWAT rewrote."""
        return MappingProxyType(self._specs)

    @property
    def masks(self) -> Mapping[str, MaskSpec]:
        """The spec of each weight that is masked."""
        return MappingProxyType(self._masks)

    @property
    def regimes(self) -> tuple[RegimeState, ...]:
        """How masks move and how far they are: one for each mask technique of the policy."""
        return tuple(getattr(self.fxsparse, "regimes", ()))

    @property
    def kept_plan(self) -> SavedPlan:
        """What is kept for backward as codes: BLPA's specs by weight, those of SavedActivations by module."""
        return self._kept

    @property
    def policy(self) -> Policy:
        """The policy that it was compiled with."""
        return self._policy

    @property
    def report(self) -> Report:
        """What each pass changed or skipped, where and why."""
        return self._report

    @property
    def sites(self) -> Mapping[str, Site]:
        """Every contraction with a parameter, in the order of execution."""
        return MappingProxyType(self._sites)

    def code(self, path: str = "") -> str:
        """The readable Python of a graph.

        Raises: FxSparseError if there is no graph at that path.
        """
        if path not in self._forwards:
            raise FxSparseError(f"there is no graph at {path!r}; graphs: {', '.join(map(repr, self._forwards))}")
        return str(self._forwards[path].current().code)

    def sparsity(self) -> dict[str, dict[str, Any]]:
        """For each site the density of its weight and of its activations: target, actual, and the counts behind it.

        Weights are counted now, under the threshold or mask in use. Activations were counted when their threshold was last
        selected, over all calls of the site; None if that has not happened yet. Shared weights are counted once.
        """
        parameters = dict(self._root.named_parameters(remove_duplicate=False))
        return {name: self._sparsity_of(site, parameters[name]) for name, site in self._sites.items() if name in parameters}

    def target_density(self, site: str) -> float:
        """The density that a site's weight is to have now; 1 where no technique makes it sparse."""
        spec, state, mask = self._specs.get(site), self.fxsparse.site(site), self._masks.get(site)
        if mask is not None and state is not None:
            regime = self.regimes[mask.regime]
            return int(regime.kept[regime.spec.sites.index(site)]) / self.get_parameter(site).numel()
        if spec is not None and state is not None and spec.sparsifies_weight:
            return float(state.get_buffer("weight_density"))
        return 1.0

    def _sparsity_of(self, site: Site, weight: nn.Parameter) -> dict[str, Any]:
        spec, state = self._specs.get(site.name), self.fxsparse.site(site.name)
        kept, target = weight.numel(), self.target_density(site.name)
        if site.name in self._masks and state is not None:
            kept = int(whole(state.get_buffer("mask").sum()))
        activation: dict[str, Any] = {"target": 1.0, "actual": 1.0, "kept": None, "total": None}
        if spec is not None and state is not None:
            if spec.sparsifies_weight:
                kept = int(kept_under(weight, threshold_in_use(weight, state, spec), spec).sum())
            if spec.sparsifies_activation:
                counts = [buffer for key, buffer in state._buffers.items() if key.startswith("activation_counts") and buffer is not None]
                seen, total = (int(sum(count[i] for count in counts)) for i in (0, 1))
                activation = {
                    "target": float(state.get_buffer("activation_density")),
                    "actual": seen / total if total else None,
                    "kept": seen if total else None,
                    "total": total or None,
                }
        weights = {"target": target, "actual": kept / weight.numel(), "kept": kept, "total": weight.numel()}
        return {"weight": weights, "activation": activation}

    def cost(
        self,
        accelerator: str | Accelerator | None = None,
        convention: str = "exact",
        batch_size: int | None = None,
        *,
        density: str = "target",
    ) -> CostReport:
        """What a training step costs, contraction by contraction.

        Args:
            accelerator: a shipped name, an Accelerator, or None to count operations and bytes only.
            convention: how MACs are counted: "exact", "torch", "swat" or "rigl".
            batch_size: None takes the example's.
            density: "target", or "measured" for the weights and activations as they are now.

        Raises:
            CostError: the model was compiled without example inputs, or an argument is unknown.
        """
        return cost_of(self, accelerator, convention=convention, batch_size=batch_size, density=density)

    def run_report(self, convention: str = "exact", batch_size: int | None = None) -> RunReport:
        """What the steps so far have multiplied, from the densities that masks had in each of them, dense gradients counted.

        Raises:
            CostError: there is no masked weight, or it has seen no step.
        """
        return run_report(self, convention=convention, batch_size=batch_size)

    @property
    def example_batch(self) -> int:
        """The batch size of the example inputs; 1 if there were none."""
        return self._example_batch

    @property
    def example(self) -> CallForm | None:
        """The form of the example call: shapes and dtypes in place of tensors. None if there was none."""
        return self._example

    @property
    def accelerator(self) -> Accelerator | None:
        """The machine that it was compiled for."""
        return self._accelerator

    @property
    def root_cost(self) -> Mapping[str, Any]:
        """What the root's own Python costs, where the root is no graph."""
        return MappingProxyType(self._root_cost)

    def current_variants(self) -> dict[str, int]:
        """For each captured module the index of the graph that its present mode runs."""
        return {path: forward.variants.index(forward.current_variant()) for path, forward in self._forwards.items()}

    # Training

    @property
    def needs_attach(self) -> bool:
        """Whether a technique reads the optimizer."""
        return any(spec.follows_momentum for spec in self._specs.values()) or any(regime.spec.moves for regime in self.regimes)

    def attach(self, optimizer: torch.optim.Optimizer, *, compare_ranks: bool = True) -> Attachment:
        """Lets schedules advance after each step of ``optimizer``. Returns a handle with ``remove()``.

        Several optimizers, each with some of the weights, are attached one by one; a schedule then advances when all of them have
        made a step. A step that GradScaler skips is none.

        Args:
            compare_ranks: where torch.distributed runs, compare the masks of all processes now and after every change of them.

        Raises:
            PolicyError: a technique needs something of the optimizer that it does not have, it does not train a site's weight, its state
                cannot be masked, or a masked weight has an optimizer already.
        """
        return attach(self, optimizer, compare_ranks=compare_ranks)

    def needs_no_attachment(self) -> None:
        """Lets this copy compute in train mode without an optimizer; masks and densities then stay as they are."""
        self.__dict__["_waits"] = False
        self.__dict__["_attached"] += 1

    def machine(self) -> MaskMachine:
        """What moves the masks; made when the first optimizer is attached."""
        if self._machine is None:
            self.__dict__["_machine"] = MaskMachine(self)
        assert self._machine is not None
        return self._machine

    def _what_it_waits_for(self) -> str:
        attached = self._machine.attached if self._machine is not None else set()
        missing = [name for name, spec in self._masks.items() if self.regimes[spec.regime].spec.moves and name not in attached]
        titles = " and ".join(dict.fromkeys(self._masks[name].technique for name in missing))
        which = f"the optimizer of {missing[0]!r}" if attached else "the optimizer"
        return (
            f"{titles} changes masks after optimizer steps: call compiled.attach(optimizer) with {which} before training "
            "(and again on a copy, or after loading one)"
        )

    def train(self, mode: bool = True) -> CompiledModel:
        super().train(mode)
        self._root.training = mode
        return self

    # Copies

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for forward in self._forwards.values():
            forward.rebuild()
        self.__dict__["_attached"] = False
        self.__dict__["_waits"] = any(regime.spec.moves for regime in self.regimes)
        self.fxsparse.forget_trust()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_machine": None}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            root = self.__dict__.get("_root")
            if root is None or name.startswith("__"):
                raise
            return getattr(root, name)

    def __dir__(self) -> list[str]:
        own: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        return sorted({*own, *dir(self._root)})
