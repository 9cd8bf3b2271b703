"""Peak memory of a whole training step in this process, above the state before it. Run as a program by the benchmark beside it.

python -m tests.benchmarks.step_peak ResNet-50 blpa-4 16
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxsparse as fxs

from ..saved_zoo import ZOO

POLICIES = {
    "blpa-4": fxs.Policy(fxs.BLPA(bits=4)),
    "saved-4": fxs.Policy(fxs.SavedActivations(bits=4)),
    "saved-2": fxs.Policy(fxs.SavedActivations(bits=2)),
    "swat-90-blpa-4": fxs.Policy(fxs.SWAT(weight_sparsity=0.9, activation_sparsity=0.9), fxs.BLPA(bits=4)),
}


class Recomputed(nn.Module):
    """A block whose forward runs again in backward, by torch.utils.checkpoint."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.block, x, use_reentrant=False)


def with_checkpoints(model: nn.Module) -> nn.Module:
    """The model with each block of its stages recomputed: residual blocks, encoder layers."""
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential) and len(module) > 1:
            kinds = {type(child) for child in module}
            if len(kinds) == 1 and any(True for _ in next(iter(module)).children()):
                for name, child in list(module.named_children()):
                    setattr(module, name, Recomputed(child))
    return model


def made(name: str, how: str, x: Tensor) -> nn.Module:
    model = ZOO[name][0]().train()
    if how == "eager":
        return model
    if how == "checkpoint":
        return with_checkpoints(model)
    if how.startswith("budget-"):
        torch._functorch.config.activation_memory_budget = float(how.removeprefix("budget-"))
        return torch.compile(model)  # type: ignore[return-value]
    return fxs.compile(model, POLICIES[how], (x[:2],))


def status(key: str) -> float:
    """MiB, of the process's own account."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def main() -> None:
    name, how, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.manual_seed(0)
    x = ZOO[name][1](batch)
    model = made(name, how, x)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(samples: Tensor) -> None:
        optimizer.zero_grad(set_to_none=False)
        model(samples).float().square().mean().backward()
        optimizer.step()

    step(x if how.startswith("budget-") else x[:2])
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    began = time.perf_counter()
    step(x)
    print(f"{status('VmHWM') - before:.1f} {time.perf_counter() - began:.3f}")


if __name__ == "__main__":
    main()
