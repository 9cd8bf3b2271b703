"""The demo: one network trained dense and under several policies, by one recipe, and what each of them kept and saved."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .compiled_model import CompiledModel
from .digits import Digits, Recipe, accuracy, load_digits, optimizer_steps, train
from .errors import FxSparseError
from .mask_techniques import SET, GraNet, RigL, StaticMask
from .run_log import RunLog
from .techniques import Technique, closest

METHODS: dict[str, str | None] = {
    "dense": None,
    "SWAT-U 90 %": "swat-u-90",
    "SWAT-ERK 90 %": "swat-erk-90",
    "structured 70 %": "swat-structured-70",
}


TECHNIQUES = ("swat", "granet")
UPDATES, MOVED = 60, 0.3


def methods_of(technique: str, steps: int) -> dict[str, str | Technique | None]:
    """What a demo compares, by the names in its table: policies of SWAT, or of masks that move within so many optimizer steps.

    Raises: FxSparseError for an unknown technique.
    """
    if technique == "swat":
        return dict(METHODS)
    if technique != "granet":
        known = ", ".join(map(repr, TECHNIQUES))
        raise FxSparseError(f"there is no demo of {technique!r}{closest(technique, TECHNIQUES)}; expected one of {known}")
    interval = max(1, steps // UPDATES)
    pruned, moved = max(2 * interval, int(0.6 * steps)), max(2 * interval, int(0.75 * steps))
    total = max(steps, pruned)

    def granet(sparsity: float) -> Technique:
        return GraNet(
            initial_sparsity=0.5, final_sparsity=sparsity, begin=0, end=pruned, total_steps=total, interval=interval, prune_rate=MOVED
        )

    return {
        "dense": None,
        "static 90 %": StaticMask(sparsity=0.9),
        "GraNet 90 %": granet(0.9),
        "static 95 %": StaticMask(sparsity=0.95),
        "SET 95 %": SET(sparsity=0.95, end=moved, interval=interval, drop_fraction=MOVED),
        "RigL 95 %": RigL(sparsity=0.95, end=moved, interval=interval, drop_fraction=MOVED),
        "GraNet 95 %": granet(0.95),
    }


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What one method gave, over all seeds: fractions of 1.

    Attributes:
        accuracies: on the test set, one for each seed.
        weight_density, activation_density: measured, kept over all elements of all contractions, mean over seeds.
        training_reduction, inference_reduction: fraction of FLOPs saved against dense, counted by the rule named "swat", or for
            masks by the rule named "rigl" with the densities that the last run had.
        seconds: wall time of all seeds.
    """

    method: str
    policy: str | None
    accuracies: tuple[float, ...]
    weight_density: float
    activation_density: float
    training_reduction: float
    inference_reduction: float
    seconds: float

    @property
    def mean(self) -> float:
        """Mean test accuracy."""
        return statistics.mean(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation of the test accuracies; 0 for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return {**asdict(self), "mean": self.mean, "std": self.std}


def run_demo(
    recipe: Recipe | None = None,
    seeds: Sequence[int] = (0,),
    *,
    technique: str = "swat",
    data: Digits | None = None,
    console: Console | None = None,
    log: Path | None = None,
) -> list[DemoResult]:
    """One result for each method, dense first. Progress bars go to ``console`` (standard error by default).

    Args:
        technique: what is compared with dense: "swat" or "granet".
        log: folder for a log of each training, see ``fxs.RunLog``: a CSV file, and files of TensorBoard if that is installed.

    Raises:
        FxSparseError: the folder cannot be made, scikit-learn is not installed, there is no seed, or no such technique.
    """
    if not seeds:
        raise FxSparseError("there is no seed to train with; give at least one")
    if log is not None:
        make_folder(log)
    recipe, data = recipe or Recipe(), data or load_digits()
    methods = methods_of(technique, optimizer_steps(data, recipe))
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs  loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True)) as progress:
        tasks = {name: progress.add_task(name, total=recipe.epochs * len(seeds), loss="-", start=False) for name in methods}
        results = []
        for name, policy in methods.items():
            progress.start_task(tasks[name])

            def after_epoch(loss: float, task: Any = tasks[name]) -> None:
                progress.update(task, advance=1, loss=f"{loss:.4f}")

            results.append(_result(name, policy, data, recipe, seeds, after_epoch, log))
    return results


