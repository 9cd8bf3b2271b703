"""Judges models one by one, each in a process of its own with a time limit: ``python -m tests.zoo.run transformers [names]``.

The verdicts are added to zoo_transformers.jsonl in the current folder, or to the file that ZOO_RESULTS names.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .judge import Verdict, judge, short

SUITES = ("torchvision", "timm", "transformers", "torchaudio", "others")
SECONDS = 240  # of the processor, for one model


def child(suite: str, name: str, pipe: Any) -> None:
    """One model, in a process of its own."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    models = importlib.import_module(f".{suite}_models", __package__)
    try:
        verdict = judge(name, models.MODELS[name])
    except Exception as error:  # the model cannot be built, or fails by itself
        verdict = Verdict(name, error=f"not built: {short(error)}")
    pipe.send(asdict(verdict))


def judged(suite: str, name: str) -> dict[str, Any]:
    """The verdict on one model of a suite."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(suite, name, theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        process.join()
        is_late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        found = asdict(Verdict(name, error=f"longer than {SECONDS} s" if is_late else f"its process died ({process.exitcode})"))
    process.kill()
    process.join()
    return found


def main(suite: str, *names: str) -> None:
    models = importlib.import_module(f".{suite}_models", __package__)
    where = Path(os.environ.get("ZOO_RESULTS", f"zoo_{suite}.jsonl"))
    with where.open("a", encoding="utf-8") as file:
        for name in names or models.MODELS:
            found = judged(suite, name)
            file.write(json.dumps(found) + "\n")
            file.flush()
            print(line(found), flush=True)


def line(v: dict[str, Any]) -> str:
    if v["error"]:
        return f"{v['name']:28s} ERROR {v['error']}"
    bad = [f"{key}: {v[key]}" for key, good in (("equal_in_training", "equal"), ("equal_in_evaluation", "equal"), ("step", "ok"),
                                                   ("copied", "ok"), ("missing_sites", [])) if v[key] != good]  # fmt: skip
    share = "-" if v["share"] is None else f"{v['share']:.3f}"
    return (
        f"{v['name']:28s} {v['graphs']:3d} graphs {len(v['left']):3d} left share {share} "
        f"compile {v['compile_seconds']:.2f} s eager {v['eager_seconds']:.3f} s  {'; '.join(bad) or 'ok'}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
