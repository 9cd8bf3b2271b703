"""The command line: what it prints, and that whatever it refuses is one line and a status other than 0."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import fxsparse as fxs
from fxsparse.cli import app
from fxsparse.commands.arguments import example_input
from fxsparse.commands.listings import describe
from fxsparse.commands.models import load_model
from fxsparse.demo import METHODS
from fxsparse.digits import Recipe

from .written_module import written_module

ROOT = Path(__file__).resolve().parents[2]
NET = """
import torch
print("importing")  # a model's own output goes through
class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten(), torch.nn.Linear(128, 4))
ready = Net()
class Words(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
def fails():
    raise RuntimeError("no such file\\nweights.pt")
def number():
    return 3
count = 3
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    return written_module(NET, tmp_path, monkeypatch)


def invoke(*args: str) -> str:
    """The standard output of a command that succeeds."""
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: str) -> str:
    """The one line on standard error of a command that fails."""
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code != 0, result.output
    assert isinstance(result.exception, SystemExit), f"a traceback: {result.exception!r}"
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("fxsparse: ")
    assert not result.stdout or result.stdout == "importing\n"
    return result.stderr


@pytest.mark.parametrize("command", [[], ["demo"], ["presets"], ["accelerators"], ["calibrate"], ["inspect"]])
def test_every_command_has_help(command: list[str]) -> None:
    assert "Usage: fxsparse" in invoke_help([*command, "--help"])


def invoke_help(args: list[str]) -> str:
    result = CliRunner().invoke(app, args, prog_name="fxsparse")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_no_command_prints_the_help() -> None:
    assert invoke() == invoke("--help")
    for command in ("demo", "presets", "accelerators", "calibrate", "inspect"):
        assert re.search(rf"^\W*{command}\s", invoke(), flags=re.MULTILINE)


def test_version() -> None:
    assert invoke("--version") == f"fxsparse {fxs.__version__}\n"


def test_help_of_demo_says_the_default_epochs() -> None:
    assert re.search(rf"\[default: \(?{Recipe.epochs}\)?\]", re.sub(r"[│\s]+", " ", invoke("demo", "--help")))


def test_presets_lists_every_preset_and_what_it_means() -> None:
    lines = {line.split()[0]: line for line in invoke("presets").splitlines()[1:]}
    assert tuple(lines) == fxs.presets()
    assert re.search(r"SWAT: weight sparsity 90 %$", lines["swat-u-90"].rstrip())
    assert "distribution erk" in lines["swat-erk-80"]
    assert "80 %" in lines["swat-erk-80"]
    assert "structure kernel" in lines["swat-structured-70"]


def test_accelerators_lists_every_machine() -> None:
    listed = invoke("accelerators")
    for name in fxs.accelerators():
        assert re.search(rf"^{re.escape(name)}\s+\S", listed, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("technique", "line"),
    [
        (fxs.SWAT(weight_sparsity=0.9), "SWAT: weight sparsity 90 %"),
        (fxs.SWAT(weight_sparsity=0.0), "SWAT: weight sparsity 0 %"),
        (fxs.SWAT(weight_sparsity=0.125, period=7), "SWAT: weight sparsity 12.5 %, period 7"),
        (fxs.SWAT(weight_sparsity=0, activation_sparsity=0.5), "SWAT: weight sparsity 0 %, activation sparsity 50 %"),
    ],
)
def test_describe(technique: fxs.SWAT, line: str) -> None:
    assert describe(technique.to_dict()) == line


# inspect


