"""Forward functions for torch.nn modules that fuse contractions, so that each contraction is a node of its own.

A composite module keeps its own Python in the graph that calls it. Its recipe is traced into a graph of the module's
own, which replaces that Python only where a pass has rewritten something in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..recurrent import recurrent

fx.wrap("recurrent")


def is_composite(module: nn.Module) -> bool:
    """Whether a module has a recipe."""
    return type(module) in RECIPES


def multihead_attention(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """nn.MultiheadAttention by its definition: three projections, attention for each head, the output projection."""
    if self.bias_k is not None or self.bias_v is not None or self.add_zero_attn:
        raise ValueError("attention with bias_k, bias_v or add_zero_attn keeps torch's own implementation")
    batched, batch_first, heads = query.dim() == 3, self.batch_first and query.dim() == 3, self.num_heads
    q, k, v = _project(self, query, key, value)
    if not batched:
        q, k, v = q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    if batch_first:
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    target, batch, width = q.shape[0], q.shape[1], self.embed_dim
    source = k.shape[0]
    q, k, v = (t.reshape(n, batch, heads, width // heads).permute(1, 2, 0, 3) for t, n in ((q, target), (k, source), (v, source)))
    use_causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if use_causal else _merged_mask(attn_mask, key_padding_mask, q, batch, heads, source)
    dropout = self.dropout if self.training else 0.0
    weights = None
    if need_weights:
        scores = (q * math.sqrt(1.0 / (width // heads))) @ k.transpose(-2, -1)
        weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, dropout) if dropout > 0.0 else weights
        attended = weights @ v
        weights = weights.mean(dim=1) if average_attn_weights else weights
    else:
        attended = F.scaled_dot_product_attention(q, k, v, mask, dropout, use_causal)
    attended = attended.permute(2, 0, 1, 3).reshape(target, batch, width)
    output = F.linear(attended, self.out_proj.weight, self.out_proj.bias)
    if batch_first:
        output = output.transpose(0, 1)
    if not batched:
        output = output.squeeze(1)
        weights = None if weights is None else weights.squeeze(0)
    return output, weights


def _project(self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    bias = self.in_proj_bias
    if self._qkv_same_embed_dim:
        weight, width = self.in_proj_weight, self.embed_dim
        if query is key and key is value:
            joint = F.linear(query, weight, bias)
            return tuple(joint[..., i * width : (i + 1) * width] for i in range(3))  # type: ignore[return-value]
        weights = [weight[i * width : (i + 1) * width] for i in range(3)]
    else:
        width = self.embed_dim
        weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
    biases = [None] * 3 if bias is None else [bias[i * width : (i + 1) * width] for i in range(3)]
    return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))  # type: ignore[return-value]


def _merged_mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, batch: Any, heads: int, source: Any) -> Tensor | None:
    """One additive mask broadcastable to (batch, heads, target, source); boolean masks mark what is left out."""
    merged = None
    if attn_mask is not None:
        merged = _additive(attn_mask, q)
        if attn_mask.dim() == 3:
            merged = merged.reshape(batch, heads, -1, source)
    if padding is not None:
        extra = _additive(padding, q).reshape(batch, 1, 1, source)
        merged = extra if merged is None else merged + extra
    return merged


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    return mask


def encoder_layer(
    self: nn.TransformerEncoderLayer,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """nn.TransformerEncoderLayer without its fused inference path, which reads weights that may be sparsified."""
    if self.norm_first:
        x = src + self._sa_block(self.norm1(src), src_mask, src_key_padding_mask, is_causal=is_causal)
        return x + self._ff_block(self.norm2(x))
    x = self.norm1(src + self._sa_block(src, src_mask, src_key_padding_mask, is_causal=is_causal))
    normalised: Tensor = self.norm2(x + self._ff_block(x))
    return normalised


def recurrent_layer(self: nn.RNNBase, input: Tensor, hx: Any = None) -> Any:
    """nn.LSTM, nn.GRU or nn.RNN as one node that names its weights."""
    if not isinstance(input, torch.Tensor) or input.dim() != 3:
        raise ValueError("packed or unbatched sequences keep torch's own implementation")
    weights = [getattr(self, name) for name in self._flat_weights_names]
    return recurrent(
        input, hx, weights, self.mode, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional, self.batch_first
    )


def _cell_gates(self: nn.RNNCellBase, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """What the gates of a cell get from its input and from its state."""
    if x.dim() != 2:
        raise ValueError("unbatched cells keep torch's own implementation")
    return F.linear(x, self.weight_ih, self.bias_ih), F.linear(hidden, self.weight_hh, self.bias_hh)


def lstm_cell(self: nn.LSTMCell, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """nn.LSTMCell by its definition."""
    if hx is None:
        zeros = input.new_zeros(input.shape[0], self.hidden_size)
        hx = zeros, zeros
    hidden, cell = hx
    from_input, from_state = _cell_gates(self, input, hidden)
    enter, forget, candidate, leave = (from_input + from_state).chunk(4, dim=1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def gru_cell(self: nn.GRUCell, input: Tensor, hx: Tensor | None = None) -> Tensor:
    """nn.GRUCell by its definition."""
    hidden = input.new_zeros(input.shape[0], self.hidden_size) if hx is None else hx
    from_input, from_state = _cell_gates(self, input, hidden)
    reset_x, update_x, new_x = from_input.chunk(3, dim=1)
    reset_h, update_h, new_h = from_state.chunk(3, dim=1)
    update = (update_x + update_h).sigmoid()
    candidate = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
    return candidate + update * (hidden - candidate)


def rnn_cell(self: nn.RNNCell, input: Tensor, hx: Tensor | None = None) -> Tensor:
    """nn.RNNCell by its definition."""
    hidden = input.new_zeros(input.shape[0], self.hidden_size) if hx is None else hx
    from_input, from_state = _cell_gates(self, input, hidden)
    gate = from_input + from_state
    return gate.relu() if self.nonlinearity == "relu" else gate.tanh()


RECIPES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: multihead_attention,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerDecoderLayer: nn.TransformerDecoderLayer.forward,
    nn.LSTM: recurrent_layer,
    nn.GRU: recurrent_layer,
    nn.RNN: recurrent_layer,
    nn.LSTMCell: lstm_cell,
    nn.GRUCell: gru_cell,
    nn.RNNCell: rnn_cell,
}
