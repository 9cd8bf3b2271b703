"""The examples run as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *args: str, folder: Path, status: int = 0, timeout: float = 250) -> str:
    """The standard output of an example that is run from another folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "130", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / name), *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("example", [file.name for file in EXAMPLES])
def test_help(example: str, tmp_path: Path) -> None:
    assert f"usage: {example}" in run(example, "--help", folder=tmp_path)


def test_train_swat_learns_under_each_policy(tmp_path: Path) -> None:
    out = run("train_swat.py", "--epochs", "3", "--width", "8", "--policies", "dense", "swat-u-90", folder=tmp_path)
    dense, sparse = out.split("\nswat-u-90\n")
    assert "100.0 % of the weights kept" in dense
    assert "FLOPs saved: 0.0 % of training" in dense
    kept = float(re.findall(r"([\d.]+) % of the weights kept", sparse)[0])
    assert 9 < kept < 20
    accuracies = [float(re.findall(r"test accuracy ([\d.]+) %", text)[0]) for text in (dense, sparse)]
    assert accuracies[0] > 90
    assert accuracies[1] > 60


def test_digits_accuracy_fails_when_a_margin_is_missed(tmp_path: Path) -> None:
    out = run("digits_accuracy.py", "--seeds", "1", "--epochs", "1", "--width", "4", folder=tmp_path, status=1)
    assert re.search(r"SWAT-U 90 %: -[\d.]+ points against dense, margin 1.0 points: MISSED", out)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_seeds_keep_the_margins(tmp_path: Path) -> None:
    out = run("digits_accuracy.py", "--seeds", "5", folder=tmp_path, timeout=3500)
    assert out.count(": kept") == 2
    assert float(re.findall(r"^dense\s+([\d.]+)", out, flags=re.MULTILINE)[0]) > 98.5, "the dense network is properly trained"
