"""Models of diffusers, segmentation-models-pytorch, torch_geometric and peft, by small random configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import peft
import segmentation_models_pytorch as smp
import torch
import torch_geometric.nn as geometric
import transformers

from .judge import Built

NORM = {"norm_num_groups": 4}


def unet() -> Built:
    model = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        layers_per_block=1,
        **NORM,
    )
    return model, (torch.randn(2, 4, 16, 16), torch.tensor([3, 7]), torch.randn(2, 5, 16)), {}


def unet_of_images() -> Built:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    model = diffusers.UNet2DModel(sample_size=16, block_out_channels=(16, 32), layers_per_block=1, **blocks, **NORM)
    return model, (torch.randn(2, 3, 16, 16), torch.tensor([3, 7])), {}


def autoencoder() -> Built:
    model = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        **NORM,
    )
    return model, (torch.randn(2, 3, 16, 16),), {}


def quantized_autoencoder() -> Built:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.VQModel(block_out_channels=(16, 32), num_vq_embeddings=8, **blocks, **NORM), (torch.randn(2, 3, 16, 16),), {}


def diffusion_transformer() -> Built:
    model = diffusers.DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, norm_num_groups=4)
    return model, (torch.randn(2, 4, 8, 8),), {"timestep": torch.tensor([3, 7]), "class_labels": torch.tensor([0, 1])}


def segmentation(kind: str, encoder: str = "resnet18") -> Built:
    size = 128 if kind == "PAN" else 64
    return getattr(smp, kind)(encoder, encoder_weights=None, classes=2), (torch.randn(2, 3, size, size),), {}


def graph(kind: str, **options: Any) -> Built:
    model = getattr(geometric, kind)(in_channels=8, hidden_channels=16, num_layers=2, out_channels=3, **options)
    return model, (torch.randn(10, 8), torch.randint(0, 10, (2, 30))), {}


def adapted_encoder(kind: str = "LoraConfig", **options: Any) -> Built:
    """A frozen encoder with adapters."""
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = transformers.BertModel(transformers.BertConfig(**sizes))
    adapters = getattr(peft, kind)(target_modules=["query", "value"], **options)
    return peft.get_peft_model(model, adapters), (), {"input_ids": torch.randint(3, 99, (2, 12))}


def adapted() -> Built:
    sizes = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    lora = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    tokens = torch.randint(3, 99, (2, 12))
    return peft.get_peft_model(model, lora), (), {"input_ids": tokens, "labels": tokens}


MODELS: dict[str, Callable[[], Built]] = {
    "diffusers UNet2DCondition": unet,
    "diffusers UNet2D": unet_of_images,
    "diffusers AutoencoderKL": autoencoder,
    "diffusers VQModel": quantized_autoencoder,
    "diffusers DiT": diffusion_transformer,
    **{
        f"smp {kind}": partial(segmentation, kind)
        for kind in ("Unet", "FPN", "PSPNet", "Linknet", "DeepLabV3", "DeepLabV3Plus", "PAN", "MAnet")
    },
    **{f"smp {kind}": partial(segmentation, kind) for kind in ("UPerNet", "Segformer")},
    "smp UnetPlusPlus": partial(segmentation, "UnetPlusPlus"),
    "smp Unet of MobileNetV2": partial(segmentation, "Unet", "mobilenet_v2"),
    **{f"geometric {kind}": partial(graph, kind) for kind in ("GCN", "GAT", "GraphSAGE", "GIN")},
    "peft LoRA of GPT-2": adapted,
    "peft LoRA of Bert": partial(adapted_encoder, r=4, lora_dropout=0.1),
    "peft DoRA of Bert": partial(adapted_encoder, r=4, use_dora=True),
    "peft LoHa of Bert": partial(adapted_encoder, "LoHaConfig", r=4),
    "peft IA3 of Bert": partial(adapted_encoder, "IA3Config", feedforward_modules=[]),
}
