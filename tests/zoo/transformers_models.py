"""Architectures of transformers by small random configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers

from .judge import Built

BATCH, LENGTH, WORDS = 2, 12, 99
SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PAIR = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": WORDS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
NAMED = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def words(*, batch: int = BATCH, length: int = LENGTH, low: int = 3) -> torch.Tensor:
    return torch.randint(low, WORDS, (batch, length))


def text(kind: str, model: str = "Model", length: int = LENGTH, **options: Any) -> Built:
    """A model of words."""
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **options})
    return getattr(transformers, f"{kind}{model}")(config), (), {"input_ids": words(length=length)}


def causal(kind: str, model: str = "ForCausalLM", **options: Any) -> Built:
    """A language model with its loss."""
    built, args, kwargs = text(kind, model, **options)
    return built, args, {**kwargs, "labels": kwargs["input_ids"]}


def translate(kind: str, model: str = "Model", **options: Any) -> Built:
    """An encoder and a decoder of words."""
    small = {**PAIR, "max_position_embeddings": 64}
    config = getattr(transformers, f"{kind}Config")(**{**small, **options})
    return getattr(transformers, f"{kind}{model}")(config), (), {"input_ids": words(), "decoder_input_ids": words()}


def t5(kind: str, **options: Any) -> Built:
    small = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**{**small, "decoder_start_token_id": 0, **options})
    return getattr(transformers, f"{kind}Model")(config), (), {"input_ids": words(), "decoder_input_ids": words()}


def image(kind: str, model: str = "Model", size: int = 32, channels: int = 3, **options: Any) -> Built:
    """A model of images."""
    config = getattr(transformers, f"{kind}Config")(**options)
    return getattr(transformers, f"{kind}{model}")(config), (), {"pixel_values": torch.randn(BATCH, channels, size, size)}


def sound(kind: str, **options: Any) -> Built:
    """A model of sound waves."""
    small = {
        **NAMED,
        "conv_dim": (16, 16, 16),
        "conv_stride": (5, 2, 2),
        "conv_kernel": (10, 3, 2),
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "mask_time_prob": 0.0,
        "layerdrop": 0.0,
        "vocab_size": 32,
    }
    config = getattr(transformers, f"{kind}Config")(**{**small, **options})
    return getattr(transformers, f"{kind}Model")(config), (), {"input_values": torch.randn(BATCH, 1600)}


def whisper() -> Built:
    config = transformers.WhisperConfig(**PAIR, num_mel_bins=8, max_source_positions=20, max_target_positions=40)
    return transformers.WhisperModel(config), (), {"input_features": torch.randn(BATCH, 8, 40), "decoder_input_ids": words()}


def clip() -> Built:
    config = transformers.CLIPConfig(
        text_config={**SMALL, "projection_dim": 16},
        vision_config={**NAMED, "image_size": 32, "patch_size": 8, "projection_dim": 16},
        projection_dim=16,
    )
    return transformers.CLIPModel(config), (), {"input_ids": words(), "pixel_values": torch.randn(BATCH, 3, 32, 32)}


def detr() -> Built:
    backbone = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], out_features=["stage4"])
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=5,
    )
    return transformers.DetrModel(config), (), {"pixel_values": torch.randn(BATCH, 3, 64, 64)}


def patches(kind: str, model: str = "Model", **options: Any) -> Built:
    return image(kind, model, **{**NAMED, "image_size": 32, "patch_size": 8, **options})


MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_routed_experts": 4}

MODELS: dict[str, Callable[[], Built]] = {
    # encoders of text
    **{
        kind: partial(text, kind)
        for kind in (
            "Bert",
            "Roberta",
            "XLMRoberta",
            "Camembert",
            "Ernie",
            "Electra",
            "MPNet",
            "RoFormer",
            "MegatronBert",
            "Splinter",
            "Data2VecText",
            "LayoutLM",
            "IBert",
            "DebertaV2",
            "Deberta",
            "ConvBert",
        )
    },
    "BertForSequenceClassification": lambda: with_labels(text("Bert", "ForSequenceClassification")),
    "BigBird": partial(text, "BigBird", attention_type="original_full"),
    "RemBert": partial(text, "RemBert", input_embedding_size=16, output_embedding_size=16),
    "Nystromformer": partial(text, "Nystromformer", segment_means_seq_len=12, num_landmarks=3),
    "DebertaV2 relative": partial(text, "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False),
    "Albert": partial(text, "Albert", embedding_size=16),
    "DistilBert": partial(text, "DistilBert", dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    "MobileBert": partial(text, "MobileBert", embedding_size=32, intra_bottleneck_size=16, true_hidden_size=16),
    "SqueezeBert": partial(text, "SqueezeBert", embedding_size=32),
    "FNet": partial(text, "FNet"),
    "XLNet": lambda: xlnet(),
    "XLM": partial(text, "XLM", n_words=WORDS, emb_dim=32, n_layers=2, n_heads=4),
    "Funnel": lambda: funnel(),
    "Longformer": partial(text, "Longformer", attention_window=4),
    "ModernBert": partial(text, "ModernBert", reference_compile=False, attn_implementation="sdpa", global_attn_every_n_layers=2),
    "Canine": partial(text, "Canine", local_transformer_stride=32, length=64, num_hash_buckets=64, max_position_embeddings=128),
    # decoders
    **{
        kind: partial(causal, kind)
        for kind in (
            "GPTNeoX",
            "OPT",
            "Llama",
            "Mistral",
            "Qwen2",
            "Qwen3",
            "Phi",
            "Phi3",
            "StableLm",
            "Olmo",
            "Olmo2",
            "Cohere",
            "Granite",
            "Starcoder2",
            "Persimmon",
            "BioGpt",
            "SmolLM3",
            "Nemotron",
        )
    },
    "Gemma": partial(causal, "Gemma", head_dim=8),
    "Gemma2": partial(causal, "Gemma2", head_dim=8, sliding_window=4),
    "Gemma3": partial(causal, "Gemma3", head_dim=8)
    if not hasattr(transformers, "Gemma3TextConfig")
    else lambda: with_labels(
        (transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SMALL, head_dim=8)), (), {"input_ids": words()}), True
    ),
    "Glm": partial(causal, "Glm", head_dim=8),
    "Falcon": partial(causal, "Falcon"),
    "Bloom": partial(causal, "Bloom", n_layer=2, n_head=4),
    "Mpt": partial(causal, "Mpt", d_model=32, n_heads=4, n_layers=2),
    "GPT2": partial(causal, "GPT2", "LMHeadModel", n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "GPTJ": partial(causal, "GPTJ", n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
    "GPTNeo": partial(causal, "GPTNeo", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=4),
    "CodeGen": partial(causal, "CodeGen", n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4, n_ctx=64),
    "CTRL": partial(causal, "CTRL", "LMHeadModel", n_embd=32, n_layer=2, n_head=4, dff=64, n_positions=64),
    "OpenAIGPT": partial(causal, "OpenAIGPT", "LMHeadModel", n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "XGLM": partial(causal, "XGLM", d_model=32, num_layers=2, attention_heads=4, ffn_dim=64),
    # mixtures of experts
    **{kind: partial(causal, kind, **MOE) for kind in ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe", "Phimoe")},
    "DeepseekV3": partial(
        causal,
        "DeepseekV3",
        **MOE,
        n_group=1,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=1,
        num_key_value_heads=4,
    ),
    "GptOss": partial(causal, "GptOss", **MOE, head_dim=8, sliding_window=4),
    "SwitchTransformers": partial(t5, "SwitchTransformers", num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1),
    # state spaces and recurrences
    "Mamba": partial(causal, "Mamba", state_size=4, time_step_rank=4),
    "Mamba2": partial(causal, "Mamba2", state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=4, expand=2),
    "FalconMamba": partial(causal, "FalconMamba", state_size=4, time_step_rank=4),
    "Rwkv": partial(causal, "Rwkv", attention_hidden_size=32, context_length=64),
    "RecurrentGemma": partial(causal, "RecurrentGemma", lru_width=32, attention_window_size=8, block_types=["recurrent", "attention"]),
    "Jamba": partial(
        causal,
        "Jamba",
        **MOE,
        use_mamba_kernels=False,
        mamba_d_state=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
    ),
    # encoders and decoders
    **{
        kind: partial(translate, kind)
        for kind in ("Bart", "MBart", "Pegasus", "Marian", "Blenderbot", "BlenderbotSmall", "M2M100", "PLBart", "BigBirdPegasus")
    },
    "LED": partial(translate, "LED", attention_window=4, max_encoder_position_embeddings=64, max_decoder_position_embeddings=64),
    "T5": partial(t5, "T5"),
    "MT5": partial(t5, "MT5"),
    "UMT5": partial(t5, "UMT5"),
    "LongT5": partial(t5, "LongT5", local_radius=4),
    "ProphetNet": lambda: prophet(),
    # vision
    **{
        kind: partial(patches, kind) for kind in ("ViT", "DeiT", "Beit", "Dinov2", "ViTMSN", "Data2VecVision", "CLIPVision", "SiglipVision")
    },
    "ViTMAE": partial(patches, "ViTMAE", mask_ratio=0.5),
    "Swin": partial(image, "Swin", image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "Swinv2": partial(image, "Swinv2", image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "ConvNext": partial(image, "ConvNext", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]),
    "ConvNextV2": partial(image, "ConvNextV2", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]),
    "ResNet": partial(image, "ResNet", embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]),
    "RegNet": partial(image, "RegNet", embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], groups_width=8),
    "MobileNetV1": partial(image, "MobileNetV1"),
    "MobileNetV2": partial(image, "MobileNetV2"),
    "MobileViT": partial(
        image, "MobileViT", size=64, image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32]
    ),
    "Segformer": partial(image, "Segformer", size=64, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]),
    "PoolFormer": partial(image, "PoolFormer", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], size=64),
    "Levit": partial(
        image,
        "Levit",
        image_size=64,
        size=64,
        hidden_sizes=[16, 32, 48],
        num_attention_heads=[2, 2, 2],
        key_dim=[8, 8, 8],
        depths=[1, 1, 1],
    ),
    "Cvt": partial(image, "Cvt", size=64, embed_dim=[8, 16, 16], num_heads=[1, 2, 2], depth=[1, 1, 1]),
    "Pvt": partial(
        image, "Pvt", image_size=64, size=64, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]
    ),
    "FocalNet": partial(
        image,
        "FocalNet",
        image_size=32,
        patch_size=2,
        embed_dim=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
    "Hiera": partial(image, "Hiera", image_size=[64, 64], size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4]),
    "DPT": partial(
        image,
        "DPT",
        "ForDepthEstimation",
        **NAMED,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 1, 1],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    ),
    "EfficientNet": partial(image, "EfficientNet", image_size=32),
    "DETR": detr,
    "Yolos": partial(image, "Yolos", **NAMED, image_size=[32, 32], patch_size=8, num_detection_tokens=5),
    "CLIP": clip,
    # audio
    **{kind: partial(sound, kind) for kind in ("Wav2Vec2", "Hubert", "WavLM", "UniSpeech", "Data2VecAudio", "Wav2Vec2Conformer")},
    "SEW": partial(sound, "SEW", squeeze_factor=2),
    "AST": lambda: (
        transformers.ASTModel(transformers.ASTConfig(**NAMED, patch_size=4, max_length=24, num_mel_bins=16)),
        (),
        {"input_values": torch.randn(BATCH, 24, 16)},
    ),
    "Whisper": whisper,
    # series
    "PatchTST": lambda: (
        transformers.PatchTSTModel(
            transformers.PatchTSTConfig(
                num_input_channels=3,
                context_length=32,
                patch_length=4,
                patch_stride=4,
                d_model=32,
                num_attention_heads=4,
                ffn_dim=64,
                num_hidden_layers=2,
            )
        ),
        (),
        {"past_values": torch.randn(BATCH, 32, 3)},
    ),
}


def funnel() -> Built:
    config = transformers.FunnelConfig(vocab_size=WORDS, block_sizes=[1, 1], d_model=32, n_head=4, d_head=8, d_inner=64)
    return transformers.FunnelModel(config), (), {"input_ids": words(length=16)}


def xlnet() -> Built:
    config = transformers.XLNetConfig(vocab_size=WORDS, d_model=32, n_layer=2, n_head=4, d_inner=64)
    return transformers.XLNetModel(config), (), {"input_ids": words()}


def prophet() -> Built:
    depths = {f"num_{side}_{what}": count for side in ("encoder", "decoder") for what, count in (("layers", 2), ("attention_heads", 4))}
    return translate("ProphetNet", hidden_size=32, **depths)


def with_labels(built: Built, words_too: bool = False) -> Built:
    model, args, kwargs = built
    return model, args, {**kwargs, "labels": kwargs["input_ids"] if words_too else torch.tensor([0, 1])}
