"""What kind of module it is, for capture: one call, with hooks, or with Python attributes of its own."""

from __future__ import annotations

import torch
from torch import nn


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one call in the graph of the module around it: torch's own layers, and TorchScript."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    is_torchs = module.__module__.startswith(("torch.nn", "torch.ao.nn"))
    return is_torchs and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody registered forward or backward hooks on the module."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)


def python_modules(root: nn.Module) -> list[nn.Module]:
    """The modules of a tree whose attributes Python can write."""
    return [module for module in root.modules() if not isinstance(module, torch.jit.ScriptModule)]
