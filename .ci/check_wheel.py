"""Checks the fxsparse that is installed beside this interpreter: `check_wheel.py CHECKOUT EMPTY_FOLDER`."""

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

FLOORS = {"fxsparse": "fxsparse", "fxsparse.passes": "passes", "fxsparse.cost_model": "cost_model"}
SHIPPED = {".py", ".yaml", ".typed", ".html", ".js", ".css", ".txt", ".c", ".h"}


def main(checkout: Path, elsewhere: Path) -> None:
    for name in ("passes", "cost_model"):  # a user's own folders, in the current directory, that must not matter
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "__init__.py").write_text('raise RuntimeError("the folder of a user was imported")\n')
    os.chdir(elsewhere)
    sys.path[0] = str(elsewhere)  # as if the user had started Python there

    site = Path(sysconfig.get_path("purelib")).resolve()
    missing = []
    for package, folder in FLOORS.items():
        module = importlib.import_module(package)
        assert module.__file__ is not None, f"{package} is a namespace package"
        home = Path(module.__file__).resolve().parent
        assert home == site.joinpath(*package.split(".")), f"{package} was imported from {home}, not from the wheel in {site}"
        for file in sorted((checkout / folder).rglob("*")):
            inner = file.relative_to(checkout / folder)
            if file.suffix in SHIPPED and "__pycache__" not in inner.parts and not (home / inner).is_file():
                missing.append(f"{folder}/{inner}")
    assert not missing, f"not in the wheel: {missing}"
    assert (site / "fxsparse" / "py.typed").is_file()
    for name in ("passes", "cost_model"):
        assert not (site / name).exists(), f"the wheel installs a top-level {name}"
    kernels = importlib.import_module("fxsparse.passes.kernels.library").library()
    assert kernels is not None or shutil.which("cc") is None, "there is a C compiler, but the wheel has no native kernels"
    print("native kernels:", "none" if kernels is None else kernels.level)
    print(f"fxsparse {importlib.metadata.version('fxsparse')} works from {site}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
