"""A log of a training: densities, thresholds, bits, bytes kept for backward, and what each update of the masks has exchanged.

>>> log = fxs.RunLog(compiled, csv="run.csv", tensorboard="runs/granet", every=100)
>>> log.attach(optimizer)  # after compiled.attach(optimizer); then the ordinary loop
>>> log.close()
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import CostError, FxSparseError
from .ranks import placed_like, whole
from .run_log_files import TOTAL, CsvSink, Sink, TensorBoardSink
from .run_report import run_report

if TYPE_CHECKING:
    from fxsparse.passes.masks.state import RegimeState

    from .compiled_model import CompiledModel


class RunLog:
    """Writes what a compiled model is like, every so many optimizer steps and whenever its masks have changed.

    Between two writings nothing waits for the device: what an update exchanges is counted there, and read with the next writing. In
    a distributed run every process takes part, and the first one writes.

    Args:
        csv: the file of a table with a row for each site, see ``COLUMNS`` in ``run_log_files``: event "log" has the state at a step,
            "update" what an update of the masks has dropped and grown (churn is the fraction of the kept weights that it dropped).
        tensorboard: a SummaryWriter, or the folder of one (extra "report").
        every: optimizer steps between two writings. append: go on with a CSV file of an interrupted run.
        first_step: the number of steps taken before this log began, where no masks count them.

    Raises:
        FxSparseError: it would write nothing, a file cannot be written, or tensorboard is not installed.
    """

    def __init__(
        self,
        model: CompiledModel,
        *,
        csv: str | os.PathLike[str] | None = None,
        tensorboard: Any = None,
        every: int = 100,
        append: bool = False,
        first_step: int = 0,
    ) -> None:
        if csv is None and tensorboard is None:
            raise FxSparseError("a log needs somewhere to go: csv='run.csv', tensorboard='runs/name', or both")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise FxSparseError(f"every is {every!r}; expected a whole number of optimizer steps, at least 1")
        self._model, self._every = model, every
        self._sinks: list[Sink] = []
        if not torch.distributed.is_available() or not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            self._sinks += [TensorBoardSink(tensorboard)] if tensorboard is not None else []
            self._sinks += [CsvSink(csv, append=append)] if csv is not None else []
        self._own_steps = first_step
        self._logged: int | None = None
        self._places: dict[str, dict[str, int]] | None = None
        self._updates = [MaskUpdates(model, regime) for regime in model.regimes if regime.spec.moves]
        self._handles: list[Any] = []

    @property
    def step(self) -> int:
        """Optimizer steps taken: those that the masks have counted, or this log itself where there are none."""
        regimes = self._model.regimes
        return max(int(regime.steps) for regime in regimes) if regimes else self._own_steps

    def attach(self, optimizer: torch.optim.Optimizer) -> RunLog:
        """Writes after the steps of an optimizer: attach it after ``compiled.attach(optimizer)``. Returns the log itself."""
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self.after_step()))
        return self

    def after_step(self) -> None:
        """Notes that a step was taken, and writes if it is time; for loops without an optimizer of torch."""
        self._own_steps += 1
        for updates in self._updates:
            updates.note()
        if self.step % self._every == 0:
            self.write()

    def write(self) -> None:
        """Writes the state as it is now, once for each step, and the updates since the last time."""
        step = self.step
        if step == self._logged:
            return
        self._logged = step
        for updates in self._updates:
            for when, rows in updates.take():
                self._to_sinks(when, rows, {})
        rows, tensors = self._state()
        self._to_sinks(step, rows, tensors)

    def _to_sinks(self, step: int, rows: list[dict[str, Any]], tensors: Mapping[str, Any]) -> None:
        for sink in self._sinks:
            sink.write(step, rows, tensors)

    def close(self) -> None:
        """Writes what is left, detaches from the optimizers and closes the files."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.write()
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What there is to be said

    def _state(self) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        first = self._places is None
        if self._places is None:
            self._places = kept_for_backward(self._model)
        thresholds, tensors = _thresholds(self._model)
        rows: list[dict[str, Any]] = []
        kept = total = 0
        for name, row in self._model.sparsity().items():
            weight, activation = row["weight"], row["activation"]
            kept, total = kept + weight["kept"], total + weight["total"]
            rows.append(
                {
                    "event": "log",
                    "site": name,
                    "weight_target": weight["target"],
                    "weight_density": weight["actual"],
                    "activation_target": activation["target"],
                    "activation_density": activation["actual"],
                    **thresholds.get(name, {}),
                    **self._places.get(name, {}),
                    "kept": weight["kept"],
                    "total": weight["total"],
                }
            )
        if first:  # what never changes, and belongs to no weight
            sites = self._model.sites.keys()
            rows += [{"event": "log", "site": name, **figures} for name, figures in self._places.items() if name not in sites]
        saved = sum(figures.get("saved_bytes", 0) for figures in self._places.values())
        whole_row = {"event": "log", "site": TOTAL, "kept": kept, "total": total, "weight_density": kept / total if total else None}
        return [*rows, {**whole_row, "saved_bytes": saved, **_multiplied(self._model)}], tensors


