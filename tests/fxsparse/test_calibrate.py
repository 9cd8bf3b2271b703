"""Measuring a machine: what is written, that it can be read again, and that estimates use it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fxsparse as fxs
from fxsparse import calibrate as module
from fxsparse.calibrate import calibrate
from fxsparse.calibration_chains import CHAINS, Chain
from fxsparse.cli import app
from fxsparse.cost_model.roofline import PARENTS
from fxsparse.errors import CostError

FEW = tuple(chain for chain in CHAINS if chain.kind in ("relu", "gemm") and chain.shape in ((512, 14, 14), (196, 384)))


def test_the_networks_are_of_every_class_that_stands_for_others() -> None:
    kinds = {chain.kind for chain in CHAINS}
    assert kinds <= set(PARENTS)
    assert kinds == set(PARENTS) - {"recurrent"}


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: f"{chain.kind}-{'x'.join(map(str, chain.shape))}")
def test_a_network_is_priced_as_its_class(chain: Chain) -> None:
    """All the time of its forward pass, but for what sums gradients, belongs to its class."""
    machine = fxs.Accelerator.load("cpu")
    x = torch.zeros(2, *chain.shape, requires_grad=True)
    whole = fxs.estimate(chain.make(), (x,), machine).total.forward.time_s
    values = machine.to_dict()
    values["roofline"]["efficiency"] = {**values["roofline"]["efficiency"], chain.kind: 1e-6}
    slower = fxs.estimate(chain.make(), (x,), fxs.Accelerator.from_dict(values)).total.forward.time_s
    assert whole is not None
    assert slower is not None
    assert slower > 1e4 * whole


def test_a_measured_machine_is_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHAINS", FEW)
    result = CliRunner().invoke(app, ["calibrate", "--output", str(tmp_path / "mine.yaml"), "--batch", "2", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    assert "memory bandwidth" in result.stdout
    machine = fxs.Accelerator.load(tmp_path / "mine.yaml")
    assert machine.roofline is not None
    assert machine.roofline.calibrated
    assert set(machine.roofline.efficiency) == {"relu", "relu_backward", "gemm", "gemm_backward"}
    report = fxs.estimate(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), (torch.zeros(8, 64),), tmp_path / "mine.yaml")
    assert report.total.total.tags["time_s"] == "calibrated"


def test_refusals() -> None:
    with pytest.raises(CostError, match="device is 'tpu'; expected 'cpu'"):
        calibrate("tpu")
    with pytest.raises(CostError, match="repeats is 0"):
        calibrate(repeats=0)
