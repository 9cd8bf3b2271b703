"""torchvision's models, whole and bit for bit: an exhaustive run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxsparse as fxs
from fxsparse.passes.capture.capture import capture

from .neutral import assert_whole

SIZES = {"googlenet": 96, "vit_b_16": 224, "swin_t": 64, "convnext_tiny": 64, "mobilenet_v3_small": 64, "densenet121": 64, "vgg16_bn": 32}
NAMES = ["resnet18", "resnet50", "vgg16_bn", "densenet121", "mobilenet_v3_small", "convnext_tiny", "vit_b_16", "swin_t", "googlenet"]


def built(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torchvision = pytest.importorskip("torchvision")
    options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    size = SIZES.get(name, 64)
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, **options), torch.randn(2, 3, size, size)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled_neutral_is_equal_bit_for_bit(name: str) -> None:
    model, x = built(name)
    compiled = fxs.compile(model, None, (x,))
    assert_whole(compiled)
    for train in (True, False):
        fxs.check(compiled, model, (x,), train=train).raise_if_different()
        fxs.check(compiled, model, (torch.cat([x, x[:1]]),), train=train).raise_if_different()


def test_resnet_is_captured_whole_with_the_batch_open() -> None:
    model, x = built("resnet18")
    captured = capture(model, ((x,), {}))
    assert captured.left == {}
    assert list(captured.forwards) == [""]
    [variant] = captured.forwards[""].variants
    assert variant.facts == type(variant.facts)()
