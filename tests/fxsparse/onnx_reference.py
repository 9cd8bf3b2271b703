"""Independent readers of ONNX files, and what exported models are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn


class Recurrent(nn.Module):
    """An LSTM of two layers in both directions, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 24, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


def run(path: Path, inputs: Sequence[torch.Tensor]) -> list[np.ndarray[Any, Any]]:
    """ONNX Runtime's outputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    named = {given.name: value.numpy() for given, value in zip(session.get_inputs(), inputs, strict=True)}
    found: list[np.ndarray[Any, Any]] = session.run(None, named)
    return found


def relative_error(path: Path, model: nn.Module, inputs: Sequence[torch.Tensor]) -> float:
    """The largest difference of ONNX Runtime's outputs from the model's, against the largest output."""
    with torch.no_grad():
        wanted = model(*inputs)
    wanted = [wanted] if isinstance(wanted, torch.Tensor) else list(wanted)
    errors = [np.abs(got - want.numpy()).max() / np.abs(want.numpy()).max() for got, want in zip(run(path, inputs), wanted, strict=True)]
    return float(max(errors))


def resized(inputs: Sequence[torch.Tensor], batch: int) -> tuple[torch.Tensor, ...]:
    """Other inputs with another number of samples."""
    generator = torch.Generator().manual_seed(batch)
    return tuple(
        torch.randn(batch, *x.shape[1:], generator=generator)
        if x.is_floating_point()
        else torch.randint(0, int(x.max()) + 1, (batch, *x.shape[1:]), generator=generator)
        for x in inputs
    )


def stored_weights(path: Path) -> dict[str, tuple[int, np.ndarray[Any, Any]]]:
    """By name the number of values stored, and the weight in full, of every initializer and sparse constant; read with onnx alone."""
    graph = onnx.load(path).graph
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    for node in graph.node:
        for item in node.attribute:
            if item.name == "sparse_value":
                sparse[node.output[0]] = item.sparse_tensor
    found = {tensor.name: (int(np.prod(tensor.dims)), numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    for name, tensor in sparse.items():
        positions, values = numpy_helper.to_array(tensor.indices), numpy_helper.to_array(tensor.values)
        assert positions.dtype == np.int64
        assert (np.diff(positions) > 0).all()
        dense = np.zeros(int(np.prod(tensor.dims)), dtype=values.dtype)
        dense[positions] = values
        found[name] = (len(values), dense.reshape(tuple(tensor.dims)))
    return found


def check(path: Path, *, full: bool = True) -> None:
    """onnx's checker and strict shape inference."""
    onnx.checker.check_model(onnx.load(path), full_check=full)
    if full:
        onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True)
