"""One of two processes that train a masked model together; run by test_mask_ranks.py as ``mask_worker.py JOB,JOB,... RANK FOLDER``."""

from __future__ import annotations

import copy
import itertools
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

import fxsparse as fxs

UPDATES = 50
GRANET = fxs.GraNet(initial_sparsity=0.4, final_sparsity=0.85, begin=4, end=60, total_steps=2 * UPDATES + 20, interval=2)
TECHNIQUES: dict[str, Any] = {
    "granet": GRANET,
    "rigl": fxs.RigL(sparsity=0.8, end=400, interval=2),
    "set": fxs.SET(sparsity=0.8, end=400, interval=2),
    "static": fxs.StaticMask(sparsity=0.8),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 5, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(20, 11), nn.Linear(11, 4)
    )


def make(technique: Any = GRANET) -> fxs.CompiledModel:
    return fxs.compile(network(), technique, (torch.randn(4, 3, 6, 6),))


def masks_of(compiled: fxs.CompiledModel) -> dict[str, Tensor]:
    found = {}
    for name in compiled.masks:
        mask: Any = compiled.get_buffer(f"fxsparse.sites.{name}.mask")
        found[name] = mask.full_tensor() if isinstance(mask, DTensor) else mask
    return found


def data(rank: int, count: int, seed: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed * 100 + rank)
    return [(torch.randn(4, 3, 6, 6, generator=generator), torch.randint(4, (4,), generator=generator)) for _ in range(count)]


