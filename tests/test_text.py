"""The texts and settings that nothing imports: README, CHANGELOG, the pins and .ci/run agree with one another."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {"Thirty seconds to a result": ".venv/bin/fxsparse demo", "Run the tests": ".venv/bin/python -m pytest"}
EXTRAS = {"onnx", "report", "lightning", "transformers", "test", "dev", "all"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))["project"]


def blocks_under(heading: str, text: str) -> list[str]:
    """The ```bash blocks of one section of a Markdown text."""
    [section] = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^```bash\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


def pins() -> dict[str, str]:
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][^\s;*]*", line)] == []
    found = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(found) == len(lines), "a name is pinned twice"
    return found


@pytest.mark.parametrize(("heading", "last"), COMMANDS.items())
def test_readme_command_is_one_line_that_makes_its_own_environment(heading: str, last: str) -> None:
    command, *_ = blocks_under(heading, read("README.md"))
    assert command.count("\n") == 1
    assert command.endswith("\n")
    subprocess.run(["bash", "-n", "-c", command], check=True, stdin=subprocess.DEVNULL)
    steps = " ".join(shlex.split(command)).split(" && ")
    assert steps[0] == "python3 -m venv .venv"
    assert steps[1].startswith(".venv/bin/pip install -q -c constraints.txt ")
    assert steps[-1] == last


@pytest.mark.parametrize("heading", COMMANDS)
def test_readme_installs_extras_that_exist(heading: str) -> None:
    command, *_ = blocks_under(heading, read("README.md"))
    [extras] = re.findall(r"'\.\[([a-z,]+)\]'", command)
    assert set(extras.split(",")) <= EXTRAS


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = read(".ci/run")
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True, stdin=subprocess.DEVNULL)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    [function] = re.findall(r"^command_under\(\) \{.*?^\}$", script, flags=re.MULTILINE | re.DOTALL)
    for heading in COMMANDS:
        program = f"set -euo pipefail; checkout={shlex.quote(str(ROOT))}\n{function}\ncommand_under {shlex.quote(heading)}"
        done = subprocess.run(["bash", "-c", program], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.stdout == blocks_under(heading, read("README.md"))[0]
    assert 'command_under "Run the tests"' in script


@pytest.mark.parametrize(
    "body", ["", "```bash\n```\n", "```bash\none\ntwo\n```\n", "```python\none\n```\n", "## Next\n\n```bash\none\n```\n"]
)
def test_ci_refuses_a_readme_without_the_command(body: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"# Title\n\n## Run the tests\n\n{body}")
    [function] = re.findall(r"^command_under\(\) \{.*?^\}$", read(".ci/run"), flags=re.MULTILINE | re.DOTALL)
    program = f"checkout={shlex.quote(str(tmp_path))}\n{function}\ncommand_under 'Run the tests'"
    done = subprocess.run(["bash", "-c", program], check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1
    assert "want one line in a bash block under '## Run the tests'" in done.stderr


def test_changelog_speaks_of_this_version() -> None:
    entries = re.findall(r"^## \[([^\]]+)\](.*?)(?=^## \[|\Z)", read("CHANGELOG.md"), flags=re.MULTILINE | re.DOTALL)
    written = {version for version, text in entries if re.search(r"^- \S", text, flags=re.MULTILINE)}
    assert {"Unreleased", project()["version"]} & written


def test_extras_are_the_promised_ones() -> None:
    assert set(project()["optional-dependencies"]) == EXTRAS


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins()
    wanted = [*project()["dependencies"], *(line for extra in project()["optional-dependencies"].values() for line in extra)]
    for requirement in map(Requirement, wanted):
        if requirement.name != "fxsparse":
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"constraints.txt does not pin {requirement.name}"
            assert requirement.specifier.contains(version), f"{requirement} does not admit the pin {version}"
