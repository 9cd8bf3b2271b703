"""The operators together, in a training loop, eager and compiled: the same numbers, and one compilation."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsparse.passes.ops  # noqa: F401

ops = torch.ops.fxsparse
STEPS, PERIOD = 7, 3


class SparseLinear(nn.Module):
    clock: Tensor
    density: Tensor
    tau_w: Tensor
    tau_a: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 16) * 0.3)
        self.bias = nn.Parameter(torch.zeros(12))
        self.register_buffer("clock", torch.tensor(0))
        self.register_buffer("density", torch.tensor(0.3, dtype=torch.float64))
        self.register_buffer("tau_w", torch.tensor(math.nan))
        self.register_buffer("tau_a", torch.tensor(math.nan))

    def forward(self, x: Tensor) -> Tensor:
        shared: tuple[Any, ...] = (self.clock, self.density, PERIOD, [], 1, [])
        tau_w = ops.refresh_threshold.default(self.weight.detach(), self.tau_w, *shared, True, "weight:fc")
        w_hat = ops.sparsify.default(self.weight, tau_w, [], 1, True)
        tau_a = ops.refresh_threshold.default(x.detach(), self.tau_a, *shared, True, "input:fc")
        a_hat = ops.sparsify.default(x.detach(), tau_a, [], 1, True)
        out: Tensor = ops.swat_linear.default(x, a_hat, w_hat, self.bias)
        return out.relu()


def train(model: SparseLinear, run: Callable[[Tensor], Tensor], autocast: bool) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    history = []
    for step in range(STEPS):
        model.clock.fill_(step)
        x = torch.randn(8, 16, generator=generator, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = run(x).float().square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        assert x.grad is not None
        history += [loss.detach(), x.grad, model.weight.detach().clone(), model.tau_w.clone(), model.tau_a.clone()]
    return history


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_training_equals_eager_and_compiles_once(backend: str, autocast: bool) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = SparseLinear()
    twin = copy.deepcopy(model)
    eager = train(model, model, autocast)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = train(twin, torch.compile(twin, fullgraph=True, backend=backend), autocast)
    for got, wanted in zip(compiled, eager, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-2 if autocast else 1e-5, atol=1e-3 if autocast else 1e-6)
    thresholds = [float(value) for value in eager[3::5]]
    assert len(set(thresholds)) == math.ceil(STEPS / PERIOD)


def test_compiled_evaluation_leaves_the_buffers_alone() -> None:
    torch._dynamo.reset()
    model = SparseLinear()
    model.clock.fill_(-1)
    with torch.no_grad():
        out = torch.compile(model, fullgraph=True, backend="aot_eager")(torch.randn(8, 16))
    assert out.shape == (8, 12)
    assert model.tau_w.isnan()
    assert model.tau_a.isnan()


def test_the_graph_holds_the_operators_under_export() -> None:
    exported = torch.export.export(SparseLinear(), (torch.randn(8, 16),))
    names = {str(node.target) for node in exported.graph.nodes}
    assert {"fxsparse.refresh_threshold.default", "fxsparse.sparsify.default", "fxsparse.swat_linear.default"} <= names
