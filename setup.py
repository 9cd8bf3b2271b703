"""Maps the three floors to the packages fxsparse, fxsparse.passes and fxsparse.cost_model, and builds the native kernels."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

FLOORS = {"fxsparse": "fxsparse", "fxsparse.passes": "passes", "fxsparse.cost_model": "cost_model"}

# Codes must come out as PyTorch's: no contraction of a product and a sum into one operation.
FLAGS = [
    "-std=gnu11",
    *([] if "-O" in os.environ.get("CFLAGS", "") else ["-O3"]),
    "-g0",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
]
LEVELS = {
    "portable": [],
    "avx2": ["-mavx2"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
}
# Sums of products, which nothing compares bit by bit.
CONTRACTED = {"sparse.c": ["-ffp-contract=fast"]}
FUSED = {"portable": [], "avx2": ["-mfma"], "avx512": ["-mfma"]}


def packages() -> list[str]:
    found = []
    for name, folder in FLOORS.items():
        inner = find_packages(folder, exclude=["passes", "passes.*", "cost_model", "cost_model.*"] if name == "fxsparse" else [])
        found += [name, *(f"{name}.{package}" for package in inner)]
    return found


class BuildKernels(build_ext):
    """Compiles the kernels once for each level of vector instructions and links them into one shared library.

    It uses nothing of Python or torch. OpenMP's functions are left open: the library that torch has loaded provides them, so that
    there is one pool of threads. Whatever goes wrong here leaves an installation without kernels (the extension is optional).
    """

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        with_levels = platform.machine() in ("x86_64", "AMD64")
        macros = [("FXS_WITH_LEVELS", "1")] if with_levels else []
        made = []
        for level in LEVELS if with_levels else ["portable"]:
            for source in SOURCES if level == "portable" else SOURCES[:-1]:
                contracted = CONTRACTED.get(Path(source).name)
                made += self.compiler.compile(
                    [source],
                    output_dir=str(Path(self.build_temp) / level),
                    macros=[*macros, ("LEVEL", level)],
                    extra_postargs=[*FLAGS, *LEVELS[level], *([*contracted, *FUSED[level]] if contracted else [])],
                    depends=ext.depends,
                )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(made, str(target), libraries=["m"])


SOURCES = ["passes/kernels/kernels.c", "passes/kernels/sparse.c", "passes/kernels/level.c"]  # the last has no levels
HEADERS = sorted(str(file) for file in Path("passes/kernels").glob("*.h"))
KERNELS = Extension("fxsparse.passes.kernels.native", SOURCES, depends=HEADERS, optional=True)

setup(packages=packages(), package_dir=FLOORS, ext_modules=[KERNELS], cmdclass={"build_ext": BuildKernels})
