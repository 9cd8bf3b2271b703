"""The smallest two models of each family of timm, at small image sizes where the family takes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import timm
import torch

from .judge import Built

EACH = 2
_LARGEST = 60_000_000  # parameters; a smallest model beyond that is left out


def image(name: str) -> Built:
    """A model and two images, of the size that it is made for."""
    model = timm.create_model(name, pretrained=False, num_classes=10)
    channels, height, width = model.default_cfg.get("input_size", (3, 224, 224))
    if not model.default_cfg.get("fixed_input_size", False):
        height = width = max(64, height // 2)
    if sum(p.numel() for p in model.parameters()) > _LARGEST:
        raise ValueError("too large for this machine")
    return model, (torch.randn(2, channels, height, width),), {}


def families() -> dict[str, list[str]]:
    """Names of the models by the file that defines their family, the presumably smallest first."""
    found: dict[str, list[str]] = defaultdict(list)
    for module in timm.list_modules():
        found[module] = sorted(timm.list_models(module=module), key=presumed_size)[:EACH]
    return {module: names for module, names in found.items() if names}


def presumed_size(name: str) -> tuple[int, str]:
    """A rank by the words for sizes in a model's name."""
    words = ("test", "femto", "atto", "pico", "nano", "xxs", "050", "xs", "tiny", "small", "s0", "_t", "_s", "18", "26", "50", "base")
    rank = next((index for index, word in enumerate(words) if word in name), len(words))
    return rank + 20 * any(word in name for word in ("large", "huge", "giant", "384", "512", "xl")), name


MODELS: dict[str, Callable[[], Built]] = {name: partial(image, name) for names in families().values() for name in names}
