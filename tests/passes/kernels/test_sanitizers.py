"""The kernels under the address and undefined-behaviour sanitizers: compared with the reference once more, in another process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all"


def runtime(name: str) -> str | None:
    """The path of one of the compiler's libraries."""
    if shutil.which("gcc") is None:
        return None
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=False).stdout.strip()
    return found if os.path.isabs(found) else None


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(runtime("libasan.so") is None, reason="no gcc with sanitizers")
def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("fxsparse", "passes", "cost_model"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(Path(__file__).parent, tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", Path(__file__).name))
    environment = dict(os.environ, CC="gcc", CFLAGS=f"-O1 {SANITIZE}", LDFLAGS=SANITIZE)  # -O3 would take minutes
    run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], tmp_path, environment)
    assert (tmp_path / "passes" / "kernels" / "native.so").is_file()
    preload = " ".join(path for path in (runtime("libasan.so"), runtime("libubsan.so")) if path)
    environment |= {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    environment |= {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "0", "PYTHONPATH": str(tmp_path)}
    done = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"], tmp_path, environment)
    assert " passed" in done
    assert "skipped" not in done


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout
