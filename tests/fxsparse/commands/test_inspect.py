"""``fxsparse inspect``: files that are whole or absent, JSON that fits its schema, another policy beside it, and refusals at once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

import fxsparse as fxs
from fxsparse.cli import app
from fxsparse.commands import inspect as command

from ..written_module import written_module

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = json.loads((ROOT / "fxsparse" / "commands" / "inspect.schema.json").read_text())
NET = """
import time
from pathlib import Path
import torch
class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(8, 8, 3, padding=1)
    def forward(self, x):
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + x)
class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 8, 3), Block(), torch.nn.Flatten(), torch.nn.Linear(288, 4))
def talks():
    print("hello")
    return Net()
def slow():
    Path("began").touch()
    time.sleep(60)
def inner():
    return torch.nn.Conv2d(3, 8, 0, groups=2)
def leaves():
    raise SystemExit(3)
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    return written_module(NET, tmp_path, monkeypatch)


def invoke(*args: str) -> str:
    result = CliRunner().invoke(app, ["inspect", *args])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refused(*args: str) -> str:
    result = CliRunner().invoke(app, ["inspect", *args])
    assert result.exit_code in (1, 2), (result.output, result.exception)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    return result.stderr


# What is printed


def test_the_tree_is_folded_at_a_depth(net: str) -> None:
    whole = invoke(f"{net}:Net", "--policy", "swat-u-80", "--input", "2x3x8x8")
    folded = invoke(f"{net}:Net", "--policy", "swat-u-80", "--input", "2x3x8x8", "--depth", "1")
    assert "1.conv1.weight" in whole
    assert "1.conv1.weight" not in folded.split("left exact")[0]
    assert re.search(r"^  1 \.\.\. +2 sites", folded, flags=re.MULTILINE)


def test_costs_are_sorted_and_folded(net: str) -> None:
    out = invoke(f"{net}:Net", "--input", "2x3x8x8", "--accelerator", "eyeriss", "--sort", "flops")
    table = out[out.index("node ") :]
    names = [line.split()[0] for line in table.splitlines() if re.match(r"  \S", line)]
    report = fxs.estimate(load(net), (zeros(),), "eyeriss")
    flops = {name: sum(n.total.flops for n in report.nodes if name in (n.site, n.name, n.module.partition(".")[0])) for name in names}
    assert [flops[name] for name in names] == sorted(flops.values(), reverse=True)
    assert "of time" in out
    assert "of FLOPs" in invoke(f"{net}:Net", "--input", "2x3x8x8", "--sort", "saved_bytes")


def load(net: str) -> Any:
    return sys.modules[net].Net()


def zeros() -> Any:
    import torch

    return torch.zeros(2, 3, 8, 8)


def test_another_policy_stands_beside_it(net: str) -> None:
    given = (f"{net}:Net", "--input", "2x3x8x8", "--policy", "swat-u-90", "--accelerator", "scnn", "--json", "out.json")
    out = invoke(*given, "--compare", "dense")
    wanted = fxs.estimate(load(net), (zeros(),), "scnn", policy="swat-u-90").compare(fxs.estimate(load(net), (zeros(),), "scnn"))
    assert wanted.verdict in out
    found = json.loads(Path("out.json").read_text())
    assert found["comparison"]["speedup"] == wanted.speedup
    assert found["comparison"]["policy"] == {"techniques": []}
    assert "1.00x" in invoke(*given, "--compare", "swat-u-90")


def test_plain_text_has_no_escapes_and_is_the_reports_own(net: str) -> None:
    out = invoke(f"{net}:Net", "--policy", "swat-u-80", "--input", "2x3x8x8")
    assert "\x1b" not in out
    assert str(fxs.compile(load(net), "swat-u-80", (zeros(),)).report) in out


# JSON


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--policy", "swat-u-90", "--accelerator", "eyeriss"),
        ("--policy", "granet-90", "--compare", "swat-erk-80", "--accelerator", "a100-80g"),
        ("--policy", "nm-2-4"),
    ],
)
def test_json_fits_the_schema_and_is_what_the_library_says(net: str, more: tuple[str, ...]) -> None:
    invoke(f"{net}:Net", "--input", "2x3x8x8", "--json", "out.json", *more)
    found = json.loads(Path("out.json").read_text())
    jsonschema.validate(found, SCHEMA)
    options = dict(zip(more[::2], more[1::2], strict=True))
    report = fxs.estimate(load(net), (zeros(),), options.get("--accelerator"), policy=options.get("--policy"))
    assert found["cost"] == json.loads(json.dumps(report.to_dict()))


