"""The examples run as a user runs them."""

import json
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


def test_export_onnx_writes_runs_and_reads_back(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = run("export_onnx.py", "--model", "squeezenet1_1", folder=tmp_path)
    assert float(re.findall(r"([\d.]+)x of the dense file", out)[0]) < 0.35
    assert float(re.findall(r"model's: (\S+) of", out)[0]) < 1e-4
    assert "outputs bit-equal" in out


def test_digits_accuracy_fails_when_a_margin_is_missed(tmp_path: Path) -> None:
    out = run("digits_accuracy.py", "--seeds", "1", "--epochs", "1", "--width", "4", folder=tmp_path, status=1)
    assert re.search(r"SWAT-U 90 %: -[\d.]+ points against dense, margin 1.0 points: MISSED", out)


def test_train_saved_activations_keeps_less_and_learns(tmp_path: Path) -> None:
    out = run("train_saved_activations.py", "--epochs", "6", "--width", "8", folder=tmp_path)
    rows = re.findall(r"([\d.]+) KiB kept for backward, test accuracy ([\d.]+) %", out)
    kept, accuracies = zip(*((float(kib), float(accuracy)) for kib, accuracy in rows), strict=True)
    assert kept[0] / kept[1] > 5
    assert kept[2] / kept[3] > 3
    assert min(accuracies) > 75


def test_saved_accuracy_prints_margins(tmp_path: Path) -> None:
    command = ("--seeds", "1", "--epochs", "1", "--width", "4", "--networks", "transformer")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(ROOT / "examples" / "saved_accuracy.py"), *command]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert len(re.findall(r"[+-][\d.]+ points, margin 0\.[35]: (?:kept|MISSED)", done.stdout)) == 2, done.stderr
    assert done.returncode == ("MISSED" in done.stdout)


def test_train_granet_moves_masks_and_counts_the_run(tmp_path: Path) -> None:
    out = run("train_granet.py", "--epochs", "4", "--width", "8", "--methods", "granet", "saliency", folder=tmp_path)
    granet, saliency = out.split("\nsaliency\n")
    kept = [int(count) for count in re.findall(r"(\d+) weights", granet)]
    assert kept[0] > kept[-1]
    assert len({*re.findall(r"(\d+) weights", saliency)}) == 1
    for text in (granet, saliency):
        assert float(re.findall(r"test accuracy ([\d.]+) %", text)[0]) > 40
        assert 0.1 < float(re.findall(r"took ([\d.]+)x", text)[0]) < 0.6


def test_granet_accuracy_fails_when_the_order_is_missed(tmp_path: Path) -> None:
    options = ("--seeds", "1", "--epochs", "1", "--width", "8", "--network", "residual", "--json", "results.json")
    out = run("granet_accuracy.py", *options, folder=tmp_path, status=1)
    assert len(re.findall(r": (?:yes|NO)$", out, flags=re.MULTILINE)) == 5
    assert ": NO" in out
    assert [row["method"] for row in json.loads((tmp_path / "results.json").read_text())][:2] == ["dense", "static 90 %"]


@pytest.mark.timeout(600)
def test_train_distributed_saves_on_two_ranks_and_goes_on_with_one(tmp_path: Path) -> None:
    def launch(ranks: int, *args: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += [str(ROOT / "examples" / "train_distributed.py"), *args]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "2 ranks, steps 0 to 12: " in launch(2, "--shard", "--steps", "12", "--save", "checkpoint")
    assert re.search(r"1 ranks, steps 12 to 60: .* 2571 of 25520 weights", launch(1, "--resume", "checkpoint"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_masks_are_in_the_expected_order(tmp_path: Path) -> None:
    out = run("granet_accuracy.py", "--seeds", "5", folder=tmp_path, timeout=3500)
    assert out.count(": yes") == 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_seeds_keep_the_margins(tmp_path: Path) -> None:
    out = run("digits_accuracy.py", "--seeds", "5", folder=tmp_path, timeout=3500)
    assert out.count(": kept") == 2
    assert float(re.findall(r"^dense\s+([\d.]+)", out, flags=re.MULTILINE)[0]) > 98.5, "the dense network is properly trained"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_five_seeds_keep_the_margins_of_kept_codes(tmp_path: Path) -> None:
    out = run("saved_accuracy.py", "--seeds", "5", folder=tmp_path, timeout=7000)
    assert out.count(": kept") == 6
    assert min(float(mean) for mean in re.findall(r"exact\s+([\d.]+)", out)) > 95, "the exact networks are properly trained"


def test_save_html_writes_a_page(tmp_path: Path) -> None:
    out = run("save_html.py", "--model", "resnet18", "--size", "32", "--batch", "2", "--output", "page.html", folder=tmp_path)
    assert "open it in a browser" in out
    assert "swat-erk-80" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_look_inside_shows_every_side(tmp_path: Path) -> None:
    out = run("look_inside.py", folder=tmp_path)
    for words in ("9 rewritten", "+++ (root) after insert_swat", "stage2.conv1.weight: conv", "critical path: ", "stage3: "):
        assert words in out
