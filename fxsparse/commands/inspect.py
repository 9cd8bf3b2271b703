"""``fxsparse inspect``: what a policy does to a model and what it saves, in the terminal and as files."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import FxSparseError
from ..whole_files import write_text
from .output import progress, require_outputs, show

if TYPE_CHECKING:
    from torch import nn

    from fxsparse.cost_model.accelerator import Accelerator

    from ..compiled_model import CompiledModel
    from ..cost_report import CostReport
    from ..policy import Policy

FORMAT = 1
STDOUT = Path("-")
DENSE = "dense"


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
    compare: Annotated[
        str | None, typer.Option(help='Another policy, or "dense": prints what --policy costs beside it, and whether it pays.')
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="Print the costs sorted by a figure: time_s, flops, dram_bytes, saved_bytes, ...")
    ] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="Fold modules at this depth to one line.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report and the costs there, too; - prints only them.")] = None,
    html_path: Annotated[Path | None, typer.Option("--html", help="Write a page to look at in a browser, self-contained.")] = None,
    onnx_path: Annotated[Path | None, typer.Option("--onnx", help="Write the model there, with sparse weights and metadata.")] = None,
) -> None:
    """Print what a policy changes in a model and what it leaves exact, and the FLOPs that it saves. Nothing is trained.

    Of an exported file it prints what the file says: the same report, and what is stored.
    """
    require_outputs({"--json": None if json_path == STDOUT else json_path, "--html": html_path, "--onnx": onnx_path})
    if model.endswith(".onnx"):
        given = {"--input": inputs, "--policy": policy, "--accelerator": accelerator, "--compare": compare, "--sort": sort}
        _inspect_file(model, json_path, {**given, "--depth": depth is not None, "--html": html_path, "--onnx": onnx_path})
        return
    machine = _checked(model, inputs, accelerator, sort)
    if onnx_path is not None:
        _require_onnx()
    with progress("importing torch") as stage, redirect_stdout(sys.stderr if json_path == STDOUT else sys.stdout):
        found = _Inspection(model, inputs or [], policy, compare, machine, stage)
        written = found.write(html_path, onnx_path, stage)
    if json_path == STDOUT:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
        return
    found.show(depth, sort)
    for line in written:
        print(line)
    if json_path is not None:
        write_text(json_path, json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n")


def _checked(model: str, inputs: list[str] | None, accelerator: str | None, sort: str | None) -> Accelerator | None:
    """The machine. Whatever can be refused without torch is refused here, at once."""
    from fxsparse.cost_model.accelerator import Accelerator

    from ..cost_text import require_sort
    from .arguments import InputForm

    if not inputs:
        raise FxSparseError(f"{model!r} needs the shapes of its inputs: --input 8x3x224x224, once for each positional argument")
    for text in inputs:
        InputForm.of(text)
    if sort is not None:
        require_sort(sort, timed=accelerator is not None)
    return None if accelerator is None else Accelerator.load(accelerator)


def _require_onnx() -> None:
    from ..onnx_export.lower import require_onnx

    require_onnx()


class _Inspection:
    """A compiled model and its costs, and those under the other policy."""

    def __init__(
        self, model: str, inputs: list[str], policy: str | None, compare: str | None, machine: Accelerator | None, stage: Any
    ) -> None:
        from ..policy import as_policy
        from .arguments import example_input
        from .models import load_model

        self.name, self.inputs, self.machine, self.compare = model, inputs, machine, compare or ""
        self.policy = as_policy(None if policy == DENSE else policy)
        self.other_policy = None if compare is None else as_policy(None if compare == DENSE else compare)
        self.example = tuple(example_input(text) for text in inputs)
        stage(f"making {model}")
        module = load_model(model)
        stage(f"compiling {model}")
        self.compiled, self.cost = self._compiled(module, self.policy)
        self.reduction = self.compiled.cost(convention="swat").reduction
        self.other: CompiledModel | None = None
        if self.other_policy is not None:
            stage(f"compiling {model} with {compare}")
            self.other, other_cost = self._compiled(module, self.other_policy)
            self.comparison = self.cost.compare(other_cost)

    def _compiled(self, module: nn.Module, policy: Policy) -> tuple[CompiledModel, CostReport]:
        from ..compiler import compile

        compiled = compile(module, policy, self.example, accelerator=self.machine)
        return compiled, compiled.cost(self.machine)

    def write(self, html_path: Path | None, onnx_path: Path | None, stage: Any) -> list[str]:
        """Writes the files that take long; what is to be said of them."""
        said = []
        if html_path is not None:
            stage(f"writing {html_path}")
            self.compiled.save_html(html_path, self.machine, compare=None if self.other is None else {self.compare: self.other})
            said.append(f"written to {html_path} ({html_path.stat().st_size:,} bytes)")
        if onnx_path is not None:
            stage(f"writing {onnx_path}")
            written = self.compiled.export_onnx(onnx_path)
            said.append(f"written to {written.path} ({written.size_bytes:,} bytes)")
        return said

    def show(self, depth: int | None, sort: str | None) -> None:
        show(self.compiled.report.rich(depth), self.compiled.report.table(depth))
        if self.machine is not None or sort is not None:
            show(self.cost.rich(depth=depth, sort=sort), self.cost.table(depth=depth, sort=sort))
        if self.other is not None:
            print(self.comparison)
        print(
            f"FLOPs saved against dense, counted by the rule named 'swat': "
            f"training {100 * self.reduction['training']:.1f} %, inference {100 * self.reduction['inference']:.1f} %"
        )

    def to_dict(self) -> dict[str, Any]:
        """What --json writes; see inspect.schema.json."""
        found: dict[str, Any] = {
            "format": FORMAT,
            "model": self.name,
            "inputs": list(self.inputs),
            "policy": self.policy.to_dict(),
            "report": self.compiled.report.to_dict(),
            "reduction": {"convention": "swat", **self.reduction},
            "cost": self.cost.to_dict(),
        }
        if self.other_policy is not None:
            found["comparison"] = {"policy": self.other_policy.to_dict(), **self.comparison.to_dict()}
        return found


def _inspect_file(path: str, json_path: Path | None, refused: dict[str, Any]) -> None:
    from ..onnx_export.read_back import OnnxFile

    given = [name for name, value in refused.items() if value]
    if given:
        raise FxSparseError(f"{path!r} is an exported file, which says all of itself: leave out {', '.join(given)}")
    file = OnnxFile(path)
    found = {**file.facts, "nodes": file.node_facts(), "sparsity": file.sparsity()}
    if json_path == STDOUT:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    print(file)
    if json_path is not None:
        write_text(json_path, json.dumps(found, indent=2, allow_nan=False) + "\n")
