"""Recurrent layers, attention and transformers: torch.nn modules that fuse several contractions."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsparse as fxs
from fxsparse.passes.capture.capture import capture
from fxsparse.passes.recurrent import recurrent

from .neutral import assert_whole, compile_neutral

TOKENS = torch.randn(2, 5, 8)
MEMORY = torch.randn(2, 7, 8)
PADDING = torch.tensor([[False, False, False, True, True], [False, False, False, False, True]])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(8, 6, batch_first=True, **options)
        width = (options.get("proj_size") or 6) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, state: Any = None) -> Tensor:
        out, _ = self.rnn(x, state)
        return self.head(out[:, -1])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.5}, {"bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layer(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    compiled = compile_neutral(Recurrent(kind, **options), TOKENS)
    assert_whole(compiled)
    assert set(compiled.graphs) == {"", "rnn"}
    layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    assert sum(name.startswith("rnn.weight") for name in compiled.sites) == 2 * layers


def test_lstm_with_projection() -> None:
    compiled = compile_neutral(Recurrent(nn.LSTM, proj_size=4), TOKENS)
    assert "rnn.weight_hr_l0" in compiled.sites


def test_recurrent_layer_with_initial_state() -> None:
    state = torch.randn(1, 2, 6)
    for kind, given in ((nn.LSTM, (state, state + 1)), (nn.GRU, state)):
        model = Recurrent(kind)
        compiled = compile_neutral(model, TOKENS, given, batches=False)
        assert_whole(compiled)
        fxs.check(compiled, model, (TOKENS,)).raise_if_different()


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.rnn = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.rnn(packed)
        return self.head(hidden[-1])


def test_packed_sequences_stay_exact_with_a_reason() -> None:
    compiled = compile_neutral(Packed(), TOKENS, torch.tensor([5, 3]))
    reasons = " ".join(compiled.report.left.values())
    assert reasons
    assert "\n" not in reasons
    assert {"embed", "head"} <= {name.rpartition(".")[0] for name in compiled.sites}


class Vanilla(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(8, 6, batch_first=True)
        self.cell = nn.LSTMCell(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        hidden, cell = self.cell(out[:, 0])
        hidden, cell = self.cell(out[:, 1], (hidden, cell))
        return hidden + cell


def test_recurrent_layers_without_recipe_are_called_as_they_are() -> None:
    assert_whole(compile_neutral(Vanilla(), TOKENS))


class Attention(nn.Module):
    def __init__(self, need_weights: bool = True, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.need_weights = need_weights

    def forward(self, x: Tensor, memory: Tensor | None = None, padding: Tensor | None = None, mask: Tensor | None = None) -> Any:
        memory = x if memory is None else memory
        return self.attention(x, memory, memory, key_padding_mask=padding, attn_mask=mask, need_weights=self.need_weights)


CAUSAL = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
CALLS: dict[str, tuple[Any, ...]] = {
    "self": (TOKENS,),
    "cross": (TOKENS, MEMORY),
    "padding": (TOKENS, None, PADDING),
    "causal": (TOKENS, None, None, CAUSAL),
    "float mask": (TOKENS, None, None, torch.randn(5, 5)),
    "both": (TOKENS, None, PADDING, CAUSAL),
    "mask of each head": (TOKENS, None, None, torch.randn(4, 5, 5)),
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_attention(call: tuple[Any, ...], need_weights: bool) -> None:
    model = Attention(need_weights, dropout=0.1)
    compiled = compile_neutral(model, *call, batches=len(call) < 4)
    assert_whole(compiled)
    assert {"attention.in_proj_weight", "attention.out_proj.weight"} == set(compiled.sites)
    with torch.no_grad():
        expected, found = model.eval()(*call), compiled.eval()(*call)
    assert torch.equal(expected[0], found[0])


@pytest.mark.parametrize("options", [{"bias": False}, {"kdim": 6, "vdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_attention_options(options: dict[str, Any]) -> None:
    class Inputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, **options)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
            return self.attention(q, k, v)

    compile_neutral(Inputs(), torch.randn(5, 2, 8), torch.randn(7, 2, options.get("kdim", 8)), torch.randn(7, 2, options.get("vdim", 8)))


def test_attention_of_one_sequence() -> None:
    compile_neutral(Attention(), torch.randn(5, 8), batches=False)


class Encoder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"activation": "gelu", "bias": False}], ids=str)
@pytest.mark.parametrize("call", [(TOKENS,), (TOKENS, PADDING)], ids=["plain", "padding"])
def test_transformer_encoder(call: tuple[Tensor, ...], options: dict[str, Any]) -> None:
    model = Encoder(**options)
    compiled = compile_neutral(model, *call)
    assert len(compiled.sites) == 9
    with torch.no_grad():  # torch's fused path
        expected, found = model.eval()(*call), compiled.eval()(*call)
    assert expected.shape == found.shape
    assert torch.equal(expected, found)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.decoder(x, memory, tgt_mask=mask, tgt_is_causal=True)


def test_transformer_decoder() -> None:
    compiled = compile_neutral(Decoder(), TOKENS, MEMORY)
    assert len(compiled.sites) == 2 * (2 + 2 + 2)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.transformer(source, target)


def test_transformer() -> None:
    compiled = compile_neutral(Whole(), MEMORY, TOKENS)
    assert len(compiled.sites) == 10


def test_composite_as_the_model_itself() -> None:
    for model, call in (
        (nn.LSTM(8, 6), (TOKENS,)),
        (nn.MultiheadAttention(8, 2), (TOKENS, TOKENS, TOKENS)),
        (nn.TransformerEncoderLayer(8, 2, 16), (TOKENS,)),
        (nn.Linear(8, 3), (TOKENS,)),
        (nn.Sequential(nn.Linear(8, 3)), (TOKENS,)),
    ):
        compiled = compile_neutral(model, *call, batches=False)
        assert compiled.sites


CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell, "rnn with relu": partial(nn.RNNCell, nonlinearity="relu")}


class Unrolled(nn.Module):
    """A cell in a loop of the model's own."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell = kind(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state  # type: ignore[return-value]