def make_folder(folder: Path) -> None:
    """Makes a folder, if there is none. Raises: FxSparseError if something else has its name, or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FxSparseError(f"{str(folder)!r} cannot be made a folder: {error.strerror or error}") from error


def _result(
    name: str,
    policy: str | Technique | None,
    data: Digits,
    recipe: Recipe,
    seeds: Sequence[int],
    after_epoch: Callable[[float], None],
    log: Path | None,
) -> DemoResult:
    began = time.perf_counter()
    accuracies, weights, activations = [], [], []
    for seed in seeds:
        watch = None if log is None else partial(_log, log / f"{_file_name(name)}-{seed}", optimizer_steps(data, recipe) // recipe.epochs)
        compiled = train(policy, data, recipe, seed, after_epoch, watch)
        accuracies.append(accuracy(compiled, data.test_images, data.test_labels))
        weight, activation = measured_densities(compiled)
        weights.append(weight)
        activations.append(activation)
    reduction = dict(compiled.cost(convention="rigl" if compiled.masks else "swat").reduction)
    if compiled.masks:
        reduction["training"] = 1.0 - compiled.run_report("rigl").training_multiplier
    return DemoResult(
        method=name,
        policy=policy if policy is None or isinstance(policy, str) else repr(policy),
        accuracies=tuple(accuracies),
        weight_density=statistics.mean(weights),
        activation_density=statistics.mean(activations),
        training_reduction=reduction["training"],
        inference_reduction=reduction["inference"],
        seconds=time.perf_counter() - began,
    )


def _log(path: Path, every: int, compiled: CompiledModel, optimizer: torch.optim.Optimizer) -> RunLog:
    board = path if find_spec("tensorboard") is not None else None
    return RunLog(compiled, csv=path.with_name(f"{path.name}.csv"), tensorboard=board, every=every).attach(optimizer)


def _file_name(method: str) -> str:
    """A method's name as that of a file: "SWAT-U 90 %" is swat-u-90."""
    return "-".join(re.findall(r"[a-z0-9]+", method.lower()))


def measured_densities(compiled: CompiledModel) -> tuple[float, float]:
    """Kept elements over all elements, of the weights and of the activations of all contractions.

    The activations of a step are those counted when their thresholds were last selected; a contraction that was left dense
    keeps all of its input, whose size is that of the example. So the example has the batch size of the training.
    """
    kept_weights = weights = kept_activations = activations = 0
    for name, row in compiled.sparsity().items():
        kept_weights += row["weight"]["kept"]
        weights += row["weight"]["total"]
        kept, total = row["activation"]["kept"], row["activation"]["total"]
        if total is None:
            kept = total = sum(_size(call.activation_shape) for call in compiled.sites[name].calls)
        kept_activations += kept
        activations += total
    return kept_weights / weights, kept_activations / activations


def _size(shape: Sequence[int] | None) -> int:
    total = 1
    for side in shape or ():
        total *= side
    return total


def demo_table(results: Sequence[DemoResult]) -> Table:
    """The results as a table for a terminal; the accuracy has a standard deviation where there were several seeds."""
    seeds = len(results[0].accuracies)
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    for name in ("test accuracy", "weights kept", "activations kept", "training FLOPs saved", "inference FLOPs saved", "time"):
        table.add_column(name, justify="right")
    for row in results:
        spread = f" ± {100 * row.std:.2f}" if seeds > 1 else ""
        table.add_row(
            row.method,
            f"{100 * row.mean:.2f}{spread} %",
            f"{100 * row.weight_density:.1f} %",
            f"{100 * row.activation_density:.1f} %",
            f"{100 * row.training_reduction:.1f} %",
            f"{100 * row.inference_reduction:.1f} %",
            f"{row.seconds:.0f} s",
        )
    return table
