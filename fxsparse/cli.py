"""The command line: ``fxsparse demo``, ``presets``, ``accelerators``, ``calibrate`` and ``inspect``.

Whatever is refused ends in one line on standard error and a status other than 0. Torch is imported by the commands that need it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fxsparse.cost_model.roofline import PARENTS

from .cli_arguments import example_input, load_model
from .errors import FxSparseError

if TYPE_CHECKING:
    from rich.table import Table

    from fxsparse.cost_model.accelerator import Accelerator

QUICK_WIDTH, QUICK_EPOCHS = 8, 2


class OneLineErrors(TyperGroup):
    """Commands whose refusals, wrong arguments included, are one line on standard error."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        def run() -> Any:
            return super(OneLineErrors, self).main(args, prog_name, complete_var, False, windows_expand_args, **extra)

        if not standalone_mode:
            return run()
        try:
            status = run()
            sys.exit(status if isinstance(status, int) else 0)
        except FxSparseError as error:
            _say(str(error))
            sys.exit(1)
        except OSError as error:
            _say(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
            sys.exit(1)
        except typer.Abort:
            _say("stopped")
            sys.exit(130)
        except Exception as error:
            # typer's own refusals; their class stands in another module from version to version.
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            _say(f"{message()} {_usage(error)}")
            sys.exit(getattr(error, "exit_code", 2))


def _say(message: str) -> None:
    print(f"fxsparse: {' '.join(message.split())}", file=sys.stderr)


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"(try '{context.command_path} --help')" if context is not None else "(try 'fxsparse --help')"


app = typer.Typer(
    cls=OneLineErrors,
    help="Sparse training of PyTorch models: what a policy does to a model, what it saves, and a demonstration.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fxsparse {sys.modules['fxsparse'].__dict__['__version__']}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each training.", show_default="30")] = None,
    technique: Annotated[str, typer.Option(help="What is compared: swat, or granet (and static masks, SET, RigL).")] = "swat",
    width: Annotated[int | None, typer.Option(min=1, help="Channels of the first stage.", show_default="32")] = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from the first on.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A narrow network and few epochs: shows that it runs, not how well.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the results there, too.")] = None,
) -> None:
    """Train a small residual network on scikit-learn's digits, dense and sparse in several ways, and compare."""
    from rich.console import Console

    from .demo import demo_table, run_demo
    from .digits import Recipe

    _require_folder(json_path)
    usual_width, usual_epochs = (QUICK_WIDTH, QUICK_EPOCHS) if quick else (Recipe.width, Recipe.epochs)
    recipe = Recipe(width=usual_width if width is None else width, epochs=usual_epochs if epochs is None else epochs)
    results = run_demo(recipe, range(seed, seed + seeds), technique=technique)
    _print_table(demo_table(results))
    rule = "'rigl', training with the densities that the run had" if technique == "granet" else "'swat'"
    Console(soft_wrap=True).print(
        f"Kept: measured, over all elements of all contractions. FLOPs: of the contractions, counted by the rule named {rule}."
    )
    if json_path is not None:
        json_path.write_text(json.dumps([row.to_dict() for row in results], indent=2) + "\n")


@app.command()
def presets() -> None:
    """List the policies that have a name."""
    from rich.table import Table

    from .preset_policies import preset_policy
    from .preset_policies import presets as names

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for name in names():
        table.add_row(name, " + ".join(describe(technique.to_dict()) for technique in preset_policy(name)))
    _print_table(table)


@app.command()
def accelerators() -> None:
    """List the machines that costs can be computed for."""
    from rich.table import Table

    from fxsparse.cost_model.accelerator import Accelerator
    from fxsparse.cost_model.accelerator import accelerators as names

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for name in names():
        table.add_row(name, getattr(Accelerator.load(name), "description", ""))
    _print_table(table)