class MaskUpdates:
    """What the updates of one regime's masks have exchanged, counted on the device until it is asked for."""

    def __init__(self, model: CompiledModel, regime: RegimeState) -> None:
        self._model, self._regime = model, regime
        self._seen = int(regime.steps)
        self._before = self._copies()
        self._noted: list[tuple[int, list[str], Tensor]] = []

    def _masks(self) -> Iterator[tuple[str, Tensor]]:
        for name in self._regime.spec.sites:
            state = self._model.fxsparse.site(name)
            if name in self._model.masks and state is not None:
                yield name, state.get_buffer("mask")

    def _copies(self) -> dict[str, Tensor]:
        return {name: mask.detach().clone() for name, mask in self._masks()}

    def note(self) -> None:
        """Compares the masks with those before, if the step that was taken has changed them. Masks that always change wait for ``take``."""
        step, spec = int(self._regime.steps), self._regime.spec
        due = not spec.refresh and any(spec.is_due(one) for one in range(self._seen + 1, step + 1))
        self._seen = step
        if due:
            self._compare(step)

    def _compare(self, step: int) -> None:
        names, counts = [], []
        for name, mask in self._masks():
            before = placed_like(self._before[name], mask).to(mask.device)
            counts.append(torch.stack([whole(part.sum()) for part in (before & ~mask, mask & ~before, before)]))
            names.append(name)
        self._before = self._copies()
        if names:
            self._noted.append((step, names, torch.stack([count.to(counts[0].device) for count in counts])))

    def take(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The updates since the last time: the step, and a row for each site, the total last."""
        if self._regime.spec.refresh:
            self._compare(self._seen)
        noted, self._noted = self._noted, []
        for step, names, counts in noted:
            rows = [_exchanged(name, *row) for name, row in zip(names, counts.tolist(), strict=True)]
            yield step, [*rows, _exchanged(TOTAL, *counts.sum(0).tolist())]


def _exchanged(site: str, dropped: int, grown: int, before: int) -> dict[str, Any]:
    churn = dropped / before if before else 0.0
    return {"event": "update", "site": site, "dropped": dropped, "grown": grown, "kept": before - dropped + grown, "churn": churn}


def kept_for_backward(model: CompiledModel) -> dict[str, dict[str, int]]:
    """For each site, and each module without one, the bits of its codes and the bytes that it keeps at the example's batch size."""
    plan = model.kept_plan
    found = {name: {"bits": spec.bits} for name, spec in plan.saved.items()}
    found |= {name: {"bits": spec.bits} for name, spec in plan.blpa.items()}
    for site in model.sites.values():
        if site.module in plan.saved and site.name not in found:
            found[site.name] = {"bits": plan.saved[site.module].bits}
    try:
        nodes = model.cost().nodes
    except CostError:  # without example inputs there are no shapes
        return found
    for node in nodes:
        place = found.setdefault(node.site or node.module or "(root)", {})
        place["saved_bytes"] = place.get("saved_bytes", 0) + node.saved_bytes
    return {name: figures for name, figures in found.items() if "bits" in figures or figures.get("saved_bytes")}


def _multiplied(model: CompiledModel) -> dict[str, float]:
    """What the run's masks have let it multiply so far, against a dense run; nothing where there are none."""
    try:
        return {"multiplier": run_report(model).training_multiplier}
    except CostError:
        return {}


def _thresholds(model: CompiledModel) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """The thresholds in use, for each site their mean, with one reading for each device; and those that are many, whole."""
    places: list[tuple[str, str]] = []
    means: list[Tensor] = []
    many: dict[str, Tensor] = {}
    for name in model.swat:
        state = model.fxsparse.site(name)
        buffers = {} if state is None else {key: buffer for key, buffer in state._buffers.items() if buffer is not None}
        for kind in ("weight_threshold", "activation_threshold"):
            own = [buffer for key, buffer in buffers.items() if key.startswith(kind)]
            if own:
                places.append((name, kind))
                means.append(torch.cat([buffer.reshape(-1).double() for buffer in own]).mean())
            for index, buffer in enumerate(own):
                if buffer.numel() > 1:
                    many[f"{kind}s/{name}{f'.{index}' if index else ''}"] = buffer.detach().float().cpu()
    found: dict[str, dict[str, float]] = {}
    for device in dict.fromkeys(mean.device for mean in means):
        here = [index for index, mean in enumerate(means) if mean.device == device]
        for index, number in zip(here, torch.stack([means[index] for index in here]).tolist(), strict=True):
            name, kind = places[index]
            found.setdefault(name, {})[kind] = number
    return found, {name: tensor for name, tensor in many.items() if bool(tensor.isfinite().all())}
