"""A model under SWAT lives through what people do with models: copies, files, precision, layouts, accumulation, averaging."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsparse as fxs

ROOT = Path(__file__).resolve().parents[2]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.fc = nn.Conv2d(3, 8, 3, stride=2), Residual(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mha, self.fc = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.fc(self.mha(x, x, x, need_weights=False)[0].mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (SmallResNet, (4, 3, 9, 9)),
    "mlp": (mlp, (4, 6)),
    "attention": (Attention, (4, 7, 6)),
    "lstm": (Sequence, (4, 5, 6)),
}
SWAT = fxs.SWAT(weight_sparsity=0.7, period=4, linear_period=3, dense_first=False)


def make(name: str, technique: fxs.SWAT = SWAT) -> tuple[fxs.CompiledModel, tuple[int, ...]]:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    return fxs.compile(build(), technique, (torch.randn(shape),)), shape


def batches(shape: tuple[int, ...], count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator), torch.randint(5, (shape[0],), generator=generator)) for _ in range(count)]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(model: Any, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor.nan_to_num(3.0), second[name].nan_to_num(3.0)), name


def through_pickle(model: fxs.CompiledModel) -> fxs.CompiledModel:
    copied: fxs.CompiledModel = pickle.loads(pickle.dumps(model))
    return copied


def through_file(model: fxs.CompiledModel) -> fxs.CompiledModel:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: fxs.CompiledModel = torch.load(buffer, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[fxs.CompiledModel], fxs.CompiledModel]] = {
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "torch.save": through_file,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_in_the_middle_of_a_period_goes_on_alike_and_apart(name: str, way: str) -> None:
    compiled, shape = make(name)
    optimizer = optimizer_of(compiled)
    data = batches(shape, 8)
    train(compiled, optimizer, data[:2])
    copied = COPIES[way](compiled)
    assert_same_state(compiled, copied)
    assert copied.plan == compiled.plan
    assert copied.policy == compiled.policy
    assert str(copied.report) == str(compiled.report)
    for path, gm in compiled.graphs.items():
        nodes = zip(gm.graph.nodes, copied.graphs[path].graph.nodes, strict=True)
        assert all(
            (a.name, a.op, a.target, str(a.args), a.meta.get("custom")) == (b.name, b.op, b.target, str(b.args), b.meta.get("custom"))
            for a, b in nodes
        )
    other = optimizer_of(copied)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = copy.deepcopy(copied.state_dict())
    expected = train(compiled, optimizer, data[2:])
    assert all(torch.equal(before[key].nan_to_num(3.0), tensor.nan_to_num(3.0)) for key, tensor in copied.state_dict().items())
    assert all(map(torch.equal, train(copied, other, data[2:]), expected))
    assert_same_state(compiled, copied)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_in_the_middle_of_a_period_goes_on_bit_for_bit(name: str) -> None:
    compiled, shape = make(name)
    optimizer, data = optimizer_of(compiled), batches(shape, 10)
    train(compiled, optimizer, data[:5])
    checkpoint = copy.deepcopy((compiled.state_dict(), optimizer.state_dict()))
    expected = train(compiled, optimizer, data[5:])
    fresh, _ = make(name)
    for parameter in fresh.parameters():
        torch.nn.init.normal_(parameter)
    fresh.load_state_dict(checkpoint[0], strict=True)
    other = optimizer_of(fresh)
    other.load_state_dict(checkpoint[1])
    assert all(map(torch.equal, train(fresh, other, data[5:]), expected))
    assert_same_state(compiled, fresh)


def test_a_checkpoint_without_the_period_would_not() -> None:
    """The test above can fail: with the clock set back, the continuation differs."""
    compiled, shape = make("mlp")
    optimizer, data = optimizer_of(compiled), batches(shape, 10)
    train(compiled, optimizer, data[:5])
    other = copy.deepcopy(compiled)
    other.get_buffer("fxsparse.clock.steps").zero_()
    momentum = optimizer_of(other)
    momentum.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert not all(map(torch.equal, train(other, momentum, data[5:]), train(compiled, optimizer, data[5:])))


def test_a_strict_load_names_what_is_missing() -> None:
    compiled, _ = make("mlp")
    state = {name: tensor for name, tensor in compiled.state_dict().items() if not name.startswith("fxsparse.")}
    with pytest.raises(RuntimeError, match=r"fxsparse\.clock\.steps"):
        compiled.load_state_dict(state, strict=True)
    MODELS["mlp"][0]().load_state_dict(state, strict=True)


def test_a_fresh_process_reads_a_saved_model(tmp_path: Path) -> None:
    compiled, shape = make("attention")
    train(compiled, optimizer_of(compiled), batches(shape, 3))
    x, _ = batches(shape, 1, seed=5)[0]
    torch.save({"model": compiled, "x": x}, tmp_path / "model.pt")
    compiled.zero_grad()
    loss = compiled(x).square().sum()
    loss.backward()
    expected = {name: parameter.grad for name, parameter in compiled.named_parameters()}
    program = (
        "import sys, torch\n"
        f"sys.path[:0] = [{str(ROOT)!r}]\n"
        f"found = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
        "model = found['model']\n"
        "loss = model(found['x']).square().sum()\n"
        "loss.backward()\n"
        "made = {'loss': loss.detach(), 'grads': {name: p.grad for name, p in model.named_parameters()}, 'report': str(model.report)}\n"
        f"torch.save(made, {str(tmp_path / 'made.pt')!r})\n"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    made = torch.load(tmp_path / "made.pt")
    torch.testing.assert_close(made["loss"], loss.detach(), rtol=1e-6, atol=1e-6)
    for name, grad in expected.items():
        torch.testing.assert_close(made["grads"][name], grad, rtol=1e-5, atol=1e-6)
    assert made["report"] == str(compiled.report)


# Precision and layout


@pytest.mark.parametrize("name", MODELS)
def test_autocast(name: str) -> None:
    compiled, shape = make(name)
    reference = copy.deepcopy(compiled)
    (x, y), *_ = batches(shape, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = compiled(x)
        assert out.dtype == torch.bfloat16
        F.cross_entropy(out.float(), y).backward()
    F.cross_entropy(reference(x), y).backward()
    torch.testing.assert_close(out.float(), reference(x), rtol=3e-2, atol=3e-2)
    for (key, a), b in zip(compiled.named_parameters(), reference.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.dtype == torch.float32, key
        scale = float(b.grad.norm()) + 1e-6
        assert float((a.grad - b.grad).norm()) / scale < 0.15, key
    assert all(buffer.dtype != torch.bfloat16 for buffer in compiled.buffers())


@pytest.mark.parametrize("structure", ["element", "kernel", "filter"])
@pytest.mark.parametrize("granularity", ["tensor", "sample", "channel"])
def test_channels_last_gives_the_same_numbers(structure: str, granularity: str) -> None:
    technique = fxs.SWAT(weight_sparsity=0.7, dense_first=False, structure=structure, granularity=granularity)
    plain, shape = make("resnet", technique)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    (x, y), *_ = batches(shape, 1)
    a, b = x.clone().requires_grad_(), x.clone().to(memory_format=torch.channels_last).requires_grad_()
    F.cross_entropy(plain(a), y).backward()
    F.cross_entropy(last(b), y).backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    for (key, p), q in zip(plain.named_parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    for key, buffer in plain.named_buffers():
        torch.testing.assert_close(last.get_buffer(key), buffer, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.ConvTranspose2d(8, 8, 3)]
)
def test_channels_last_comes_out_as_it_went_in(layer: nn.Module) -> None:
    model, x = nn.Sequential(copy.deepcopy(layer)), torch.randn(2, 8, 5, 5)
    compiled = fxs.compile(model, SWAT, (x,)).to(memory_format=torch.channels_last)
    given = x.to(memory_format=torch.channels_last)
    for mode in (True, False):
        found, expected = compiled.train(mode)(given), model(given)
        assert found.is_contiguous(memory_format=torch.channels_last) == expected.is_contiguous(memory_format=torch.channels_last)
        assert compiled(x).is_contiguous(memory_format=torch.channels_last) == model(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", MODELS)
def test_double_precision(name: str) -> None:
    compiled, shape = make(name)
    wide = copy.deepcopy(compiled).to(torch.float64)
    (x, y), *_ = batches(shape, 1)
    F.cross_entropy(compiled(x), y).backward()
    out = wide(x.double())
    assert out.dtype == torch.float64
    F.cross_entropy(out, y).backward()
    for (key, p), q in zip(compiled.named_parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad.float(), rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_model(name: str) -> None:
    compiled, shape = make(name)
    compiled.bfloat16()
    x, y = batches(shape, 1)[0]
    optimizer = optimizer_of(compiled)
    for _ in range(2):
        out = compiled(x.bfloat16())
        assert out.dtype == torch.bfloat16
        F.cross_entropy(out, y).backward()
        optimizer.step()
    kinds = {key.rpartition(".")[2].rstrip("0123456789_"): b.dtype for key, b in compiled.named_buffers() if key.startswith("fxsparse.")}
    assert kinds == {
        "steps": torch.int64, "now": torch.int64, "weight_threshold": torch.float32, "weight_density": torch.float64,
        "activation_threshold": torch.float32, "activation_density": torch.float64, "activation_counts": torch.int64,
    }  # fmt: skip


# Training loops


def test_gradients_accumulate() -> None:
    """Two half batches give the sum of their gradients; each forward is a step of the clock."""
    technique = fxs.SWAT(weight_sparsity=0.7, dense_first=False, granularity="sample")
    compiled, shape = make("mlp", technique)
    whole = copy.deepcopy(compiled)
    (x, y), *_ = batches(shape, 1)
    F.cross_entropy(whole(x), y, reduction="sum").backward()
    for part in (slice(0, 2), slice(2, 4)):
        F.cross_entropy(compiled(x[part]), y[part], reduction="sum").backward()
    for (key, p), q in zip(compiled.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    assert int(compiled.get_buffer("fxsparse.clock.steps")) == 2


def test_grad_scaler_with_a_skipped_step() -> None:
    compiled, shape = make("resnet")
    optimizer, scaler = optimizer_of(compiled), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for index, (x, y) in enumerate(batches(shape, 6)):
        before = [parameter.detach().clone() for parameter in compiled.parameters()]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(compiled(x).float(), y)
        scaler.scale(loss * (float("inf") if index == 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(a, b) for a, b in zip(before, compiled.parameters(), strict=True))
        assert moved == (index != 2)
    assert scaler.get_scale() == 2.0**9
    assert all(parameter.isfinite().all() for parameter in compiled.parameters())
    assert all(buffer.isfinite().all() for buffer in compiled.buffers())


def test_functional_call_sparsifies_what_it_is_given() -> None:
    compiled, shape = make("mlp")
    (x, _), *_ = batches(shape, 1)
    compiled.eval()
    other, _ = make("mlp")
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    found = torch.func.functional_call(compiled, dict(other.named_parameters()), (x,))
    torch.testing.assert_close(found, other.eval()(x))
    assert not torch.equal(found, compiled(x))


def test_averaged_model() -> None:
    compiled, shape = make("resnet")
    averaged = torch.optim.swa_utils.AveragedModel(compiled)
    optimizer, data = optimizer_of(compiled), batches(shape, 5)
    seen = []
    for item in data:
        train(compiled, optimizer, [item])
        averaged.update_parameters(compiled)
        seen.append({name: parameter.detach().clone() for name, parameter in compiled.named_parameters()})
    for name, parameter in averaged.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), torch.stack([item[name] for item in seen]).mean(0), rtol=1e-5, atol=1e-6)
    torch.optim.swa_utils.update_bn([x for x, _ in data], averaged)
    averaged.eval()
    x = data[0][0]
    reference = copy.deepcopy(averaged.module)
    assert torch.equal(averaged(x), reference(x))
    assert averaged(x).isfinite().all()


@pytest.mark.parametrize("order", ["before", "after"])
def test_an_optimizer_built_on_either_side_trains_the_same_weights(order: str) -> None:
    torch.manual_seed(0)
    model = SmallResNet()
    optimizer = optimizer_of(model) if order == "before" else None
    compiled = fxs.compile(model, SWAT, (torch.randn(4, 3, 9, 9),))
    optimizer = optimizer or optimizer_of(compiled)
    losses = train(compiled, optimizer, batches((4, 3, 9, 9), 1) * 12)
    assert losses[-1] < 0.8 * losses[0]
    for name, parameter in model.named_parameters():
        assert compiled.get_parameter(name) is parameter


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    from torch.utils.checkpoint import checkpoint

    compiled, shape = make("mlp")
    other = copy.deepcopy(compiled)
    (x, y), *_ = batches(shape, 1)
    F.cross_entropy(compiled(x), y).backward()

    class Whole(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.inner, x, use_reentrant=False)

    F.cross_entropy(Whole(other)(x), y).backward()
    for p, q in zip(compiled.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
