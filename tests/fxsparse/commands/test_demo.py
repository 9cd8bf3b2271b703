"""``fxsparse demo --log``: a log of each training, and nothing else in the folder."""

import csv
import importlib.util
from pathlib import Path

from typer.testing import CliRunner

from fxsparse.cli import app
from fxsparse.demo import METHODS


def test_the_demo_writes_a_log_of_each_training(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--quick", "--epochs", "1", "--log", str(tmp_path / "new" / "logs")])
    assert result.exit_code == 0, result.output
    assert "logs written to" in result.stdout
    files = sorted(path.name for path in (tmp_path / "new" / "logs").iterdir())
    tables = ["dense-0.csv", "structured-70-0.csv", "swat-erk-90-0.csv", "swat-u-90-0.csv"]
    assert [name for name in files if name.endswith(".csv")] == tables
    assert len(tables) == len(METHODS)
    assert len(files) == len(tables) * (1 + (importlib.util.find_spec("tensorboard") is not None))
    with (tmp_path / "new" / "logs" / "swat-u-90-0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    [last] = [row for row in rows if row["site"] == "stage2.conv1.weight" and row["step"] == rows[-1]["step"]]
    assert abs(float(last["weight_density"]) - 0.1) < 0.02
    assert float(last["weight_threshold"]) > 0


def test_a_folder_that_cannot_be_made_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["demo", "--quick", "--log", str(tmp_path / "file" / "logs")])
    assert result.exit_code == 1
    assert "cannot be made a folder" in result.stderr
