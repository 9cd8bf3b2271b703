"""The models whose kept bytes, peaks and step times are measured, with their inputs and policies."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model

import fxsparse as fxs

from .transformer_models import bert_base_like, gpt2_small_like


@dataclass(frozen=True)
class Case:
    """A model, a policy, and the least ratio of eager's kept bytes to the compiled model's, at batch 8."""

    name: str
    model: str
    policy: fxs.Policy
    ratio: float


def _saved(bits: int) -> fxs.Policy:
    return fxs.Policy(fxs.SavedActivations(bits=bits))


def _preact_resnet164() -> nn.Module:
    path = Path(__file__).parents[1] / "examples" / "preact_resnet164.py"
    spec = importlib.util.spec_from_file_location("preact_resnet164", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.PreactResNet()
    return model


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: get_model(name, weights=None)


def _images(size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.rand(batch, 3, size, size)


def _tokens(count: int, length: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randint(0, count, (batch, length))


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "ResNet-50": (_torchvision("resnet50"), _images(224)),
    "PreResNet-164": (_preact_resnet164, _images(32)),
    "DenseNet-121": (_torchvision("densenet121"), _images(224)),
    "VGG-16-BN": (_torchvision("vgg16_bn"), _images(224)),
    "ViT-B/16": (_torchvision("vit_b_16"), _images(224)),
    "Swin-T": (_torchvision("swin_t"), _images(224)),
    "ConvNeXt-T": (_torchvision("convnext_tiny"), _images(224)),
    "BERT-base-like": (bert_base_like, _tokens(30522, 128)),
    "GPT-2-small-like": (gpt2_small_like, _tokens(50257, 128)),
}
SWAT90 = fxs.SWAT(weight_sparsity=0.9, activation_sparsity=0.9)
TRANSFORMERS = ("ViT-B/16", "Swin-T", "ConvNeXt-T", "BERT-base-like", "GPT-2-small-like")
CASES = (
    Case("BLPA-4", "ResNet-50", fxs.Policy(fxs.BLPA(bits=4)), 9),
    Case("BLPA-4", "PreResNet-164", fxs.Policy(fxs.BLPA(bits=4)), 14),
    Case("BLPA-4", "DenseNet-121", fxs.Policy(fxs.BLPA(bits=4)), 8),
    Case("BLPA-4", "VGG-16-BN", fxs.Policy(fxs.BLPA(bits=4)), 8),
    *(Case("SavedActivations-4", name, _saved(4), 6) for name in TRANSFORMERS),
    *(Case("SavedActivations-2", name, _saved(2), 10) for name in TRANSFORMERS),
    Case("SWAT-U 90 + BLPA-4", "ResNet-50", fxs.Policy(SWAT90, fxs.BLPA(bits=4)), 11),
    Case("SWAT-U 90", "ResNet-50", fxs.Policy(SWAT90), 1.6),
)


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the unique storages that a forward pass keeps for backward, parameters and their buffers left out."""
    own = {item.untyped_storage().data_ptr() for item in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: None):
        model(x)
    return sum(seen.values())
