"""The table of verdicts, from what ``tests.zoo.run`` wrote: ``python -m tests.zoo.table results.jsonl ... > tests/zoo/RESULTS.md``."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any


def main(*paths: str) -> None:
    print("# Models that were captured\n")
    print("Each in a process of its own, by a small random configuration; the words are those of `tests/zoo/judge.py`. Equal: outputs,")
    print("gradients and buffers bit for bit, in train mode (same seed) and in eval mode. Step: one under SWAT 80 % and")
    print("SavedActivations(4). Sites: every parameter that torch contracts, counted by a dispatch mode, is one. Share: of the")
    print("contractions that stand in graphs. Compile times were taken on a busy machine.\n")
    for path in paths:
        verdicts = list({v["name"]: v for v in map(json.loads, Path(path).read_text().splitlines())}.values())
        print(f"## {Path(path).stem.removeprefix('zoo_')}\n\n{summary(verdicts)}\n")
        print("| model | graphs | Python parts | train | eval | step | sites | copies | share |\n|---|---|---|---|---|---|---|---|---|")
        for verdict in verdicts:
            print(row(verdict))
        print()


def summary(verdicts: list[dict[str, Any]]) -> str:
    built = [v for v in verdicts if not str(v["error"]).startswith("not built")]
    compiled = [v for v in built if v["error"] is None]
    equal = [v for v in compiled if v["equal_in_training"] == v["equal_in_evaluation"] == "equal"]
    steps = [v for v in compiled if v["step"] == "ok"]
    sites = [v for v in compiled if v["missing_sites"] == []]
    shares = [v["share"] for v in compiled if v["share"] is not None]
    return (
        f"{len(compiled)} of {len(built)} compiled, {len(equal)} equal bit for bit, {len(steps)} make the sparse step, "
        f"{len(sites)} with every contraction a site; median share in graphs {statistics.median(shares):.3f}."
    )


def row(v: dict[str, Any]) -> str:
    if v["error"]:
        return f"| {v['name']} | {v['error'].replace('|', '/')} | | | | | | | |"
    sites = "yes" if v["missing_sites"] == [] else f"without {len(v['missing_sites'])}"
    words = [_yes(v[key], good) for key, good in (("equal_in_training", "equal"), ("equal_in_evaluation", "equal"), ("step", "ok"))]
    share = "-" if v["share"] is None else f"{v['share']:.2f}"
    return f"| {v['name']} | {v['graphs']} | {len(v['left'])} | {' | '.join(words)} | {sites} | {_yes(v['copied'], 'ok')} | {share} |"


def _yes(found: str | None, good: str) -> str:
    return "yes" if found == good else str(found).replace("|", "/")[:120]


if __name__ == "__main__":
    main(*sys.argv[1:])
