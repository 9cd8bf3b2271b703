"""LSTM and GRU as one function node: torch's own kernels, or unrolled where their weights are sparsified."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

GATES = {"LSTM": 4, "GRU": 3}


def recurrent(
    input: Tensor,
    hx: Any,
    weights: list[Tensor],
    mode: str,
    bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    """The output sequence and the last state of an LSTM or GRU, as nn.LSTM and nn.GRU return them.

    Args:
        input: (T, N, C), or (N, T, C) with ``batch_first``.
        hx: initial state: (D * num_layers, N, H), a pair of them for LSTM, or None for zeros.
        weights: for each layer and direction w_ih (G*H, C), w_hh (G*H, H) and, with ``bias``, b_ih, b_hh; a projected LSTM adds w_hr.
    """
    if hx is None:
        hx = _zero_state(input, weights, mode, num_layers, bidirectional, batch_first)
    if mode == "LSTM":
        output, hidden, cell = torch._VF.lstm(
            input, hx, weights, bias, num_layers, dropout, training, bidirectional, batch_first
        )
        return output, (hidden, cell)
    return torch._VF.gru(input, hx, weights, bias, num_layers, dropout, training, bidirectional, batch_first)


def _zero_state(input: Tensor, weights: list[Tensor], mode: str, num_layers: int, bidirectional: bool, batch_first: bool) -> Any:
    directions = 2 if bidirectional else 1
    hidden = weights[1].shape[1]
    cell = weights[1].shape[0] // GATES[mode]
    batch = input.shape[0] if batch_first else input.shape[1]
    state = torch.zeros(num_layers * directions, batch, hidden, dtype=input.dtype, device=input.device)
    if mode == "GRU":
        return state
    return state, torch.zeros(num_layers * directions, batch, cell, dtype=input.dtype, device=input.device)
