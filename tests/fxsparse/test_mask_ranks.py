"""Masks on two processes: DistributedDataParallel, fully_shard, checkpoints that change the number of ranks, ranks that disagree."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from .mask_worker import data, make, masks_of, sgd, train

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("mask_worker.py")


DEFAULT = ("ddp-granet", "fsdp-granet", "ddp-own-buffers", "accumulated", "as-unsharded", "disagreeing", "loading", "checkpoint")
SLOW = ("ddp-rigl", "fsdp-rigl", "ddp-set", "fsdp-set", "fsdp-static")


def run(jobs: tuple[str, ...], folder: Path) -> Path:
    """One pair of processes does all jobs, since most of their time goes into starting. Returns the folder of what they leave."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", str(WORKER), ",".join(jobs), str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        for rank in range(2)
    ]
    ended = [worker.communicate(timeout=280) for worker in workers]
    for worker, (out, error) in zip(workers, ended, strict=True):
        assert worker.returncode == 0, error.decode()[-3000:]
        assert [line for line in out.decode().splitlines() if line.endswith(" done")] == [f"{job} done" for job in jobs]
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(DEFAULT, tmp_path_factory.mktemp("ranks"))


def require_alike(folder: Path, technique: str) -> None:
    """Sharding changes no mask by itself: both ways see the mean gradient of the ranks, up to rounding."""
    found: dict[str, dict[str, Tensor]] = {way: torch.load(folder / f"{way}-{technique}" / "masks.pt") for way in ("ddp", "fsdp")}
    same = [float((found["ddp"][name] == found["fsdp"][name]).float().mean()) for name in found["ddp"]]
    assert min(same) > 0.9, "sums of two gradients may be rounded differently, so that masks drift apart slowly"


def test_fifty_updates_on_different_data_leave_all_ranks_the_same_masks(done: Path) -> None:
    require_alike(done, "granet")


def test_broadcast_buffers_or_not_is_the_same(done: Path) -> None:
    masks = torch.load(done / "ddp-granet" / "masks.pt")
    for name, mask in torch.load(done / "ddp-own-buffers" / "masks.pt").items():
        assert torch.equal(mask, masks[name]), name


@pytest.mark.slow
def test_other_techniques_too(tmp_path: Path) -> None:
    run(SLOW, tmp_path)
    require_alike(tmp_path, "rigl")
    require_alike(tmp_path, "set")


def test_saved_on_two_ranks_and_resumed_on_one(done: Path) -> None:
    saved = torch.load(done / "checkpoint" / "saved.pt")
    compiled = make()
    state = compiled.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is one process is what is wanted
        dcp.load({"model": state}, checkpoint_id=done / "checkpoint" / "checkpoint", no_dist=True)
    compiled.load_state_dict(state)
    assert int(compiled.regimes[0].steps) == 7
    for name, mask in masks_of(compiled).items():
        assert torch.equal(mask, saved["masks"][name]), name
    for name, parameter in compiled.named_parameters():
        assert torch.equal(parameter.detach(), saved["weights"][name]), name
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    train(compiled, optimizer, data(0, 4))
    assert int(compiled.regimes[0].steps) == 11
    assert all(row["weight"]["actual"] == row["weight"]["target"] for row in compiled.sparsity().values())
