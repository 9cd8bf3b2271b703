"""Models that people train, each in a process of its own with a time limit: an exhaustive run, of hours."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from .run import SUITES, judged, line

LIBRARY = {"torchvision": "torchvision", "timm": "timm", "transformers": "transformers", "torchaudio": "torchaudio", "others": "diffusers"}
LEAST_RIGHT = {"torchvision": 1.0, "timm": 1.0, "transformers": 0.98, "torchaudio": 1.0, "others": 1.0}


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("suite", SUITES)
def test_models_are_captured_right(suite: str, tmp_path: Path) -> None:
    pytest.importorskip(LIBRARY[suite])
    names = importlib.import_module(f".{suite}_models", __package__).MODELS
    verdicts = [judged(suite, name) for name in names]
    (tmp_path / f"{suite}.json").write_text(json.dumps(verdicts))
    built = [verdict for verdict in verdicts if not str(verdict["error"]).startswith("not built")]
    print("\n".join(line(verdict) for verdict in built))
    right = [verdict for verdict in built if is_right(verdict)]
    assert len(right) >= LEAST_RIGHT[suite] * len(built), [line(verdict) for verdict in built if not is_right(verdict)]
    assert statistics.median(verdict["share"] for verdict in right) >= 0.95


def is_right(verdict: dict[str, Any]) -> bool:
    """Compiled, and equal to its original bit for bit in both modes."""
    return verdict["error"] is None and verdict["equal_in_training"] == verdict["equal_in_evaluation"] == "equal"
