"""A run's log: what it writes is what the model says, updates are counted right, and a step costs nothing between two writings."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxsparse as fxs
from fxsparse.run_log import kept_for_backward
from fxsparse.run_log_files import COLUMNS

RIGL = fxs.RigL(sparsity=0.75, end=100, interval=4, drop_fraction=0.5)
X, Y = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))


class Writer:
    """Takes what a SummaryWriter takes."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}
        self.histograms: dict[tuple[str, int], torch.Tensor] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        assert (tag, step) not in self.scalars
        self.scalars[tag, step] = value

    def add_histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        assert values.numel() > 0
        self.histograms[tag, step] = values

    def flush(self) -> None: ...


def train(policy: Any, steps: int, watch: Any = None, **log: Any) -> fxs.CompiledModel:
    compiled = fxs.compile(net(), policy, (X,))
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1, momentum=0.9)
    compiled.attach(optimizer)
    with fxs.RunLog(compiled, **log).attach(optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(compiled(X), Y).backward()
            optimizer.step()
            if watch is not None:
                watch(compiled)
    return compiled


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_last_row_of_each_site_is_what_the_model_says(tmp_path: Path) -> None:
    compiled = train(fxs.SWAT(weight_sparsity=0.5, dense_first=False), 5, csv=tmp_path / "run.csv", every=2)
    found = rows(tmp_path / "run.csv")
    assert list(found[0]) == list(COLUMNS)
    assert list(dict.fromkeys(row["step"] for row in found)) == ["2", "4", "5"]
    last = {row["site"]: row for row in found if row["step"] == "5"}
    for name, row in compiled.sparsity().items():
        assert float(last[name]["weight_density"]) == row["weight"]["actual"]
        assert float(last[name]["activation_density"]) == row["activation"]["actual"]
        state = compiled.fxsparse.site(name)
        assert float(last[name]["weight_threshold"]) == pytest.approx(float(state.get_buffer("weight_threshold")))
    assert int(last["(total)"]["saved_bytes"]) == compiled.cost().saved_bytes
    assert int(last["(total)"]["total"]) == sum(row["weight"]["total"] for row in compiled.sparsity().values())


def test_updates_are_counted_as_masks_differ(tmp_path: Path) -> None:
    """An independent count: the masks after each step, compared one by one."""
    masks: list[dict[str, torch.Tensor]] = []

    def watch(compiled: fxs.CompiledModel) -> None:
        masks.append({name: compiled.fxsparse.site(name).get_buffer("mask").clone() for name in compiled.masks})

    compiled = train(RIGL, 10, watch, csv=tmp_path / "run.csv", every=7)
    wanted = {}
    for step in range(1, len(masks)):
        for name, now in masks[step].items():
            before = masks[step - 1][name]
            if not torch.equal(now, before):
                wanted[str(step + 1), name] = (int((before & ~now).sum()), int((now & ~before).sum()), int(before.sum()))
    updates = {(row["step"], row["site"]): row for row in rows(tmp_path / "run.csv") if row["event"] == "update"}
    assert wanted
    assert {step for step, _ in updates} == {step for step, _ in wanted} == {"4", "8"}
    for key, (dropped, grown, before) in wanted.items():
        assert (int(updates[key]["dropped"]), int(updates[key]["grown"])) == (dropped, grown)
        assert float(updates[key]["churn"]) == dropped / before
        assert int(updates[key]["kept"]) == before - dropped + grown
    last = [row for row in rows(tmp_path / "run.csv") if row["site"] == "(total)" and row["event"] == "log"][-1]
    assert float(last["multiplier"]) == compiled.run_report().training_multiplier


def test_masks_that_change_in_every_step_are_compared_at_each_writing(tmp_path: Path) -> None:
    train(fxs.NM(1, 2, straight_through=True, include=("0",)), 6, csv=tmp_path / "run.csv", every=3)
    updates = [row for row in rows(tmp_path / "run.csv") if row["event"] == "update" and row["site"] == "0.weight"]
    assert [row["step"] for row in updates] == ["3", "6"]
    assert all(row["kept"] == "96" for row in updates)


def test_bits_and_bytes_are_those_of_the_plan(tmp_path: Path) -> None:
    compiled = train(fxs.SavedActivations(bits=2, group_size=8), 2, csv=tmp_path / "run.csv", every=1)
    found = rows(tmp_path / "run.csv")
    assert {row["bits"] for row in found if row["site"] in ("0.weight", "2.weight")} == {"2"}
    first = [row for row in found if row["step"] == "1" and row["site"] != "(total)"]
    assert sum(int(row["saved_bytes"] or 0) for row in first) == compiled.cost().saved_bytes
    assert sum(figures.get("saved_bytes", 0) for figures in kept_for_backward(compiled).values()) == compiled.cost().saved_bytes


def test_tensorboard_gets_scalars_and_histograms() -> None:
    writer = Writer()
    policy = fxs.SWAT(weight_sparsity=0.5, dense_first=False, granularity="channel")
    compiled = train(policy, 4, tensorboard=writer, every=2)
    assert {step for _, step in writer.scalars} == {2, 4}
    assert writer.scalars["weight_density/0.weight", 4] == compiled.sparsity()["0.weight"]["weight"]["actual"]
    assert writer.scalars["total/saved_bytes", 4] == compiled.cost().saved_bytes
    assert writer.histograms["over_sites/weight_density", 4].numel() == 2
    stored = compiled.fxsparse.site("0.weight").get_buffer("activation_threshold_0")
    assert torch.equal(writer.histograms["activation_thresholds/0.weight", 4], stored.float())


def test_tensorboard_reads_what_a_folder_gets(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(RIGL, 8, tensorboard=tmp_path / "board", every=4)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert "churn/0.weight" in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("weight_density/0.weight")] == [4, 8]
    assert "over_sites/churn" in events.Tags()["histograms"]


def test_the_log_of_a_run_that_goes_on_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    train(RIGL, 2, csv=path, every=1)
    before = path.read_text()
    train(RIGL, 2, csv=path, every=1, append=True)
    assert path.read_text().startswith(before)
    assert path.read_text().count("step,event") == 1
    train(RIGL, 1, csv=path, every=1)
    assert len(path.read_text()) < len(before)


def test_a_model_that_trains_is_the_same_with_a_log_and_without(tmp_path: Path) -> None:
    compiled = train(RIGL, 9, csv=tmp_path / "run.csv", every=2)
    plain = fxs.compile(net(), RIGL, (X,))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    plain.attach(optimizer)
    for _ in range(9):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(X), Y).backward()
        optimizer.step()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, compiled.state_dict()[name]), name


