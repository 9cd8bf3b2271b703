"""How long ``fxsparse inspect`` takes from a cold start, beside importing torch and torchvision alone."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark

ROOT = Path(__file__).resolve().parents[2]
INSPECT = "inspect torchvision:resnet50 --policy swat-u-90 --input 8x3x224x224 --accelerator eyeriss"
LIMIT_S, RUNS = 6.0, 3


def seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
    return time.perf_counter() - began


def test_inspecting_resnet50_is_quick() -> None:
    seconds("-c", "import torch, torchvision")  # reads the files
    imports = statistics.median(seconds("-c", "import torch, torchvision, torch._dynamo") for _ in range(RUNS))
    whole = statistics.median(seconds("-m", "fxsparse", *INSPECT.split()) for _ in range(RUNS))
    print(f"inspect ResNet-50: {whole:.2f} s, of which importing torch and torchvision {imports:.2f} s")
    assert whole < LIMIT_S
