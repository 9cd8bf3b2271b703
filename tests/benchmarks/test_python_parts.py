"""What models cost whose Python decides by values, compiled without a policy, against eager. Run with ``-m benchmark -s``.

Times are of the processor.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxsparse as fxs
from fxsparse.passes.capture.rebuild import tensors_in

from .timing import interleaved, table

pytestmark = pytest.mark.benchmark

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
SIZES = {"vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}


def words(kind: str, **options: Any) -> Built:
    """An encoder of transformers and 4 texts of 64 words."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**SIZES, max_position_embeddings=80, **options)
    return getattr(transformers, f"{kind}Model")(config), (), {"input_ids": torch.randint(3, 1000, (4, 64))}


def detection() -> Built:
    """Faster R-CNN on MobileNetV3, and two images with a target each."""
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.get_model("fasterrcnn_mobilenet_v3_large_320_fpn", weights=None, weights_backbone=None)
    target = {"boxes": torch.tensor([[5.0, 5.0, 90.0, 80.0], [60.0, 70.0, 250.0, 300.0]]), "labels": torch.tensor([1, 2])}
    return model, ([torch.rand(3, 320, 320), torch.rand(3, 320, 320)], [target, dict(target)]), {}


MODELS: dict[str, Callable[[], Built]] = {
    "I-BERT, 2 layers of 256": lambda: words("IBert"),
    "Longformer, 2 layers of 256": lambda: words("Longformer", attention_window=16),
    "Faster R-CNN, MobileNetV3, 320": detection,
}


class Step:
    """Forward and backward of a sum of the results, with the same random draws each time."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.args, self.kwargs = model.train(), args, kwargs

    def __call__(self) -> None:
        torch.manual_seed(0)
        self.model.zero_grad(set_to_none=True)
        results = tensors_in(self.model(*self.args, **self.kwargs))
        torch.stack([result.sum() for result in results if result.requires_grad]).sum().backward()


@pytest.mark.parametrize("name", MODELS)
def test_a_neutral_step_costs_as_much_as_eager(name: str) -> None:
    torch.manual_seed(0)
    model, args, kwargs = MODELS[name]()
    compiled = fxs.compile(copy.deepcopy(model), None, args, example_kwargs=kwargs)
    assert compiled.report.left, "it has parts that keep their Python"
    contenders = {"eager": Step(model, args, kwargs), "fxsparse, no policy": Step(compiled, args, kwargs)}
    medians = interleaved(contenders, rounds=40, warmup=3, clock=time.process_time)
    parts = f"{len(compiled.graphs)} graphs, {len(compiled.report.left)} Python parts"
    print("\n" + table(f"{name}: {parts}", medians, "eager"))
    assert medians["fxsparse, no policy"] < 1.03 * medians["eager"]
