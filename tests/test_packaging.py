"""What is built is what is in the tree: three folders, three packages, nothing twice and nothing left out."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"fxsparse": "fxsparse", "passes": "fxsparse/passes", "cost_model": "fxsparse/cost_model"}
# These are imported by whoever needs them: `import fxsparse` works without.
EXTRAS = ("jinja2", "lightning", "onnx", "onnxruntime", "onnxscript", "sklearn", "torchvision", "transformers")


def shipped(inner: Path) -> bool:
    """False for what tools leave behind: caches, compiled libraries, editors' hidden files."""
    return not any(part == "__pycache__" or part.startswith(".") for part in inner.parts) and inner.suffix not in {".pyc", ".so"}


def tree(root: Path) -> dict[str, bytes]:
    """The files of the three folders by their installed path; symbolic links are not followed."""
    found = {}
    for folder, installed in FLOORS.items():
        for directory, subfolders, files in os.walk(root / folder, followlinks=False):
            subfolders[:] = [name for name in subfolders if not Path(directory, name).is_symlink()]
            for file in (Path(directory, name) for name in files):
                if shipped(inner := file.relative_to(root / folder)):
                    found[f"{installed}/{inner.as_posix()}"] = file.read_bytes()
    return found


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names)), "a file stands in the wheel twice"
        return {name: archive.read(name) for name in names}


def run(*command: str | Path, cwd: Path, pythonpath: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "COV_"))}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"} | ({"PYTHONPATH": str(pythonpath)} if pythonpath else {})
    environment |= more
    command = tuple(map(str, command))
    return subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def build(source: Path, target: Path, kind: str, **environment: str) -> Path:
    done = run(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", target, source, cwd=source, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = target.iterdir()
    return built


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, since building leaves folders behind, and what an earlier build left must not matter."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in FLOORS:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".*", "*.so"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel was installed into."""
    target = tmp_path_factory.mktemp("site")
    done = run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_wheel_is_the_tree(checkout: Path, wheel: Path) -> None:
    expected = tree(checkout)
    assert {"fxsparse/py.typed", "fxsparse/passes/ops/__init__.py", "fxsparse/cost_model/__init__.py"} <= set(expected)
    found = {name: data for name, data in contents(wheel).items() if ".dist-info/" not in name and shipped(Path(name))}
    left_out = sorted(set(expected) - set(found))
    assert not left_out, "not shipped: a folder has no __init__.py, or pyproject.toml's package-data does not name the suffix"
    assert found == expected


def test_wheel_holds_one_top_level_package(wheel: Path) -> None:
    assert {name.split("/")[0] for name in contents(wheel) if ".dist-info/" not in name} == {"fxsparse"}


def test_wheel_carries_the_license(wheel: Path) -> None:
    [text] = [data for name, data in contents(wheel).items() if name.endswith(".dist-info/licenses/LICENSE")]
    assert text == (ROOT / "LICENSE").read_bytes()


def test_wheel_of_the_sdist_is_the_wheel_of_the_tree(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build(checkout, tmp_path / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path, filter="data")
    assert not [member.name for member in members if member.issym() or member.islnk()]
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert {folder for folder in FLOORS if not (unpacked / folder / "__init__.py").is_file()} == set()
    assert not (unpacked / "fxsparse" / "passes").exists()
    assert not (unpacked / "fxsparse" / "cost_model").exists()
    assert contents(build(unpacked, tmp_path / "wheel", "wheel")) == contents(wheel)


def test_new_files_of_every_floor_ship(checkout: Path, tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    shutil.copytree(checkout, copy, symlinks=True, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    new = [
        "fxsparse/a_room/__init__.py",
        "fxsparse/html_report/page/a.html",
        "passes/a_room/inner/__init__.py",
        "passes/a_room/inner/a.c",
    ]
    new += ["passes/a_room/__init__.py", "cost_model/accelerators/a.yaml", "cost_model/a_room/__init__.py"]
    for name in new:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    found = {name for name in contents(build(copy, tmp_path / "wheel", "wheel")) if ".dist-info/" not in name}
    assert {FLOORS[name.split("/")[0]] + "/" + name.split("/", 1)[1] for name in new} <= found


def test_installed_wheel_ignores_folders_of_the_user(site: Path, tmp_path: Path) -> None:
    for name in ("passes", "cost_model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mine = True\n")
    program = "\n".join(
        [
            "import sys, fxsparse, fxsparse.passes, fxsparse.cost_model",
            f"extras = sorted(set({EXTRAS!r}) & set(sys.modules))",
            "assert not extras, f'imported by fxsparse: {extras}'",
            "import passes, cost_model",
            "assert passes.mine and cost_model.mine",
            "for module in (fxsparse, fxsparse.passes, fxsparse.cost_model): print(module.__file__)",
        ]
    )
    done = run(sys.executable, "-c", program, cwd=tmp_path, pythonpath=site)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(site / folder / "__init__.py") for folder in FLOORS.values()]


@pytest.mark.parametrize("folder", ["passes", "cost_model"])
def test_importing_a_mounted_folder_directly_is_refused(folder: str) -> None:
    done = run(sys.executable, "-c", f"import {folder}", cwd=ROOT)
    assert done.returncode == 1
    assert f"ImportError: import 'fxsparse.{folder}' instead of '{folder}'" in done.stderr


def test_the_checkout_works_without_installing() -> None:
    for folder in ("passes", "cost_model"):
        link = ROOT / "fxsparse" / folder
        assert link.is_symlink()
        assert os.readlink(link) == f"../{folder}"
    program = "import fxsparse, fxsparse.passes as p, fxsparse.cost_model as c; print(fxsparse.__file__, p.__file__, c.__file__)"
    done = run(sys.executable, "-c", program, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(ROOT / folder / "__init__.py") for folder in FLOORS.values()]


KERNELS = "fxsparse/passes/kernels/native.so"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_wheel_has_the_native_kernels(wheel: Path) -> None:
    assert KERNELS in contents(wheel)


def test_without_a_compiler_there_is_a_wheel_without_kernels(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkout, source, symlinks=True, ignore=shutil.ignore_patterns("build", "*.egg-info", "*.so"))
    found = contents(build(source, tmp_path / "wheel", "wheel", CC=str(tmp_path / "no-such-compiler")))
    assert KERNELS not in found
    assert {name for name in found if ".dist-info/" not in name} == {
        name for name in contents(wheel) if ".dist-info/" not in name and name != KERNELS
    }
