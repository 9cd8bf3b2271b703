"""Compiles without a policy, and compares with the model's own Python in every way that a user could see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import fxsparse as fxs


def compile_neutral(model: nn.Module, *example: Any, kwargs: Mapping[str, Any] | None = None, batches: bool = True) -> fxs.CompiledModel:
    """The compiled model, after it was found equal bit for bit to its original: training, evaluating, and for twice the batch.

    Args:
        batches: also call with every tensor argument repeated along its first dimension.
    """
    torch.manual_seed(0)
    compiled = fxs.compile(model, None, example, example_kwargs=kwargs)
    calls = [(example, dict(kwargs or {}))]
    if batches:
        calls.append(pytree.tree_map_only(torch.Tensor, twice, calls[0]))
    for train in (True, False):
        for args, named in calls:
            fxs.check(compiled, model, args, example_kwargs=named, train=train).raise_if_different()
    return compiled


def twice(tensor: torch.Tensor) -> torch.Tensor:
    """Two of it, along the first dimension."""
    return torch.cat([tensor, tensor]) if tensor.dim() else tensor


def assert_whole(compiled: fxs.CompiledModel) -> None:
    """The model is one graph and nothing keeps its Python."""
    assert compiled.report.left == {}
    assert next(iter(compiled.graphs)) == ""


def assert_left(compiled: fxs.CompiledModel, path: str, reason: str, graphs: set[str] | None = None) -> None:
    """Just one module keeps its Python, for a reason that contains ``reason``, and these graphs were made."""
    assert set(compiled.report.left) == {path}, compiled.report.left
    assert reason in compiled.report.left[path]
    assert path not in compiled.graphs
    if graphs is not None:
        assert set(compiled.graphs) == graphs


def operators(compiled: fxs.CompiledModel, path: str = "") -> list[str]:
    """What the nodes of a graph call, in order."""
    return [node.target if isinstance(node.target, str) else node.target.__name__ for node in compiled.graphs[path].graph.nodes]