@pytest.mark.parametrize("name", CELLS)
def test_recurrent_cell(name: str) -> None:
    model = Unrolled(CELLS[name])
    compiled = compile_neutral(model, TOKENS)
    assert_whole(compiled)
    assert set(compiled.sites) == {"cell.weight_ih", "cell.weight_hh"}
    dense = fxs.compile(model, fxs.SWAT(weight_sparsity=0.0, activation_sparsity=1e-9, dense_first=False), (TOKENS,))
    assert set(dense.swat) == set(compiled.sites)
    torch.testing.assert_close(dense(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-6)


def test_layer_in_a_captured_module_that_python_elsewhere_calls() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.query = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            return torch.tanh(self.query(x) + memory)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention()

        def forward(self, x: Tensor) -> Tensor:
            memory = self.attention.memory(x)
            return self.attention(x if float(x.detach().sum()) < 1e9 else -x, memory)

    compiled = compile_neutral(Decoder(), TOKENS)
    assert set(compiled.graphs) == {"attention", "attention.memory"}
    assert set(compiled.sites) == {"attention.query.weight", "attention.memory.weight"}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_long_sequence_is_captured_in_one_step(kind: type[nn.RNNBase], batch_first: bool) -> None:
    """Each step of thousands would be run on fake tensors, and again for every question about them."""

    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(4, 3, num_layers=2, bidirectional=True, batch_first=batch_first)

        def forward(self, x: Tensor) -> Any:
            return self.rnn(x)

    x = torch.randn(3, 4000, 4) if batch_first else torch.randn(4000, 3, 4)
    began = time.process_time()
    captured = capture(Long(), ((x,), {}))
    assert time.process_time() - began < 10
    assert captured.left == {}
    [out] = [node for node in captured.forwards["rnn"].current().graph.nodes if node.target is recurrent]
    assert out.meta["val"][0].shape == (*x.shape[:2], 6)
