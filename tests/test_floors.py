"""The three floors of the repository import only downwards: fxsparse, then fxsparse.passes, then fxsparse.cost_model."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"fxsparse": ("fxsparse", 2), "fxsparse.passes": ("passes", 1), "fxsparse.cost_model": ("cost_model", 0)}
LEAF = "fxsparse.errors"
COST_MODEL_NEEDS = {"numpy", "yaml"}


def modules_of(root: Path) -> dict[str, Path]:
    """Every module of the three folders by its installed name; a package is named like its folder."""
    modules = {}
    for package, (folder, _) in FLOORS.items():
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            modules[".".join([package, *parts])] = file
    return modules


def floor_of(module: str) -> str:
    """The face (the package) of the floor that a module of ours stands on."""
    return max((face for face in FLOORS if module == face or module.startswith(f"{face}.")), key=len)


def imports_of(source: str) -> list[tuple[int, int, str, str | None]]:
    """Every import as (line, number of leading dots, module, imported name or None), wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                found += [(node.lineno, 0, alias.name, None) for alias in node.names]
            case ast.ImportFrom():
                found += [(node.lineno, node.level, node.module or "", alias.name) for alias in node.names]
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                found.append((node.lineno, len(name) - len(name.lstrip(".")), name.lstrip("."), None))
    return found


def faults(module: str, source: str, *, is_package: bool = False, modules: frozenset[str] = frozenset()) -> list[str]:
    """What the imports of one source file do wrong, a line each. `modules`: the names of all modules of the repository."""
    found = []
    floor = floor_of(module)
    for line, dots, target, name in imports_of(source):
        if dots:
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: max(0, len(package) - dots + 1)]
            if not base:
                found.append(f"{module}:{line}: leads out of the package")
                continue
            target = ".".join([*base, *([target] if target else [])])
        elif target.split(".")[0] != "fxsparse":
            top = target.split(".")[0]
            if top in {"passes", "cost_model"}:
                found.append(f"{module}:{line}: the installed name of {top} is fxsparse.{top}")
            elif module == LEAF and top not in sys.stdlib_module_names:
                found.append(f"{module}:{line}: everyone may import {LEAF}, so it needs nothing, but it imports {top}")
            elif floor == "fxsparse.cost_model" and top not in sys.stdlib_module_names | COST_MODEL_NEEDS:
                found.append(f"{module}:{line}: the cost model needs numpy and yaml only, but imports {top}")
            continue

        inner = f"{target}.{name}" if name is not None and f"{target}.{name}" in modules else target
        below = floor_of(inner)
        said = f"{module}:{line}: imports {target}" + (f" ({name})" if name else "")
        if module == LEAF:
            found.append(f"{said}: {LEAF} may import nothing of ours")
        elif inner == LEAF and floor != "fxsparse":
            if dots:
                found.append(f"{said}: across floors imports are absolute")
            elif target != LEAF:
                found.append(f"{said}: import from {LEAF}, not from the face")
        elif FLOORS[below][1] > FLOORS[floor][1]:
            found.append(f"{said}: climbs from {floor} to {below}")
        elif below != floor and dots:
            found.append(f"{said}: across floors imports are absolute")
        elif below != floor and target in FLOORS:
            found.append(f"{said}: across floors imports name the submodule, not the face")
        elif below == floor and not dots:
            found.append(f"{said}: inside a floor imports are relative")
        elif below == floor and inner in FLOORS:
            found.append(f"{said}: imports from the face of its own floor")
    return found


MODULES = modules_of(ROOT)


@pytest.mark.parametrize("module", MODULES)
def test_no_import_climbs(module: str) -> None:
    file = MODULES[module]
    assert not faults(module, file.read_text(encoding="utf-8"), is_package=file.name == "__init__.py", modules=frozenset(MODULES))


def test_every_floor_is_read() -> None:
    assert {*FLOORS, LEAF, "fxsparse.passes.ops"} <= set(MODULES)
    assert not {"fxsparse.passes.passes", "fxsparse.cost_model.cost_model"} & set(MODULES)
    files = [file.resolve() for file in MODULES.values()]
    assert len(files) == len(set(files)), "a symbolic link was followed, and a file read under two names"


