"""A module that stands in the current folder, as a user's script does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def written_module(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Writes it to ``folder``, goes there until the test has ended, and returns its name, which no other test's has."""
    name = f"net_{abs(hash(folder))}"
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name
