"""Every model of torchvision: classification, segmentation, detection, video, optical flow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision

from .judge import Built


def built(name: str) -> Built:
    """A model, and inputs of its kind."""
    options: dict[str, Any] = {"weights": None}
    kind = torchvision.models.get_model_builder(name).__module__.split(".")[2]
    if kind in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model = torchvision.models.get_model(name, **options)
    if kind == "detection":
        boxes = torch.tensor([[5.0, 5.0, 40.0, 40.0], [10.0, 12.0, 50.0, 60.0]])
        target: dict[str, Any] = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": torch.ones(2, 96, 96, dtype=torch.uint8)}
        target["keypoints"] = torch.ones(2, 17, 3) * 20
        target["labels"] = torch.tensor([1, 1]) if "keypoint" in name else target["labels"]
        return model, ([torch.rand(3, 96, 96), torch.rand(3, 96, 96)], [target, dict(target)]), {}
    if kind == "video":
        size = 224 if name.startswith(("mvit", "s3d")) else 64
        return model, (torch.randn(2, 3, 16, size, size),), {}
    if kind == "optical_flow":
        return model, (torch.rand(2, 3, 128, 128), torch.rand(2, 3, 128, 128)), {}
    size = {"inception_v3": 96, "googlenet": 96, "maxvit_t": 224}.get(name, 224 if name.startswith("vit") else 64)
    return model, (torch.randn(2, 3, size, size),), {}


MODELS: dict[str, Callable[[], Built]] = {name: partial(built, name) for name in torchvision.models.list_models()}
