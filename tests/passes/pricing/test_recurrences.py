"""The price of a long recurrence, extrapolated from a few steps, against the one recorded step by step."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn

from fxsparse.passes.pricing import calls
from fxsparse.passes.pricing.calls import CallPricer
from fxsparse.passes.pricing.keys import Held
from fxsparse.passes.pricing.price import Price
from fxsparse.passes.pricing.recording import Spec, spec_of

BATCH = 1013
LAYERS = {
    "LSTM": lambda: nn.LSTM(6, 8, 2, bidirectional=True),
    "LSTM, batch first": lambda: nn.LSTM(6, 8, batch_first=True),
    "LSTM, projected": lambda: nn.LSTM(6, 8, proj_size=4),
    "GRU": lambda: nn.GRU(6, 8),
    "GRU, batch first, two ways": lambda: nn.GRU(6, 8, 2, batch_first=True, bidirectional=True),
    "RNN": lambda: nn.RNN(6, 8, bias=False),
}


def price(layer: nn.RNNBase, steps: int, learns: bool) -> Price:
    shape = (BATCH, steps, 6) if layer.batch_first else (steps, BATCH, 6)
    spec = spec_of(torch.empty(shape, device="meta"))._replace(device=torch.device("cpu"), requires_grad=learns)
    return CallPricer(BATCH, exclusive=True).module(layer, (Held(spec, ("x", 0)),), {}, {}).price


def plain(price: Price) -> dict[str, Any]:
    found = asdict(price)
    saved: dict[tuple[str, int], list[int]] = {}
    for kind, slot, amount in found.pop("saved"):
        total = saved.setdefault((kind, slot), [0, 0])
        total[0] += amount[0]
        total[1] += amount[1]
    return {**found, "saved": saved}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_many_steps_cost_what_they_cost_one_by_one(make: Any, learns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make()
    extrapolated = price(layer, 11, learns)
    monkeypatch.setattr(calls, "time_axis", lambda *_: None)
    assert plain(extrapolated) == plain(price(layer, 11, learns))


def test_output_has_the_form_of_the_long_sequence() -> None:
    output, _ = price(nn.LSTM(6, 8), 700, True).output
    assert isinstance(output.spec, Spec)
    assert output.spec.shape == (700, BATCH, 8)
    assert output.spec.stride == (BATCH * 8, 8, 1)