def test_between_two_writings_nothing_is_read_from_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, reading a number waits for it: no tensor of the model is turned into a number until it is time to write."""
    compiled = fxs.compile(net(), RIGL, (X,))
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    compiled.attach(optimizer)
    nn.functional.cross_entropy(compiled(X), Y).backward()
    log = fxs.RunLog(compiled, csv=tmp_path / "run.csv", every=1000)
    on_host = {id(buffer) for buffer in compiled.fxsparse.regimes.buffers()}
    read: list[str] = []

    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(func, "__name__", "")
            if name in ("item", "__int__", "__float__", "__bool__", "tolist", "cpu", "numpy") and id(args[0]) not in on_host:
                read.append(name)
            return func(*args, **(kwargs or {}))

    for _ in range(8):
        optimizer.step()
        with Watching():
            log.after_step()
    assert read == []
    with Watching():
        log.write()
    assert read
    log.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "somewhere to go"),
        ({"csv": "no/such/run.csv"}, "folder that does not exist"),
        ({"csv": "run.csv", "every": 0}, "every is 0"),
    ],
)
def test_refusals(arguments: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fxs.FxSparseError, match=said):
        fxs.RunLog(fxs.compile(net(), RIGL, (X,)), **arguments)
    assert not list(tmp_path.iterdir())


def test_another_table_is_not_appended_to(tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_text("a,b\n1,2\n")
    with pytest.raises(fxs.FxSparseError, match="other columns"):
        fxs.RunLog(fxs.compile(net(), RIGL, (X,)), csv=tmp_path / "run.csv", append=True)
    assert (tmp_path / "run.csv").read_text() == "a,b\n1,2\n"


def test_a_missing_tensorboard_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(fxs.FxSparseError, match=r"'tensorboard.*pip install 'fxsparse\[report\]'.*CSV"):
        fxs.RunLog(fxs.compile(net(), RIGL, (X,)), tensorboard=tmp_path / "board")