KNOWN = frozenset({*FLOORS, LEAF, "fxsparse.policy", "fxsparse.passes.base", "fxsparse.passes.ops", "fxsparse.cost_model.workload"})


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fxsparse.compile", "import torch\nfrom fxsparse.passes.base import GraphPass\nfrom fxsparse.cost_model.workload import Workload"),
        ("fxsparse.compile", "from . import policy\nfrom .policy import Policy\nfrom .errors import PolicyError"),
        ("fxsparse.compile", "import fxsparse.passes.ops"),
        ("fxsparse.passes.insert_swat", "from .base import GraphPass\nfrom .ops import swat\nfrom fxsparse.errors import PassError"),
        ("fxsparse.passes.ops.swat", "from ..base import GraphPass\nfrom .. import base\nimport fxsparse.cost_model.workload"),
        ("fxsparse.cost_model.density", "import math\nimport numpy as np\nimport yaml\nfrom .workload import WorkloadSpec"),
        ("fxsparse.cost_model.density", "from fxsparse.errors import CostError"),
        ("fxsparse.errors", "import enum"),
    ],
)
def test_checker_accepts(module: str, source: str) -> None:
    assert faults(module, source, modules=KNOWN) == []


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("fxsparse.passes.base", "from fxsparse.policy import Policy", "climbs from fxsparse.passes to fxsparse"),
        ("fxsparse.passes.base", "def f():\n    import fxsparse.policy", "passes.base:2: .* climbs"),
        ("fxsparse.passes.base", "if TYPE_CHECKING:\n    from fxsparse.policy import Policy", "climbs"),
        ("fxsparse.passes.base", "importlib.import_module('fxsparse.policy')", "climbs"),
        ("fxsparse.passes.base", "import fxsparse", "climbs"),
        ("fxsparse.passes.base", "from fxsparse import errors", "from fxsparse.errors, not from the face"),
        ("fxsparse.passes.base", "from ..policy import Policy", "climbs"),
        ("fxsparse.passes.base", "from ..errors import PassError", "across floors imports are absolute"),
        ("fxsparse.passes.base", "from ..cost_model.workload import WorkloadSpec", "across floors imports are absolute"),
        ("fxsparse.passes.base", "from fxsparse.passes.ops import swat", "inside a floor imports are relative"),
        ("fxsparse.passes.base", "from . import GraphPass", "from the face of its own floor"),
        ("fxsparse.passes.base", "from fxsparse.cost_model import WorkloadSpec", "the submodule, not the face"),
        ("fxsparse.passes.base", "from fxsparse.cost_model import workload", "the submodule, not the face"),
        ("fxsparse.passes.base", "import passes.ops", "the installed name of passes is fxsparse.passes"),
        ("fxsparse.passes.base", "from .... import x", "leads out of the package"),
        ("fxsparse.cost_model.workload", "import torch", "imports torch"),
        ("fxsparse.cost_model.workload", "import os, torch.nn", "imports torch"),
        ("fxsparse.cost_model.workload", "from networkx import DiGraph", "imports networkx"),
        ("fxsparse.cost_model.workload", "from fxsparse.passes.base import GraphPass", "from fxsparse.cost_model to fxsparse.passes"),
        ("fxsparse.cost_model.workload", "from fxsparse.passes import base", "climbs from fxsparse.cost_model to fxsparse.passes"),
        ("fxsparse.compile", "from fxsparse.passes import GraphPass", "the submodule, not the face"),
        ("fxsparse.compile", "import fxsparse.passes", "the submodule, not the face"),
        ("fxsparse.compile", "from .passes.base import GraphPass", "across floors imports are absolute"),
        ("fxsparse.compile", "from fxsparse.policy import Policy", "inside a floor imports are relative"),
        ("fxsparse.compile", "from fxsparse.errors import PolicyError", "inside a floor imports are relative"),
        ("fxsparse.compile", "from . import Policy", "from the face of its own floor"),
        ("fxsparse.errors", "from .policy import Policy", "may import nothing of ours"),
        ("fxsparse.errors", "import torch", "but it imports torch"),
    ],
)
def test_checker_refuses(module: str, source: str, reason: str) -> None:
    [fault] = faults(module, source, modules=KNOWN)
    assert re.search(reason, fault)


def test_checker_reads_a_package_from_its_own_folder() -> None:
    source = "from .base import GraphPass"
    assert faults("fxsparse.passes", source, is_package=True, modules=KNOWN) == []
    assert "climbs" in faults("fxsparse.passes", "from ..policy import Policy", is_package=True, modules=KNOWN)[0]
