"""The table of verdicts, from what ``tests.zoo.run`` wrote: ``python -m tests.zoo.table results.jsonl ... > tests/zoo/RESULTS.md``."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HEAD = """\
# Models that were captured

Each in a process of its own, with random weights: `python -m tests.zoo.run timm` judges a suite, `python -m tests.zoo.table` makes this
table, and `tests/zoo/judge.py` says what is asked. Train, eval: outputs, all gradients and buffers equal bit for bit (in train mode with
the same seed). Step: one under SWAT 80 % and SavedActivations(4), finite, with every gradient. Sites: every parameter that torch contracts,
counted by a dispatch mode, is one. Copies: deepcopy and state_dict. Share: of the contractions that stand in graphs. Compile, eager:
seconds of the processor for `fxs.compile` and for one forward pass, one thread, on a machine that others used too.
"""
QUESTIONS = (("equal_in_training", "equal"), ("equal_in_evaluation", "equal"), ("step", "ok"), ("missing_sites", []), ("copied", "ok"))
COLUMNS = ("model", "graphs", "Python parts", "train", "eval", "step", "sites", "copies", "share", "compile", "eager")


def main(*paths: str) -> None:
    suites = {Path(path).stem.removeprefix("zoo_"): latest(Path(path)) for path in paths}
    print(HEAD)
    head = ("suite", "models", "compiled", "equal", "step", "sites", "copies", "median share", "median compile", "median eager", "in time")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for suite, verdicts in suites.items():
        print(f"| {suite} | {' | '.join(summary(verdicts))} |")
    print("\nIn time: compiled within three eager forwards and one second, and whether the median model is.\n")
    for suite, verdicts in suites.items():
        print(f"## {suite}\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        print("\n".join(map(row, verdicts)) + "\n")


def latest(path: Path) -> list[dict[str, Any]]:
    """The last verdict on each model."""
    return list({v["name"]: v for v in map(json.loads, path.read_text(encoding="utf-8").splitlines())}.values())


def summary(verdicts: list[dict[str, Any]]) -> list[str]:
    """How many models there are, how many are all right in each question, and medians of those that were compiled."""
    compiled = [v for v in verdicts if v["error"] is None]
    good = [sum(v[key] == wanted for v in compiled) for key, wanted in QUESTIONS[2:]]
    equal = sum(is_right(v) for v in compiled)
    share = statistics.median(v["share"] for v in compiled)
    counts = (len(verdicts), len(compiled), equal, *good)
    return [*map(str, counts), f"{share:.3f}", *times([v for v in compiled if v["compile_seconds"] is not None])]


def times(timed: list[dict[str, Any]]) -> list[str]:
    """Medians of the two times, and how many models were compiled within three eager forwards and one second."""
    if not timed:
        return ["-"] * 3
    seconds, eager = (statistics.median(v[key] for v in timed) for key in ("compile_seconds", "eager_seconds"))
    over = [v["compile_seconds"] - 3 * v["eager_seconds"] - 1 for v in timed]
    typical = "yes" if statistics.median(over) <= 0 else "no"
    return [f"{seconds:.2f} s", f"{eager:.3f} s", f"{sum(each <= 0 for each in over)} of {len(timed)} (median: {typical})"]


def is_right(verdict: dict[str, Any]) -> bool:
    """Compiled, and equal to its original bit for bit in both modes."""
    return verdict["error"] is None and verdict["equal_in_training"] == verdict["equal_in_evaluation"] == "equal"


def row(v: dict[str, Any]) -> str:
    if v["error"]:
        return f"| {v['name']} | {_plain(v['error'])} |{' |' * (len(COLUMNS) - 2)}"
    answers = ["yes" if v[key] == wanted else _plain(v[key]) for key, wanted in QUESTIONS]
    digits = (("share", 2), ("compile_seconds", 2), ("eager_seconds", 3))
    numbers = ["-" if v[key] is None else f"{v[key]:.{count}f}" for key, count in digits]
    return f"| {' | '.join((v['name'], str(v['graphs']), str(len(v['left'])), *answers, *numbers))} |"


def _plain(found: Any) -> str:
    return (f"without {len(found)}" if isinstance(found, list) else str(found)).replace("|", "/")[:120]


if __name__ == "__main__":
    main(*sys.argv[1:])
