"""DistributedDataParallel on two processes: both ranks train the same weights under the same thresholds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import os, sys, torch, torch.distributed as dist
import fxsparse as fxs
from torch import nn

rank, folder, broadcast = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "broadcast"
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4))
compiled = fxs.compile(model, fxs.SWAT(weight_sparsity=0.5, period=2), (torch.randn(4, 3, 6, 6),))
parallel = nn.parallel.DistributedDataParallel(compiled, broadcast_buffers=broadcast)
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
torch.manual_seed(rank + 1)
for _ in range(5):
    optimizer.zero_grad()
    parallel(torch.randn(4, 3, 6, 6)).square().mean().backward()
    optimizer.step()
assert int(compiled.fxsparse.clock.steps) == 5
own = {name: tensor for name, tensor in compiled.state_dict().items() if "running" not in name and "activation" not in name}
other = {name: tensor.clone() for name, tensor in own.items()}
for tensor in other.values():
    dist.broadcast(tensor, 0)
different = [name for name in own if not torch.equal(own[name], other[name])]
assert not different, different
print("same on both ranks", flush=True)
dist.barrier()
os._exit(0)  # gloo's threads now and then abort an interpreter that shuts down
"""


@pytest.mark.parametrize("buffers", ["broadcast", "own"])
def test_both_ranks_hold_the_same_weights_and_thresholds(tmp_path: Path, buffers: str) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, str(script)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path), buffers], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        for rank in range(2)
    ]
    ended = [worker.communicate(timeout=120) for worker in workers]
    for worker, (out, error) in zip(workers, ended, strict=True):
        assert worker.returncode == 0, error.decode()[-2000:]
        assert b"same on both ranks" in out
