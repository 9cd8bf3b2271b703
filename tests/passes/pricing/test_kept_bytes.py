"""Kept bytes and operations that are foretold for few-bit activations, against what autograd keeps and what the dense model multiplies."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import VisionTransformer, get_model

import fxsparse as fxs

from ...saved_zoo import SWAT90, kept_bytes

CASES = {
    "BLPA": (fxs.Policy(fxs.BLPA(bits=4)), 0.0),
    "SavedActivations": (fxs.Policy(fxs.SavedActivations(bits=2)), 0.0),
    "SWAT": (fxs.Policy(SWAT90), 0.03),
    "SWAT and BLPA": (fxs.Policy(SWAT90, fxs.BLPA(bits=4)), 0.03),
}


@pytest.mark.parametrize(("policy", "tolerance"), CASES.values(), ids=CASES.keys())
def test_kept_bytes_are_foretold(policy: fxs.Policy, tolerance: float) -> None:
    """To the byte, but for what values decide: random positions are assumed."""
    torch.manual_seed(0)
    x = torch.rand(4, 3, 64, 64)
    compiled = fxs.compile(get_model("resnet18", weights=None).train(), policy, (x,))
    assert compiled.cost().saved_bytes == pytest.approx(kept_bytes(compiled, x), rel=tolerance)


def test_contractions_with_codes_are_counted() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128)
    x = torch.rand(4, 3, 32, 32)
    dense = fxs.estimate(model, (x,)).total.total.macs
    assert fxs.compile(model, fxs.SavedActivations(bits=4), (x,)).cost().total.total.macs == dense
    convolutional = get_model("resnet18", weights=None)
    images = torch.rand(2, 3, 32, 32)
    assert fxs.compile(convolutional, fxs.BLPA(bits=4), (images,)).cost().total.total.macs == (
        fxs.estimate(convolutional, (images,)).total.total.macs
    )
