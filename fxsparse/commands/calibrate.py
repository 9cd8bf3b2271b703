"""``fxsparse calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import FxSparseError
from .output import print_table, require_outputs

if TYPE_CHECKING:
    from rich.table import Table

    from fxsparse.cost_model.accelerator import Accelerator


def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="The accelerator file to write; --accelerator takes it.")] = Path(
        "cpu.yaml"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="Samples of the measured steps.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; their median counts.")] = 7,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Measure this machine: peak rates, bandwidth, and what each class of operators reaches. Takes about a minute."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ..calibrate import STAGES, require_device
    from ..calibrate import calibrate as measure

    require_device(device)
    require_outputs({"--output": output})
    if output.exists() and not force:
        raise FxSparseError(f"--output {str(output)!r} exists; name another file, or pass --force to overwrite it")
    columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=STAGES)

        def progress(stage: str) -> None:
            bar.update(task, description=stage, advance=1)

        machine = measure(device, batch=batch, repeats=repeats, progress=progress)
        bar.update(task, description="done")
    machine.save(output)
    print_table(_table(machine))
    print(f"written to {output}; use it as --accelerator {output}, or fxs.Accelerator.load({str(output)!r})")


def _table(machine: Accelerator) -> Table:
    from rich.table import Table

    from fxsparse.cost_model.roofline import PARENTS

    from ..quantities import quantity

    roofline = machine.roofline
    assert roofline is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("class of operators", "forward", "backward"):
        table.add_column(name, justify="left" if name.startswith("class") else "right")
    for dtype, rate in roofline.peak_flops.items():
        table.add_row(f"peak rate, {dtype}", quantity(rate, "FLOP/s"), "")
    table.add_row("memory bandwidth", quantity(machine.memory.dram_bytes_per_s, "B/s"), "")
    table.add_row("overhead of an operator", quantity(roofline.overhead_s, "s"), "")
    for kind in PARENTS:
        shares = [roofline.efficiency.get(name) for name in (kind, f"{kind}_backward")]
        if any(shares):
            table.add_row(kind.replace("_", " "), *("" if share is None else f"{100 * share:.0f} %" for share in shares))
    return table
