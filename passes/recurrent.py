"""LSTM, GRU and plain RNN as one function node: torch's own kernels, or unrolled where their weights are sparsified."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .ops.codes.scheme import of_sparse
from .ops.pack_sparse import NEAREST

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
KERNELS = {"GRU": torch._VF.gru, "RNN_TANH": torch._VF.rnn_tanh, "RNN_RELU": torch._VF.rnn_relu}


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
    """The output sequence and the last state of an nn.LSTM, nn.GRU or nn.RNN, as they return them.

    Args:
        input: (T, N, C), or (N, T, C) with ``batch_first``.
        hx: initial state: (D * num_layers, N, H), a pair of them for LSTM, or None for zeros.
        weights: for each layer and direction w_ih (G*H, C), w_hh (G*H, H) and, with ``bias``, b_ih, b_hh; a projected LSTM adds w_hr.
    """
    if hx is None:
        hx = _zero_state(input, weights, mode, num_layers, bidirectional, batch_first)
    if mode == "LSTM":
        output, hidden, cell = torch._VF.lstm(input, hx, weights, bias, num_layers, dropout, training, bidirectional, batch_first)
        return output, (hidden, cell)
    return KERNELS[mode](input, hx, weights, bias, num_layers, dropout, training, bidirectional, batch_first)


def _zero_state(input: Tensor, weights: list[Tensor], mode: str, num_layers: int, bidirectional: bool, batch_first: bool) -> Any:
    directions = 2 if bidirectional else 1
    hidden = weights[1].shape[1]
    cell = weights[1].shape[0] // GATES[mode]
    batch = input.shape[0] if batch_first else input.shape[1]
    state = torch.zeros(num_layers * directions, batch, hidden, dtype=input.dtype, device=input.device)
    if mode != "LSTM":
        return state
    return state, torch.zeros(num_layers * directions, batch, cell, dtype=input.dtype, device=input.device)


Activation = tuple[Tensor, Tensor, Tensor, int, str, float]


def swat_recurrent(
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
    activations: list[Activation | None],
    now: Tensor,
    wanted: bool,
) -> Any:
    """As ``recurrent``, unrolled over time, so that each product keeps only its sparse operands.

    Args:
        weights: the sparse matrices in place of the dense ones.
        activations: for each weight whose activation is sparsified (threshold, density, counts, period, site), else None.
        now: the clock. wanted: whether a gradient is.
    """
    if hx is None:
        hx = _zero_state(input, weights, mode, num_layers, bidirectional, batch_first)
    directions = 2 if bidirectional else 1
    size = len(weights) // (num_layers * directions)
    x = input.transpose(0, 1) if batch_first else input
    hidden: list[Tensor] = []
    cells: list[Tensor] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            slot = layer * directions + direction
            cell = _Cell(weights[slot * size : (slot + 1) * size], activations[slot * size : (slot + 1) * size], mode, bias, now, wanted)
            state: tuple[Tensor, ...] = (hx[0][slot], hx[1][slot]) if mode == "LSTM" else (hx[slot],)
            steps, state = cell.run(x, state, backwards=direction == 1)
            outputs.append(steps)
            hidden.append(state[0])
            cells += state[1:]
        x = torch.cat(outputs, dim=-1) if directions == 2 else outputs[0]
        if dropout and training and layer + 1 < num_layers:
            x = torch.nn.functional.dropout(x, dropout)
    output = x.transpose(0, 1) if batch_first else x
    if mode == "LSTM":
        return output, (torch.stack(hidden), torch.stack(cells))
    return output, torch.stack(hidden)


class _Cell:
    """One layer and direction of a recurrent module."""

    def __init__(
        self, weights: list[Tensor], activations: list[Activation | None], mode: str, bias: bool, now: Tensor, wanted: bool
    ) -> None:
        self.mode = mode
        self.w_ih, self.w_hh = weights[:2]
        self.b_ih: Tensor | None = weights[2] if bias else None
        self.b_hh: Tensor | None = weights[3] if bias else None
        projected = len(weights) > (4 if bias else 2)
        self.w_hr = weights[-1] if projected else None
        self.a_ih, self.a_hh = activations[:2]
        self.a_hr = activations[-1] if projected else None
        self.now = now
        self.wanted = wanted

    def run(self, x: Tensor, state: tuple[Tensor, ...], backwards: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        gates = self._linear(x, self.w_ih, self.b_ih, self.a_ih)
        steps = list(gates.unbind(0))
        outputs = []
        advance: Any = {"LSTM": self._lstm, "GRU": self._gru}.get(self.mode, self._plain)
        for step in reversed(steps) if backwards else steps:
            state = advance(step, *state)
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backwards else outputs), state

    def _lstm(self, from_input: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        gates = from_input + self._linear(hidden, self.w_hh, self.b_hh, self.a_hh)
        enter, forget, candidate, leave = gates.chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        if self.w_hr is not None:
            hidden = self._linear(hidden, self.w_hr, None, self.a_hr)
        return hidden, cell

    def _gru(self, from_input: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        reset_x, update_x, new_x = from_input.chunk(3, dim=-1)
        reset_h, update_h, new_h = self._linear(hidden, self.w_hh, self.b_hh, self.a_hh).chunk(3, dim=-1)
        update = (update_x + update_h).sigmoid()
        candidate = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
        return (candidate + update * (hidden - candidate),)

    def _plain(self, from_input: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        gate = from_input + self._linear(hidden, self.w_hh, self.b_hh, self.a_hh)
        return (gate.relu() if self.mode == "RNN_RELU" else gate.tanh(),)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation | None) -> Tensor:
        a_hat, kept = x, cast(tuple[Any, ...], ())
        if activation is not None:
            stored, density, counts, period, site, share = activation
            threshold = torch.ops.fxsparse.refresh_threshold(x.detach(), stored, self.now, density, period, [], 1, [], self.wanted, site)
            scheme = of_sparse("bitmap")
            a_hat, values, stats, count = torch.ops.fxsparse.pack_sparse(
                x.detach(), threshold, self.wanted, self.now, scheme, NEAREST, share
            )
            torch.ops.fxsparse.count_kept(x, count, counts, self.now, period, self.wanted)
            kept = (scheme, values, stats)
        out: Tensor = torch.ops.fxsparse.swat_linear(x, a_hat, weight, bias, *kept)
        return out
