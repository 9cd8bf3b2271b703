"""``fxsparse demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..whole_files import write_text
from .output import print_table, require_outputs

QUICK_WIDTH, QUICK_EPOCHS = 8, 2


def demo(
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each training.", show_default="30")] = None,
    technique: Annotated[str, typer.Option(help="What is compared: swat, or granet (and static masks, SET, RigL).")] = "swat",
    width: Annotated[int | None, typer.Option(min=1, help="Channels of the first stage.", show_default="32")] = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from the first on.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A narrow network and few epochs: shows that it runs, not how well.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the results there, too.")] = None,
    log: Annotated[
        Path | None, typer.Option(help="Write a log of each training into this folder: CSV, and TensorBoard if it is installed.")
    ] = None,
) -> None:
    """Train a small residual network on scikit-learn's digits, dense and sparse in several ways, and compare."""
    from rich.console import Console

    from ..demo import demo_table, run_demo
    from ..digits import Recipe

    require_outputs({"--json": json_path})
    usual_width, usual_epochs = (QUICK_WIDTH, QUICK_EPOCHS) if quick else (Recipe.width, Recipe.epochs)
    recipe = Recipe(width=usual_width if width is None else width, epochs=usual_epochs if epochs is None else epochs)
    results = run_demo(recipe, range(seed, seed + seeds), technique=technique, log=log)
    print_table(demo_table(results))
    rule = "'rigl', training with the densities that the run had" if technique == "granet" else "'swat'"
    Console(soft_wrap=True).print(
        f"Kept: measured, over all elements of all contractions. FLOPs: of the contractions, counted by the rule named {rule}."
    )
    if log is not None:
        print(f"logs written to {log}")
    if json_path is not None:
        write_text(json_path, json.dumps([row.to_dict() for row in results], indent=2) + "\n")
