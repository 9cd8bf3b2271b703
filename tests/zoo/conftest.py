"""Which models are judged: ``pytest -m slow tests/zoo --models Bert,GPT2``."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--models", help="names of models, with commas between them; else every model of the suites")