def test_the_schema_is_one_and_can_refuse(net: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    invoke(f"{net}:Net", "--input", "2x3x8x8", "--json", "out.json")
    found = json.loads(Path("out.json").read_text())
    for broken in ({**found, "more": 1}, {**found, "format": 2}, {key: value for key, value in found.items() if key != "cost"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_json_of_an_exported_file_fits_the_schema_too(net: str) -> None:
    pytest.importorskip("onnxscript")
    invoke(f"{net}:Net", "--input", "2x3x8x8", "--policy", "swat-u-80", "--onnx", "net.onnx")
    invoke("net.onnx", "--json", "out.json")
    jsonschema.validate(json.loads(Path("out.json").read_text()), SCHEMA)


def test_a_dash_prints_the_json_alone(net: str) -> None:
    result = CliRunner().invoke(app, ["inspect", f"{net}:talks", "--input", "2x3x8x8", "--json", "-"])
    jsonschema.validate(json.loads(result.stdout), SCHEMA)
    assert "hello" in result.stderr


# Files


def test_a_page_is_asked_for_with_what_it_is_compared_with(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def save_html(self: fxs.CompiledModel, path: Any, accelerator: Any = None, *, compare: Any = None) -> None:
        calls.append((self.policy, accelerator, compare))
        Path(path).write_text("<!doctype html>")

    monkeypatch.setattr(fxs.CompiledModel, "save_html", save_html, raising=False)
    given = (f"{net}:Net", "--input", "2x3x8x8", "--policy", "swat-u-90", "--accelerator", "eyeriss")
    out = invoke(*given, "--compare", "swat-u-50", "--html", "out.html")
    assert Path("out.html").read_text() == "<!doctype html>"
    assert "written to out.html (15 bytes)" in out
    [(policy, machine, compare)] = calls
    assert (policy, machine.name) == (fxs.Policy(fxs.SWAT(weight_sparsity=0.9)), "eyeriss")
    assert compare["swat-u-50"].policy == fxs.Policy(fxs.SWAT(weight_sparsity=0.5))


def test_a_real_page_is_written(net: str) -> None:
    given = (f"{net}:Net", "--input", "2x3x8x8", "--policy", "swat-u-90", "--accelerator", "eyeriss")
    assert "written to out.html" in invoke(*given, "--compare", "swat-u-50", "--html", "out.html")
    assert "<html" in Path("out.html").read_text()


@pytest.mark.parametrize("option", ["--json", "--html", "--onnx"])
def test_an_unwritable_output_is_refused_before_the_model_is_made(net: str, option: str) -> None:
    Path("file").touch()
    for path, said in (("no/out", "folder that does not exist"), (".", "is a folder"), ("file/out", "folder that does not exist")):
        assert said in refused(f"{net}:slow", "--input", "2x3x8x8", option, path)
    if os.path.isdir("/proc/self"):
        assert "cannot be written" in refused(f"{net}:slow", "--input", "2x3x8x8", option, "/proc/out")
    assert not Path("began").exists()


def test_one_file_is_not_written_twice(net: str) -> None:
    assert "--json and --onnx name the same file" in refused(f"{net}:Net", "--input", "2x3x8x8", "--json", "out", "--onnx", "./out")


# Refusals


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--input", "8,3,32,32"], "did you mean '8x3x32x32'"),
        (["--input", "8x3x32x32x"], "did you mean '8x3x32x32'"),
        (["--input", "2x3x8x8", "--policy", "swat-u-9"], "'swat-u-90'"),
        (["--input", "2x3x8x8", "--compare", "swat-u-9"], "'swat-u-90'"),
        (["--input", "2x3x8x8", "--policy", "polici.yaml"], "no policy file 'polici.yaml'.*'policy.yaml'"),
        (["--input", "2x3x8x8", "--accelerator", "eyeris"], "'eyeriss'"),
        (["--input", "2x3x8x8", "--accelerator", "cpo.yaml"], "cpo.yaml.*'cpu.yaml'"),
        (["--input", "2x3x8x8", "--sort", "flop"], "did you mean 'flops'"),
        (["--input", "2x3x8x8", "--sort", "cycles"], "without a machine"),
        (["--input", "2x3x8x8", "--depth", "-1"], "--depth"),
    ],
)
def test_a_misspelt_argument_is_refused_with_the_nearest(net: str, args: list[str], said: str) -> None:
    Path("policy.yaml").touch()
    Path("cpu.yaml").touch()
    assert re.search(said, refused(f"{net}:Net", *args))


def test_a_file_says_all_of_itself() -> None:
    assert "leave out --sort, --depth" in refused("net.onnx", "--sort", "flops", "--depth", "0")


# As a process


def process(*args: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fxsparse", "inspect", *args]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_leaves_no_half_file(net: str, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("old")
    running = process(f"{net}:slow", "--input", "2x3x8x8", "--json", "out.json", "--html", "out.html", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err.strip()) == (130, "", "fxsparse: stopped")
    assert (tmp_path / "out.json").read_text() == "old"
    assert set(os.listdir(tmp_path)) - {"__pycache__"} == {"began", "out.json", f"{net}.py"}


def test_inspecting_imports_nothing_that_it_does_not_need(net: str, tmp_path: Path) -> None:
    """What a cold start pays for: torch and the model, not the exporters, the data sets or the page."""
    program = (
        "import sys; from fxsparse.cli import app\n"
        f"app(['{net}:Net' if word == 'NET' else word for word in ['inspect', 'NET', '--policy', 'swat-u-90', '--input', '2x3x8x8', "
        "'--accelerator', 'eyeriss']], standalone_mode=False)\n"
        "heavy = {'onnx', 'onnxscript', 'sklearn', 'jinja2', 'torch.utils.tensorboard', 'torchvision'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == "[]", done.stderr[-2000:]


def test_format_is_what_the_schema_says() -> None:
    assert SCHEMA["$defs"]["model"]["properties"]["format"]["const"] == command.FORMAT
