"""Models that people train, each in a process of its own with a time limit: an exhaustive run, of hours."""

from __future__ import annotations

import importlib
import statistics

import pytest

from .run import SUITES, judged, line
from .table import is_right

LIBRARY = {"others": "diffusers"}
LEAST_RIGHT = {"transformers": 0.98}


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("suite", SUITES)
def test_models_are_captured_right(suite: str, request: pytest.FixtureRequest) -> None:
    """All of them, or those named by ``--models``."""
    pytest.importorskip(LIBRARY.get(suite, suite))
    known = importlib.import_module(f".{suite}_models", __package__).MODELS
    wanted = request.config.getoption("--models", default=None)
    names = [name for name in known if wanted is None or name in wanted.split(",")]
    if not names:
        pytest.skip("none of the models that are asked for is in this suite")
    verdicts = [judged(suite, name) for name in names]
    print("\n".join(map(line, verdicts)))
    right = [verdict for verdict in verdicts if is_right(verdict)]
    assert len(right) >= LEAST_RIGHT.get(suite, 1.0) * len(verdicts), [line(verdict) for verdict in verdicts if not is_right(verdict)]
    assert statistics.median(verdict["share"] for verdict in right) >= 0.95