@app.command()
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="torchvision:NAME, or module.path:factory for a function (or class) that makes a model, or an exported file, FILE.onnx."
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="Shape of an input, such as 8x3x224x224 or 8x128:int64; once for each positional argument."),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="A preset's name or the path of a YAML or JSON file; none changes nothing.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="A machine: its name or YAML file. Prints the costs on it.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report and the costs there, too.")] = None,
    onnx_path: Annotated[Path | None, typer.Option("--onnx", help="Write the model there, with sparse weights and metadata.")] = None,
) -> None:
    """Print what a policy changes in a model and what it leaves exact, and the FLOPs that it saves. Nothing is trained.

    Of an exported file it prints what the file says: the same report, and what is stored.
    """
    if model.endswith(".onnx"):
        _inspect_file(model, json_path, {"--input": inputs, "--policy": policy, "--accelerator": accelerator, "--onnx": onnx_path})
        return
    if not inputs:
        raise FxSparseError(f"{model!r} needs the shapes of its inputs: --input 8x3x224x224, once for each positional argument")
    from .compiler import compile
    from .policy import as_policy

    _require_folder(json_path)
    _require_folder(onnx_path, "--onnx")
    example_inputs = tuple(example_input(text) for text in inputs)
    chosen = as_policy(policy)
    compiled = compile(load_model(model), chosen, example_inputs, accelerator=accelerator)
    saved = compiled.cost(convention="swat").reduction
    cost = compiled.cost(accelerator)
    print(compiled.report)
    if accelerator is not None:
        print(cost)
    print(
        f"FLOPs saved against dense, counted by the rule named 'swat': "
        f"training {100 * saved['training']:.1f} %, inference {100 * saved['inference']:.1f} %"
    )
    if json_path is not None:
        found = {
            "model": model,
            "inputs": list(inputs),
            "policy": chosen.to_dict(),
            "report": compiled.report.to_dict(),
            "reduction": {"convention": "swat", **saved},
            "cost": cost.to_dict(),
        }
        json_path.write_text(json.dumps(found, indent=2) + "\n")
    if onnx_path is not None:
        written = compiled.export_onnx(onnx_path)
        print(f"written to {written.path} ({written.size_bytes:,} bytes)")


def _inspect_file(path: str, json_path: Path | None, refused: dict[str, Any]) -> None:
    from .onnx_export.read_back import OnnxFile

    given = [name for name, value in refused.items() if value]
    if given:
        raise FxSparseError(f"{path!r} is an exported file, which says all of itself: leave out {', '.join(given)}")
    _require_folder(json_path)
    file = OnnxFile(path)
    print(file)
    if json_path is not None:
        json_path.write_text(json.dumps({**file.facts, "nodes": file.node_facts(), "sparsity": file.sparsity()}, indent=2) + "\n")


@app.command()
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
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from .calibrate import STAGES, require_device
    from .calibrate import calibrate as measure

    require_device(device)
    output = output or Path(f"{device}.yaml")
    _require_folder(output, "--output")
    if output.exists() and not force:
        raise FxSparseError(f"--output {str(output)!r} exists; name another file, or pass --force to overwrite it")
    with Progress(BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(), TextColumn("{task.description}")) as bar:
        task = bar.add_task("", total=STAGES)

        def progress(stage: str) -> None:
            bar.update(task, description=stage, advance=1)

        machine = measure(device, batch=batch, repeats=repeats, progress=progress)
        bar.update(task, description="done")
    machine.save(output)
    _print_table(_calibration_table(machine))
    print(f"written to {output}; use it as --accelerator {output}, or fxs.Accelerator.load({str(output)!r})")


def _calibration_table(machine: Accelerator) -> Table:
    from rich.table import Table

    from .cost_text import quantity

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


def describe(technique: dict[str, Any]) -> str:
    """A technique's plain data as one line: its name, then each setting that is not the default, sparsities in per cent."""
    settings = []
    for name, setting in technique.items():
        if name != "technique":
            shown = f"{100 * setting:g} %" if name.endswith("sparsity") else str(setting)
            settings.append(f"{name.replace('_', ' ')} {shown}")
    return f"{technique['technique']}: {', '.join(settings)}" if settings else str(technique["technique"])


def _require_folder(path: Path | None, option: str = "--json") -> None:
    """Refuses a file that could not be written, before the long work."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        wrong = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise FxSparseError(f"{option} {str(path)!r} {wrong}; expected the name of a file to write")


def _print_table(table: Any) -> None:
    """Prints a rich table, never narrower than its content where the output is no terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def main() -> None:
    """The entry point."""
    app(prog_name="fxsparse")


if __name__ == "__main__":
    main()