def test_inspect_prints_the_report_and_the_published_reduction(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    out = invoke("inspect", "torchvision:resnet50", "--policy", "swat-u-90", "--input", "2x3x224x224", "--json", str(target))
    assert "layer4.2.conv3.weight" in out
    assert "first contraction of the model, kept dense" in out
    assert "training 85.6 %, inference 87.4 %" in out
    found = json.loads(target.read_text())
    assert found["reduction"]["training"] == pytest.approx(0.856, abs=5e-4)
    assert found["policy"] == {"techniques": [{"technique": "SWAT", "weight_sparsity": 0.9}]}
    assert len(found["report"]["sites"]) == 54
    assert found["cost"]["accelerator"] is None


@pytest.mark.parametrize("name", ["Net", "ready"])
def test_inspect_takes_a_class_or_a_model_of_the_current_folder(net: str, name: str) -> None:
    out = invoke("inspect", f"{net}:{name}", "--policy", "swat-u-80", "--input", "2x3x8x8")
    assert "2 rewritten, 1 left exact" in out


def test_inspect_without_a_policy_saves_nothing(net: str) -> None:
    out = invoke("inspect", f"{net}:Net", "--input", "2x3x8x8")
    assert "0 rewritten" in out
    assert "training 0.0 %, inference 0.0 %" in out


def test_inspect_reads_a_policy_file(net: str, tmp_path: Path) -> None:
    fxs.Policy(fxs.SWAT(weight_sparsity=0.5, include=("3",))).save(tmp_path / "mine.yaml")
    assert "1 rewritten" in invoke("inspect", f"{net}:Net", "--policy", "mine.yaml", "--input", "2x3x8x8")


def test_inspect_with_an_accelerator_prints_its_costs(net: str, tmp_path: Path) -> None:
    out = invoke("inspect", f"{net}:Net", "--input", "2x3x8x8", "--accelerator", "eyeriss", "--json", "out.json")
    assert "eyeriss" in out
    assert json.loads((tmp_path / "out.json").read_text())["cost"]["accelerator"] == "eyeriss"


def test_inspect_takes_inputs_of_other_types(net: str) -> None:
    assert "1 rewritten" in invoke("inspect", f"{net}:Words", "--policy", "swat-u-50", "--input", "2x5:int64")


def test_example_input_is_zeros_of_the_shape_and_type() -> None:
    made = example_input("2x3:bfloat16")
    assert (tuple(made.shape), made.dtype, int(made.count_nonzero())) == ((2, 3), torch.bfloat16, 0)
    assert example_input("7").shape == (7,)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["inspekt"], "Did you mean 'inspect'"),
        (["inspect"], "(?i)missing argument"),
        (["inspect", "torchvision:resnet18"], "--input"),
        (["inspect", "torchvision:resnet18", "--input", "8x3x32x32", "--polcy", "x"], "--polcy"),
        (["inspect", "torchvision:resnet18", "--input", "8x3x32x32", "--policy", "swat-u-9O"], "'swat-u-90'"),
        (["inspect", "torchvision:resnet18", "--input", "8x3x32x32", "--policy", "missing.yaml"], "no policy file 'missing.yaml'"),
        (["inspect", "torchvision:resnet18", "--input", "8,3,32,32"], "'8,3,32,32' is not a shape.*8x3x224x224"),
        (["inspect", "torchvision:resnet18", "--input", "8x0x32x32"], "is not a shape"),
        (["inspect", "torchvision:resnet18", "--input", "8x3:int46"], "unknown dtype 'int46'.*'int64'"),
        (["inspect", "torchvision:resnet18", "--input", "8x4x32x32"], "conv1"),
        (["inspect", "torchvision:resnet18", "--input", "8x3x32x32", "--accelerator", "eyeris"], "'eyeriss'"),
        (["inspect", "torchvision:resnet18", "--input", "8x3x32x32", "--json", "no/such/out.json"], "folder that does not exist"),
        (["inspect", "torchvision:resnet5O", "--input", "8x3x32x32"], "no model 'resnet5O'.*'resnet50'"),
        (["inspect", "torchvison:resnet50", "--input", "8x3x32x32"], "does not import: ModuleNotFoundError.*'torchvision'"),
        (["inspect", "resnet50", "--input", "8x3x32x32"], "expected torchvision:NAME"),
        (["demo", "--epochs", "0"], "--epochs"),
        (["calibrate", "--output", "no/such/cpu.yaml"], "--output 'no/such/cpu.yaml' lies in a folder that does not exist"),
        (["calibrate", "--output", str(ROOT / "README.md")], "README.md' exists.*--force"),
        (["calibrate", "--device", "gpu"], "device is 'gpu'; expected 'cpu'"),
        (["calibrate", "--batch", "0"], "--batch"),
        (["demo", "--seeds", "many"], "--seeds"),
        (["demo", "--quick", "--json", "."], "is a folder"),
    ],
)
def test_refusals(args: list[str], said: str) -> None:
    assert re.search(said, refused(*args))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Nett", "has no 'Nett'.*'Net'"),
        ("fails", "failed: RuntimeError: no such file weights.pt"),
        ("number", "made an object of type int"),
        ("count", "is of type int"),
    ],
)
def test_refusals_of_a_factory(net: str, name: str, said: str) -> None:
    assert re.search(said, refused("inspect", f"{net}:{name}", "--input", "2x3x8x8"))


def test_a_module_that_breaks_on_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_net.py").write_text("1 / 0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "'broken_net' does not import: ZeroDivisionError" in refused("inspect", "broken_net:Net", "--input", "2x3")


def test_a_dotted_name_leads_into_classes() -> None:
    assert isinstance(load_model("torch:nn.Identity"), torch.nn.Identity)


# demo


def test_demo_quick_prints_every_method_and_writes_json(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    out = invoke("demo", "--quick", "--epochs", "1", "--seeds", "2", "--seed", "3", "--json", str(tmp_path / "demo.json"))
    assert torch.equal(torch.get_rng_state(), state), "the command draws from the global generator"
    rows = json.loads((tmp_path / "demo.json").read_text())
    assert [row["method"] for row in rows] == list(METHODS)
    for row in rows:
        [line] = [line for line in out.splitlines() if line.startswith(row["method"])]
        assert f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f} %" in line
        assert f"{100 * row['training_reduction']:.1f} %" in line
        assert len(row["accuracies"]) == 2
    assert "named 'swat'" in out


@pytest.mark.parametrize("command", [["-m", "fxsparse"], ["-c", "from fxsparse.cli import main; main()"]])
def test_as_a_process(command: list[str]) -> None:
    done = process(*command, "presets")
    assert (done.returncode, done.stderr) == (0, "")
    assert "swat-u-90" in done.stdout
    done = process(*command, "inspect", "nowhere:net", "--input", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"fxsparse: 'nowhere:net': .*ModuleNotFoundError.*\n", done.stderr)


def process(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=environment, check=False)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    program = (
        "import sys, fxsparse, fxsparse.cli; from fxsparse import demo, digits, compile\n"
        "print(sorted({'sklearn', 'torchvision', 'onnx'} & set(sys.modules)))"
    )
    assert process("-c", program).stdout == "[]\n"


@pytest.mark.parametrize(
    ("args", "package"), [(["demo", "--quick"], "sklearn"), (["inspect", "torchvision:alexnet", "--input", "1"], "torchvision")]
)
def test_a_missing_extra_is_named_with_its_remedy(args: list[str], package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Hides(package), *sys.meta_path])
    said = refused(*args)
    assert f"'{package}" in said
    assert "pip install 'fxsparse[all]'" in said


class _Hides:
    """An import hook under which one package is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.package)
