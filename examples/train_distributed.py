"""Train with moving masks on several processes, with DistributedDataParallel or fully_shard, and resume on any number of them.

    torchrun --standalone --nproc-per-node 2 examples/train_distributed.py
    torchrun --standalone --nproc-per-node 2 examples/train_distributed.py --shard --save checkpoint
    torchrun --standalone --nproc-per-node 1 examples/train_distributed.py --resume checkpoint

All processes hold the same masks: growth sees the gradients that the engine has averaged, random numbers depend on seed, step and
weight alone, and ``attach`` compares the masks of all ranks whenever they change.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fxsparse as fxs

STEPS = 60


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 10)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard", action="store_true", help="divide weights, masks and optimizer state among the ranks (FSDP2)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the {STEPS} that the schedule has")
    parser.add_argument("--save", type=Path, help="folder to write a checkpoint to")
    parser.add_argument("--resume", type=Path, help="folder of a checkpoint to go on from")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()

    policy = fxs.GraNet(initial_sparsity=0.5, final_sparsity=0.9, begin=0, end=40, total_steps=STEPS, interval=5)
    compiled = fxs.compile(network().to(device), policy, example_inputs=(torch.randn(8, 3, 16, 16, device=device),))
    model: nn.Module = compiled
    if options.shard:
        fully_shard(compiled, mesh=init_device_mesh(device, (ranks,)))
    else:
        model = DistributedDataParallel(compiled)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=2e-3)  # after fully_shard, so that it holds the shards
    compiled.attach(optimizer)

    if options.resume:
        weights, moments = get_state_dict(compiled, optimizer)
        dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=options.resume)
        set_state_dict(compiled, optimizer, model_state_dict=weights, optim_state_dict=moments)

    first = int(compiled.regimes[0].steps)
    for step in range(first, min(STEPS, first + options.steps)):
        generator = torch.Generator().manual_seed(1000 * step + rank)  # every rank has data of its own
        y = torch.randint(10, (8,), generator=generator)
        x = torch.randn(8, 3, 16, 16, generator=generator) + y[:, None, None, None] / 5
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()

    if options.save:
        weights, moments = get_state_dict(compiled, optimizer)
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=options.save)
    rows = [row["weight"] for row in compiled.sparsity().values()]  # gathers sharded masks: every rank asks
    if rank == 0:
        kept, total = (sum(row[name] for row in rows) for name in ("kept", "total"))
        print(f"{ranks} ranks, steps {first} to {int(compiled.regimes[0].steps)}: loss {loss.item():.3f}, {kept} of {total} weights")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
