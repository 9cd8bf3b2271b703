"""Models of torchaudio, by small random configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchaudio.models as audio

from .judge import Built

SAMPLES = 800


def wave(kind: str, *shape: int, **options: Any) -> Built:
    """A model of torchaudio that takes one tensor."""
    return getattr(audio, kind)(**options), (torch.randn(2, *shape),), {}


def frames(kind: str, length: int = 12, **options: Any) -> Built:
    """A model of torchaudio that takes frames and how many of them count."""
    small = {"input_dim": 16, "num_heads": 4, "ffn_dim": 32, "num_layers": 2}
    return getattr(audio, kind)(**small, **options), (torch.randn(2, length, 16), torch.tensor([12, 10])), {}


def wav2vec2() -> Built:
    model = audio.wav2vec2_model(
        extractor_mode="group_norm",
        extractor_conv_layer_config=[(16, 10, 5), (16, 3, 2)],
        extractor_conv_bias=False,
        encoder_embed_dim=32,
        encoder_projection_dropout=0.1,
        encoder_pos_conv_kernel=16,
        encoder_pos_conv_groups=2,
        encoder_num_layers=2,
        encoder_num_heads=4,
        encoder_attention_dropout=0.1,
        encoder_ff_interm_features=64,
        encoder_ff_interm_dropout=0.1,
        encoder_dropout=0.1,
        encoder_layer_norm_first=False,
        encoder_layer_drop=0.0,
        aux_num_out=10,
    )
    return model, (torch.randn(2, SAMPLES), torch.tensor([SAMPLES, SAMPLES - 200])), {}


def tacotron() -> Built:
    widths = (
        "symbol_embedding_dim",
        "encoder_embedding_dim",
        "decoder_rnn_dim",
        "attention_rnn_dim",
        "prenet_dim",
        "postnet_embedding_dim",
    )
    model = audio.Tacotron2(n_mels=8, n_symbol=20, **dict.fromkeys(widths, 16))
    return model, (torch.randint(0, 20, (2, 9)), torch.tensor([9, 7]), torch.randn(2, 8, 6), torch.tensor([6, 5])), {}


def transducer() -> Built:
    model = audio.emformer_rnnt_model(
        input_dim=8,
        encoding_dim=16,
        num_symbols=11,
        segment_length=4,
        right_context_length=1,
        time_reduction_input_dim=8,
        time_reduction_stride=1,
        transformer_num_heads=2,
        transformer_ffn_dim=16,
        transformer_num_layers=2,
        transformer_dropout=0.1,
        transformer_activation="gelu",
        transformer_left_context_length=4,
        transformer_max_memory_size=0,
        transformer_weight_init_scale_strategy="depthwise",
        transformer_tanh_on_mem=True,
        symbol_embedding_dim=8,
        num_lstm_layers=1,
        lstm_layer_norm=True,
        lstm_layer_norm_epsilon=1e-3,
        lstm_dropout=0.1,
    )
    lengths = torch.tensor([12, 8], dtype=torch.int32), torch.tensor([5, 4], dtype=torch.int32)
    return model, (torch.randn(2, 13, 8), lengths[0], torch.randint(0, 11, (2, 5)), lengths[1]), {}


def squim() -> Built:
    sizes = {"feat_dim": 16, "win_len": 16, "d_model": 16, "nhead": 4, "hidden_dim": 16, "num_blocks": 1, "chunk_size": 7}
    return audio.squim_objective_model(rnn_type="LSTM", **sizes), (torch.randn(2, SAMPLES),), {}


MODELS: dict[str, Callable[[], Built]] = {
    "Conformer": partial(frames, "Conformer", depthwise_conv_kernel_size=7),
    "Emformer": partial(frames, "Emformer", length=13, segment_length=4, right_context_length=1),
    "ConvTasNet": partial(
        *(wave, "ConvTasNet", 1, SAMPLES), enc_num_feats=32, msk_num_feats=16, msk_num_hidden_feats=32, msk_num_layers=2, msk_num_stacks=2
    ),
    "DeepSpeech": partial(wave, "DeepSpeech", 1, 12, 16, n_feature=16, n_hidden=32, n_class=10),
    "HDemucs": partial(wave, "HDemucs", 2, 8192, sources=["voice", "rest"], channels=8, nfft=1024, depth=5),
    "Wav2Letter": partial(wave, "Wav2Letter", 13, 64, num_classes=10, input_type="mfcc", num_features=13),
    "Squim": squim,
    "Wav2Vec2": wav2vec2,
    "Tacotron2": tacotron,
    "RNNT": transducer,
    "WaveRNN": lambda: (
        audio.WaveRNN([5, 5, 8], 16, 200, n_res_block=2, n_rnn=32, n_fc=32, kernel_size=5, n_freq=8, n_hidden=16, n_output=16),
        (torch.randn(2, 1, 400), torch.randn(2, 1, 8, 6)),
        {},
    ),
}
