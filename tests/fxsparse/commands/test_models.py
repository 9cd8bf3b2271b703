"""Models by name: what a factory raises is shown with its place, and what is misspelt with the nearest name."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxsparse as fxs
from fxsparse.commands.models import load_model

SOURCE = """
import torch

def fails():
    raise RuntimeError("no such file\\nweights.pt")

def deep():
    return _deeper()

def _deeper():
    return torch.nn.Conv2d(3, 8, 3, groups=2)

def leaves():
    raise SystemExit(3)

def wants(width):
    return torch.nn.Linear(width, 1)

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a module "factories", in the current folder."""
    name = f"models_{abs(hash(tmp_path))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "factories.py").write_text(SOURCE)
    (tmp_path / name / "broken.py").write_text("x = 1\n1 / 0\n")
    (tmp_path / name / "unwritten.py").write_text("def f(:\n")
    (tmp_path / name / "needs.py").write_text("import no_such_library\n")
    (tmp_path / name / "ends.py").write_text("import sys\nsys.exit('usage: train.py')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("factories:fails", r"failed: RuntimeError: no such file.*\(at models_\d+/factories\.py:5, in fails\)"),
        ("factories:deep", r"failed: ValueError: in_channels must be divisible.*factories\.py:11, in _deeper\)"),
        ("factories:leaves", r"it ended the program with status 3 \(at models_\d+/factories\.py:14"),
        ("factories:wants", r"failed: TypeError: wants\(\) missing 1 required positional argument: 'width'"),
        ("factories:Nett", r"has no 'Nett' \(did you mean 'Net'"),
        ("broken:Net", r"does not import: ZeroDivisionError: .*broken\.py:2"),
        ("unwritten:Net", r"does not import: SyntaxError: .*unwritten\.py:1"),
        ("needs:Net", r"does not import: ModuleNotFoundError: No module named 'no_such_library' \(at .*needs\.py:1"),
        ("ends:Net", r"does not import: it ended the program with status 'usage: train.py'"),
        ("factorys:Net", r"does not import: ModuleNotFoundError.*did you mean 'models_\d+\.factories'"),
    ],
)
def test_refusals(package: str, name: str, said: str) -> None:
    with pytest.raises(fxs.FxSparseError) as refused:
        load_model(f"{package}.{name}")
    assert re.search(said, " ".join(str(refused.value).split())), str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("torchvison:resnet50", "did you mean 'torchvision'"),
        ("torchvision:resnet5O", "did you mean 'resnet50'"),
        ("resnet50", "torchvision:resnet50"),
        (":x", "expected torchvision:NAME"),
        ("torch:nnn.Linear", "has no 'nnn.Linear'"),
    ],
)
def test_names_that_are_none(text: str, said: str) -> None:
    with pytest.raises(fxs.FxSparseError, match=said):
        load_model(text)


def test_models_of_all_kinds(package: str) -> None:
    assert type(load_model(f"{package}.factories:Net")).__name__ == "Net"
    assert isinstance(load_model("torch:nn.Identity"), nn.Identity)
    state = torch.get_rng_state()
    assert sum(p.numel() for p in load_model("torchvision:squeezenet1_1").parameters()) > 1e6
    assert state.shape == torch.get_rng_state().shape