def train(model: Any, optimizer: torch.optim.Optimizer, rows: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in rows:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def require_same_everywhere(tensors: dict[str, Tensor]) -> None:
    for name, own in tensors.items():
        other = own.clone()
        dist.broadcast(other, 0)
        assert torch.equal(own, other), name


def data_parallel(rank: int, folder: Path, technique: str, broadcast: bool) -> None:
    compiled = make(TECHNIQUES[technique])
    before = {name: mask.clone() for name, mask in masks_of(compiled).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the argument has a new name in torch 2.14, and none in 2.11
        parallel = nn.parallel.DistributedDataParallel(compiled, broadcast_buffers=broadcast)
    optimizer = sgd(parallel)
    compiled.attach(optimizer)
    train(parallel, optimizer, data(rank, 2 * UPDATES))
    assert int(compiled.regimes[0].steps) == 2 * UPDATES
    masks = masks_of(compiled)
    require_same_everywhere(masks)
    require_same_everywhere({name: p.detach() for name, p in compiled.named_parameters()})
    assert technique == "static" or any(not torch.equal(masks[name], before[name]) for name in masks)
    for name, row in compiled.sparsity().items():
        assert row["weight"]["actual"] == row["weight"]["target"], name
    if rank == 0:
        torch.save(masks, folder / "masks.pt")


def accumulated(rank: int, folder: Path) -> None:
    """DDP with no_sync over four batches: growth sees the gradient of all batches on all ranks."""
    compiled = make(TECHNIQUES["rigl"])
    parallel = nn.parallel.DistributedDataParallel(compiled)
    optimizer = sgd(parallel)
    compiled.attach(optimizer)
    rows = data(rank, 48)
    for start in range(0, len(rows), 4):
        optimizer.zero_grad()
        for index, (x, y) in enumerate(rows[start : start + 4]):
            if index < 3:
                with parallel.no_sync():
                    F.cross_entropy(parallel(x), y).backward()
            else:
                F.cross_entropy(parallel(x), y).backward()
        optimizer.step()
    assert int(compiled.regimes[0].steps) == 12
    require_same_everywhere(masks_of(compiled))


def sharded(technique: str) -> tuple[fxs.CompiledModel, torch.optim.Optimizer]:
    compiled = make(TECHNIQUES[technique])
    fully_shard(compiled, mesh=init_device_mesh("cpu", (2,)))
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    return compiled, optimizer


def fully_sharded(rank: int, folder: Path, technique: str) -> None:
    compiled, optimizer = sharded(technique)
    for name in compiled.masks:
        weight: Any = compiled.get_parameter(name)
        mask: Any = compiled.get_buffer(f"fxsparse.sites.{name}.mask")
        assert isinstance(mask, DTensor)
        assert mask.placements == weight.placements
        assert mask.to_local().shape == weight.to_local().shape
        assert mask.dtype == torch.bool
    train(compiled, optimizer, data(rank, 2 * UPDATES))
    masks = masks_of(compiled)
    require_same_everywhere(masks)
    for name, row in compiled.sparsity().items():
        assert row["weight"]["actual"] == row["weight"]["target"], name
        assert row["weight"]["kept"] == int(masks[name].sum()), name
        weight = compiled.get_parameter(name)
        assert not bool(weight.detach().full_tensor()[~masks[name]].any()), name
    if rank == 0:
        torch.save(masks, folder / "masks.pt")


def as_unsharded(rank: int, folder: Path) -> None:
    """Given the same gradients, sharded and whole weights get the same masks and values. One layer has fewer rows than ranks."""
    meshes = {
        "rows": init_device_mesh("cpu", (2,)),
        "replicated and by rows": init_device_mesh("cpu", (1, 2), mesh_dim_names=("copies", "rows")),
    }
    for (how, mesh), name in itertools.product(meshes.items(), ("granet", "rigl", "set")):
        torch.manual_seed(0)
        model = nn.Sequential(network(), nn.Linear(4, 1))
        pair = [fxs.compile(copy.deepcopy(model), TECHNIQUES[name], (torch.randn(4, 3, 6, 6),)) for _ in range(2)]
        fully_shard(pair[1], mesh=mesh)
        optimizers = [sgd(compiled) for compiled in pair]
        for compiled, optimizer in zip(pair, optimizers, strict=True):
            compiled.attach(optimizer)
        generator = torch.Generator().manual_seed(3)
        for _ in range(UPDATES // 2):
            for parameter, part in zip(*(compiled.parameters() for compiled in pair), strict=True):
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                part.grad = distribute_tensor(parameter.grad, part.device_mesh, part.placements)
            for optimizer in optimizers:
                optimizer.step()
        expected = masks_of(pair[0])
        for site, mask in masks_of(pair[1]).items():
            assert torch.equal(mask, expected[site]), (how, name, site)
            assert torch.equal(pair[1].get_parameter(site).detach().full_tensor(), pair[0].get_parameter(site).detach()), (how, name, site)


def checkpoint(rank: int, folder: Path) -> None:
    """Saves on two ranks; what a single process makes of it is compared by the test."""
    compiled, optimizer = sharded("granet")
    train(compiled, optimizer, data(0, 7))
    dcp.save({"model": compiled.state_dict()}, checkpoint_id=folder / "checkpoint")
    masks = masks_of(compiled)
    whole = {name: p.detach().full_tensor() for name, p in compiled.named_parameters()}
    if rank == 0:
        torch.save({"masks": masks, "weights": whole}, folder / "saved.pt")
    dist.barrier()
    again, _ = sharded("granet")
    loaded = again.state_dict()
    dcp.load({"model": loaded}, checkpoint_id=folder / "checkpoint")
    again.load_state_dict(loaded)
    assert int(again.regimes[0].steps) == 7
    for name, mask in masks_of(again).items():
        assert torch.equal(mask, masks[name])


def disagreeing(rank: int, folder: Path) -> None:
    """Ranks that were given different masks, that drift apart, or that differ in their checkpoints are told so."""
    different = make(fxs.RigL(sparsity=0.8, end=400, interval=2, seed=rank))
    expect("ranks disagree when the optimizer is attached: the masks of", lambda: different.attach(sgd(different)))
    different.attach(sgd(different), compare_ranks=False)

    alone = make(TECHNIQUES["rigl"])
    optimizer = sgd(alone)
    alone.attach(optimizer)
    expect("ranks disagree after step 2: the masks of", lambda: train(alone, optimizer, data(rank, 2)))

    ahead = make(TECHNIQUES["set"])
    ahead.regimes[0].steps.add_(rank)
    expect("the number of steps taken on rank 1 differ from those on rank 0", lambda: ahead.attach(sgd(ahead)))

    fewer = make(fxs.RigL(sparsity=0.8, end=400, interval=2, exclude=("0",) if rank else ()))
    expect("ranks compiled with different policies when the optimizer is attached", lambda: fewer.attach(sgd(fewer)))

    lost = make(TECHNIQUES["rigl"])
    fully_shard(lost, mesh=init_device_mesh("cpu", (2,)))
    lost.regimes[0].kept[1] -= rank
    expect("ranks disagree when the optimizer is attached: the masks of '2.weight' on rank 1", lambda: lost.attach(sgd(lost)))


def loading(rank: int, folder: Path) -> None:
    """A sharded state that is loaded where nothing is sharded, or over another number of ranks, is refused."""
    compiled, _ = sharded("rigl")
    plain = make(TECHNIQUES["rigl"])
    expect("was saved on 2 ranks", lambda: plain.load_state_dict(compiled.state_dict()))
    expect("torch.distributed.checkpoint", lambda: plain.load_state_dict(compiled.state_dict()))
    expect("is divided among 2 ranks here", lambda: compiled.load_state_dict(plain.state_dict()))


def expect(text: str, call: Any) -> None:
    with pytest.raises(fxs.PolicyError) as caught:
        call()
    assert text in str(caught.value), str(caught.value)


JOBS: dict[str, Any] = {
    "accumulated": accumulated,
    "as-unsharded": as_unsharded,
    "checkpoint": checkpoint,
    "disagreeing": disagreeing,
    "loading": loading,
    **{f"ddp-{name}": lambda r, f, name=name: data_parallel(r, f, name, True) for name in TECHNIQUES},
    "ddp-own-buffers": lambda r, f: data_parallel(r, f, "granet", False),
    **{f"fsdp-{name}": lambda r, f, name=name: fully_sharded(r, f, name) for name in TECHNIQUES},
}


def main() -> None:
    job, rank, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name in job.split(","):
        (folder / name).mkdir(exist_ok=True)
        JOBS[name](rank, folder / name)
        print(f"{name} done", flush=True)
        dist.barrier()
    os._exit(0)  # gloo's threads now and then abort an interpreter that shuts down


if __name__ == "__main__":
    main()
