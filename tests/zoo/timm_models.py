"""The smallest two models of each family of timm, at small image sizes where the family takes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch

from .judge import Built

EACH = 2
NAMES = Path(__file__).with_name("timm_names.txt")


def image(name: str) -> Built:
    """A model and two images, of the size that it is made for or, if it takes any, of about half of that, a multiple of 32."""
    model = timm.create_model(name, pretrained=False, num_classes=10)
    channels, height, width = model.default_cfg.get("input_size", (3, 224, 224))
    if not model.default_cfg.get("fixed_input_size", False):
        height = width = max(64, -(-height // 64) * 32)
    return model, (torch.randn(2, channels, height, width),), {}


def smallest() -> list[str]:
    """The models with the fewest parameters of each file that defines a family."""
    families: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False, num_classes=10)
            families[module].append((sum(p.numel() for p in model.parameters()), name))
    return [name for module in sorted(families) for _, name in sorted(families[module])[:EACH]]


MODELS: dict[str, Callable[[], Built]] = {name: partial(image, name) for name in NAMES.read_text().split()}

if __name__ == "__main__":  # python -m tests.zoo.timm_models, a matter of minutes
    NAMES.write_text("\n".join(smallest()) + "\n")
