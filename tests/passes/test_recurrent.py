"""LSTM, GRU and plain RNN under SWAT, against cells written out with plain autograd operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsparse as fxs

from .swat_reference import gradients, swat, top_k

SETTINGS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "dropout": 0.4},
]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def linear(x: Tensor, w: Tensor, bias: Tensor | None, sparsities: tuple[float, float]) -> Tensor:
    out = swat(
        F.linear,
        x,
        w,
        top_k(w.abs(), sparsities[0]) if sparsities[0] else 1.0,
        top_k(x.detach().abs(), sparsities[1]) if sparsities[1] else 1.0,
    )
    return out if bias is None else out + bias


def unrolled(
    module: nn.RNNBase, weights: dict[str, Tensor], x: Tensor, state: Any, sparsities: tuple[float, float]
) -> tuple[Tensor, list[Tensor]]:
    """The output sequence and the last hidden states of a module, by the equations in its documentation."""
    x = x.transpose(0, 1) if module.batch_first else x
    hidden = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(2 if module.bidirectional else 1):
            suffix = f"l{layer}" + "_reverse" * direction
            w_ih, w_hh, b_ih, b_hh, w_hr = (
                weights.get(f"{kind}_{suffix}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            )
            slot = layer * (2 if module.bidirectional else 1) + direction
            h, c = (state[0][slot], state[1][slot]) if isinstance(state, tuple) else (state[slot], None)
            from_input = linear(x, w_ih, b_ih, sparsities)
            steps: list[Tensor] = []
            for t in reversed(range(x.shape[0])) if direction else range(x.shape[0]):
                from_state = linear(h, w_hh, b_hh, sparsities)
                if isinstance(module, nn.RNN):
                    h = (torch.relu if module.nonlinearity == "relu" else torch.tanh)(from_input[t] + from_state)
                elif c is None:
                    r_x, z_x, n_x = from_input[t].chunk(3, -1)
                    r_h, z_h, n_h = from_state.chunk(3, -1)
                    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
                    h = (1 - z) * torch.tanh(n_x + r * n_h) + z * h
                else:
                    i, f, g, o = (from_input[t] + from_state).chunk(4, -1)
                    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                    h = torch.sigmoid(o) * torch.tanh(c)
                    h = h if w_hr is None else linear(h, w_hr, None, sparsities)
                steps = [h, *steps] if direction else [*steps, h]
            outputs.append(torch.stack(steps))
            hidden.append(h)
        x = torch.cat(outputs, -1)
        if module.dropout and layer + 1 < module.num_layers:
            x = F.dropout(x, module.dropout)
    return x.transpose(0, 1) if module.batch_first else x, hidden


class Classifier(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.rnn = kind(6, 5, **settings)

    def forward(self, x: Tensor, *state: Tensor) -> Any:
        if not state:
            return self.rnn(x)
        return self.rnn(x, state if isinstance(self.rnn, nn.LSTM) else state[0])


def start_state(module: nn.RNNBase, batch: int) -> tuple[Tensor, ...]:
    count = module.num_layers * (2 if module.bidirectional else 1)
    hidden = torch.randn(count, batch, module.proj_size or module.hidden_size)
    return (hidden, torch.randn(count, batch, module.hidden_size)) if isinstance(module, nn.LSTM) else (hidden,)


def check(kind: type[nn.RNNBase], given_state: bool, sparsities: tuple[float, float], **settings: Any) -> fxs.CompiledModel:
    model = Classifier(kind, **settings)
    x = torch.randn(4, 3, 6)
    state = start_state(model.rnn, 4 if model.rnn.batch_first else 3)
    if not given_state:
        state = tuple(torch.zeros_like(item) for item in state)
    given = state if given_state else ()
    policy = fxs.SWAT(weight_sparsity=sparsities[0], activation_sparsity=sparsities[1], dense_first=False)
    compiled = fxs.compile(model, policy, (x, *given))
    assert {change.site for change in compiled.report.changes} == {name for name, p in model.named_parameters() if p.dim() == 2}
    parameters = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.rnn.named_parameters()}
    expected_x, found_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(3)
    expected, hidden = unrolled(model.rnn, parameters, expected_x, state if len(state) == 2 else state[0], sparsities)
    torch.manual_seed(3)
    found, last = compiled(found_x, *given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last[0] if isinstance(last, tuple) else last, torch.stack(hidden), rtol=1e-5, atol=1e-6)
    names = ["x", *parameters]
    found_grads = gradients(found, found_x, *(model.rnn.get_parameter(name) for name in parameters))
    for name, a, b in zip(names, found_grads, gradients(expected, expected_x, *parameters.values()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"gradient of {name}: {text}")
    return compiled


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_follow_the_equations(kind: type[nn.RNNBase], settings: dict[str, Any], given_state: bool) -> None:
    check(kind, given_state, (0.6, 0.5), **settings)


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_projected_lstm(settings: dict[str, Any]) -> None:
    check(nn.LSTM, True, (0.6, 0.5), proj_size=3, **settings)


@pytest.mark.parametrize("sparsities", [(0.8, 0.0), (0.0, 0.8)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_one_sparsity_alone(kind: type[nn.RNNBase], sparsities: tuple[float, float]) -> None:
    check(kind, False, sparsities)


@pytest.mark.parametrize("settings", SETTINGS[:5], ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_dense_weights_give_the_output_of_torch(kind: type[nn.RNNBase], settings: dict[str, Any]) -> None:
    """The unrolled form against torch's own kernels."""
    model, x = Classifier(kind, **settings), torch.randn(4, 3, 6)
    compiled = fxs.compile(model, fxs.SWAT(weight_sparsity=0.0, activation_sparsity=0.5, dense_first=False), (x,))
    found, expected = compiled(x), model(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_plain_rnn_with_relu() -> None:
    check(nn.RNN, True, (0.6, 0.5), nonlinearity="relu", num_layers=2)


def test_dropout_is_silent_in_eval_mode() -> None:
    model, x = Classifier(nn.LSTM, num_layers=2, dropout=0.5), torch.randn(4, 3, 6)
    compiled = fxs.compile(model, fxs.SWAT(weight_sparsity=0.0, activation_sparsity=0.5, dense_first=False), (x,)).eval()
    torch.testing.assert_close(compiled(x)[0], model.eval()(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("structure", "skipped"), [("element", 0), ("filter", 0), ("kernel", 0)])
def test_structures(structure: str, skipped: int) -> None:
    model, x = Classifier(nn.GRU), torch.randn(4, 3, 6)
    compiled = fxs.compile(model, fxs.SWAT(weight_sparsity=0.6, structure=structure, dense_first=False), (x,))
    assert len(compiled.report.skips) == skipped
    w = model.rnn.weight_hh_l0.detach()
    mask = top_k(w.abs().sum(1, keepdim=True), 0.6).expand_as(w) if structure == "filter" else top_k(w.abs(), 0.6)
    compiled(x)
    assert compiled.sparsity()["rnn.weight_hh_l0"]["weight"]["kept"] == int(mask.sum())


def test_other_granularities_are_refused_with_the_reason() -> None:
    model, x = Classifier(nn.GRU), torch.randn(4, 3, 6)
    compiled = fxs.compile(model, fxs.SWAT(weight_sparsity=0.6, granularity="channel", dense_first=False), (x,))
    assert {skip.reason for skip in compiled.report.skips} == {
        "a recurrent layer sparsifies its activations over the whole tensor; use granularity 'tensor'"
    }
    assert not compiled.report.changes
    weights_only = fxs.SWAT(weight_sparsity=0.6, activation_sparsity=0.0, granularity="channel", dense_first=False)
    assert len(fxs.compile(model, weights_only, (x,)).report.changes) == 2


def test_a_sequence_of_another_length_and_batch_size() -> None:
    model, x = Classifier(nn.LSTM), torch.randn(4, 3, 6)
    compiled = fxs.compile(model, fxs.SWAT(weight_sparsity=0.0, activation_sparsity=0.5, dense_first=False), (x,))
    other = torch.randn(7, 2, 6)
    torch.testing.assert_close(compiled(other)[0], model(other)[0], rtol=1e-5, atol=1e-6)
