"""Masked training lives through what people do: copies, files, GradScaler, accumulation, clipping, averaging, several optimizers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

import fxsparse as fxs

from .test_survival import MODELS, assert_same_state, batches, through_file, through_pickle

RIGL = fxs.RigL(sparsity=0.7, end=100, interval=2)
GRANET = fxs.GraNet(initial_sparsity=0.4, final_sparsity=0.8, begin=2, end=8, total_steps=16, interval=2)
TECHNIQUES: dict[str, Any] = {
    "rigl": RIGL,
    "granet": GRANET,
    "set": fxs.SET(sparsity=0.7, end=100, interval=3),
    "gmp": fxs.GMP(final_sparsity=0.8, begin=0, end=9, interval=3),
    "static": fxs.StaticMask(sparsity=0.7),
    "2:4": fxs.NM(2, 4, straight_through=True, decay=2e-4),
}


def make(name: str, technique: Any = RIGL) -> tuple[fxs.CompiledModel, tuple[int, ...]]:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    return fxs.compile(build(), technique, (torch.randn(shape),)), shape


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)


def step(model: Any, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def require_exact(compiled: fxs.CompiledModel, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Budgets are kept, and weights and state of masked elements are zero."""
    for name, row in compiled.sparsity().items():
        if name not in compiled.masks:
            continue
        assert row["weight"]["actual"] == row["weight"]["target"], name
        mask, weight = compiled.get_buffer(f"fxsparse.sites.{name}.mask"), compiled.get_parameter(name)
        if compiled.masks[name].straight_through:
            continue
        assert not bool(weight.detach()[~mask].any()), name
        for key, value in optimizer.state.get(weight, {}).items() if optimizer is not None else ():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                assert not bool(value[~mask].any()), f"{key} of {name}"


# Interrupt and resume


@pytest.mark.parametrize("build", [sgd, adamw])
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_interrupted_at_every_step_the_rest_is_the_same(technique: str, build: Any) -> None:
    total = 10
    compiled, shape = make("mlp", TECHNIQUES[technique])
    optimizer = build(compiled)
    compiled.attach(optimizer)
    data = batches(shape, total)
    saved, losses = [], []
    for x, y in data:
        saved.append(copy.deepcopy((compiled.state_dict(), optimizer.state_dict())))
        losses.append(step(compiled, optimizer, x, y))
    for begin in range(total):
        again, _ = make("mlp", TECHNIQUES[technique])
        rest = build(again)
        for resume in reversed(range(2)) if begin % 2 else range(2):  # attached first, or loaded first
            if resume:
                again.load_state_dict(saved[begin][0], strict=True)
                rest.load_state_dict(saved[begin][1])
            else:
                again.attach(rest)
        found = [step(again, rest, x, y) for x, y in data[begin:]]
        assert torch.equal(torch.stack(found), torch.stack(losses[begin:])), begin
        assert_same_state(compiled, again)


@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_file])
def test_a_copy_goes_on_where_the_original_stands(way: Any) -> None:
    compiled, shape = make("resnet")
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    data = batches(shape, 8)
    for x, y in data[:3]:
        step(compiled, optimizer, x, y)
    copied = way(compiled)
    with pytest.raises(fxs.FxSparseError, match=r"RigL changes masks after optimizer steps.*again on a copy"):
        copied(data[0][0])
    other = sgd(copied)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied.attach(other)
    for x, y in data[3:]:
        assert torch.equal(step(compiled, optimizer, x, y), step(copied, other, x, y))
    assert_same_state(compiled, copied)
    require_exact(copied, other)


# What the loop around it does


def test_steps_that_gradscaler_skips_do_not_count() -> None:
    compiled, shape = make("mlp")
    twin = copy.deepcopy(compiled)
    optimizer, plain = sgd(compiled), sgd(twin)
    compiled.attach(optimizer)
    twin.attach(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    skipped = 0
    for index, (x, y) in enumerate(batches(shape, 12)):
        force = index % 3 == 1
        optimizer.zero_grad()
        loss = F.cross_entropy(compiled(x), y)
        scaler.scale(loss * float("inf") if force else loss).backward()
        scaler.step(optimizer)
        scaler.update(4.0)
        if force:
            skipped += 1
        else:
            step(twin, plain, x, y)
    assert skipped == 4
    assert [int(regime.steps) for regime in compiled.regimes] == [8]
    assert_same_state(compiled, twin)
    require_exact(compiled, optimizer)


def test_a_fused_optimizer_that_skips_by_itself_does_not_count() -> None:
    compiled, shape = make("mlp")
    optimizer = torch.optim.Adam(compiled.parameters(), lr=1e-3, fused=True)
    compiled.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for index, (x, y) in enumerate(batches(shape, 6)):
        optimizer.zero_grad()
        loss = F.cross_entropy(compiled(x), y)
        scaler.scale(loss * float("inf") if index in (1, 2) else loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert int(compiled.regimes[0].steps) == 4
    require_exact(compiled, optimizer)


@pytest.mark.parametrize("technique", ["rigl", "granet"])
def test_four_accumulated_batches_are_one_step(technique: str) -> None:
    """A model without BatchNorm computes the same from four quarters as from one whole batch, up to rounding."""
    compiled, shape = make("mlp", TECHNIQUES[technique])
    whole = copy.deepcopy(compiled)
    optimizer, other = sgd(compiled), sgd(whole)
    compiled.attach(optimizer)
    whole.attach(other)
    dense_steps = 0
    for parts in [batches(shape, 4, seed=seed) for seed in range(8)]:
        optimizer.zero_grad(set_to_none=True)
        growing = bool(compiled.regimes[0].growing)
        for x, y in parts:
            (F.cross_entropy(compiled(x), y) / 4).backward()
        grads = {name: compiled.get_parameter(name).grad for name in compiled.masks}
        masked = [grad[~compiled.get_buffer(f"fxsparse.sites.{name}.mask")] for name, grad in grads.items() if grad is not None]
        assert bool(torch.cat(masked).any()) == (growing and any(map(len, masked))), "dense over all of the accumulation, or not at all"
        dense_steps += growing
        optimizer.step()
        step(whole, other, torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
        require_exact(compiled, optimizer)
    assert dense_steps == 4
    assert int(compiled.regimes[0].steps) == 8
    same = [
        float((compiled.get_buffer(key) == whole.get_buffer(key)).float().mean())
        for key in (f"fxsparse.sites.{name}.mask" for name in compiled.masks)
    ]
    assert min(same) > 0.95


@pytest.mark.parametrize("build", [sgd, adamw])
def test_gradients_set_to_none_or_to_zero_are_the_same(build: Any) -> None:
    compiled, shape = make("resnet", GRANET)
    other = copy.deepcopy(compiled)
    for model, to_none in ((compiled, True), (other, False)):
        optimizer = build(model)
        model.attach(optimizer)
        for x, y in batches(shape, 10):
            optimizer.zero_grad(set_to_none=to_none)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        require_exact(model, optimizer)
    assert_same_state(compiled, other)


def test_two_optimizers_on_disjoint_weights_are_as_one() -> None:
    compiled, shape = make("resnet", GRANET)
    single = copy.deepcopy(compiled)
    only = sgd(single)
    single.attach(only)
    names = dict(compiled.named_parameters())
    block = [p for name, p in names.items() if name.startswith("block")]
    others = [p for name, p in names.items() if not name.startswith("block")]
    pair = [torch.optim.SGD(part, lr=0.05, momentum=0.9, weight_decay=1e-3) for part in (block, others)]
    compiled.attach(pair[0])
    data = batches(shape, 12)
    with pytest.raises(fxs.FxSparseError, match=r"GraNet changes masks .* with the optimizer of 'stem.weight'"):
        compiled(data[0][0])
    compiled.attach(pair[1])
    for x, y in data:
        for optimizer in pair:
            optimizer.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        for optimizer in pair:
            optimizer.step()
        step(single, only, x, y)
    assert_same_state(compiled, single)


def test_a_running_average_of_weights_keeps_their_masks() -> None:
    compiled, shape = make("resnet", GRANET)
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    average = torch.optim.swa_utils.AveragedModel(compiled, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    data = batches(shape, 10)
    for x, y in data:
        step(compiled, optimizer, x, y)
        average.update_parameters(compiled)
    average.eval()
    inner: Any = average.module
    out = average(data[0][0])
    for name in compiled.masks:
        mask = compiled.get_buffer(f"fxsparse.sites.{name}.mask")
        assert torch.equal(inner.get_buffer(f"fxsparse.sites.{name}.mask"), mask)
        with torch.no_grad():
            inner.get_parameter(name).mul_(mask)  # what the mask in the graph has done already
    assert torch.equal(average(data[0][0]), out)


def test_clipped_gradients() -> None:
    compiled, shape = make("resnet", GRANET)
    optimizer = adamw(compiled)
    compiled.attach(optimizer)
    for x, y in batches(shape, 10):
        optimizer.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        norm = torch.nn.utils.clip_grad_norm_(compiled.parameters(), 0.1)
        assert bool(norm.isfinite())
        optimizer.step()
        require_exact(compiled, optimizer)


def test_masked_weights_get_no_gradient_but_on_growing_steps() -> None:
    compiled, shape = make("resnet", fxs.RigL(sparsity=0.7, end=100, interval=3))
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    for index, (x, y) in enumerate(batches(shape, 7), start=1):
        optimizer.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        for name in compiled.masks:
            grad, mask = compiled.get_parameter(name).grad, compiled.get_buffer(f"fxsparse.sites.{name}.mask")
            assert grad is not None
            assert bool(grad[mask].any())
            if not mask.all():
                assert bool(grad[~mask].any()) == (index % 3 == 0), f"step {index}, {name}"
        optimizer.step()
        for name in compiled.masks:
            grad, mask = compiled.get_parameter(name).grad, compiled.get_buffer(f"fxsparse.sites.{name}.mask")
            assert grad is not None
            assert not bool(grad[~mask].any()), "after the step it is masked again"


@pytest.mark.parametrize("what", ["noise", "centring"])
def test_gradients_that_a_user_changes_revive_nothing(what: str) -> None:
    compiled, shape = make("mlp", fxs.RigL(sparsity=0.7, end=100, interval=5))
    optimizer = adamw(compiled)
    compiled.attach(optimizer)
    for x, y in batches(shape, 9):
        optimizer.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        for parameter in compiled.parameters():
            assert parameter.grad is not None
            if what == "noise":
                parameter.grad.add_(torch.randn_like(parameter))
            elif parameter.dim() > 1:
                parameter.grad.sub_(parameter.grad.mean(1, keepdim=True))
        optimizer.step()
        require_exact(compiled, optimizer)


@pytest.mark.parametrize("write", ["in place", "data", "load"])
def test_weights_that_a_user_writes_are_masked(write: str) -> None:
    compiled, shape = make("mlp", fxs.StaticMask(sparsity=0.7))
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    data = batches(shape, 20)
    for x, y in data[:3]:
        step(compiled, optimizer, x, y)
    weights = {name: torch.randn_like(compiled.get_parameter(name)) for name in compiled.masks}
    for name, weight in weights.items():
        if write == "in place":
            with torch.no_grad():
                compiled.get_parameter(name).copy_(weight)
        elif write == "data":
            compiled.get_parameter(name).data.copy_(weight)
    if write == "load":
        compiled.load_state_dict({**compiled.state_dict(), **weights})
    expected = copy.deepcopy(compiled)
    with torch.no_grad():
        for name in weights:
            expected.get_parameter(name).mul_(expected.get_buffer(f"fxsparse.sites.{name}.mask"))
    assert torch.equal(compiled(data[0][0]), expected(data[0][0]))
    for x, y in data[3:]:
        step(compiled, optimizer, x, y)
    require_exact(compiled, optimizer)


def test_a_single_weight_written_behind_everyones_back_is_masked_before_long() -> None:
    compiled, shape = make("mlp", fxs.StaticMask(sparsity=0.7))
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    data = batches(shape, 66)
    step(compiled, optimizer, *data[0])
    for name in compiled.masks:
        place = (~compiled.get_buffer(f"fxsparse.sites.{name}.mask")).nonzero()[7]
        compiled.get_parameter(name).data[tuple(place)] = 3.0
    for x, y in data[1:]:
        step(compiled, optimizer, x, y)
    require_exact(compiled, optimizer)


# Precision, layout, transforms


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_weight_keeps_its_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    build, shape = MODELS["resnet"]
    compiled = fxs.compile(build().to(dtype), RIGL, (torch.randn(shape, dtype=dtype),))
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    for x, y in batches(shape, 5):
        step(compiled, optimizer, x.to(dtype), y)
    assert compiled(x.to(dtype)).dtype == dtype
    assert all(compiled.get_parameter(name).grad.dtype == dtype for name in compiled.masks)  # type: ignore[union-attr]
    require_exact(compiled, optimizer)


def test_moved_to_another_dtype_masks_stay_bool() -> None:
    compiled, shape = make("resnet")
    compiled.to(torch.bfloat16)
    assert all(compiled.get_buffer(f"fxsparse.sites.{name}.mask").dtype == torch.bool for name in compiled.masks)
    assert compiled.eval()(torch.randn(shape, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_masks_do_not_depend_on_the_memory_format() -> None:
    compiled, _ = make("resnet")
    last = copy.deepcopy(compiled).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = [sgd(compiled), sgd(last)]
    for model, optimizer in zip((compiled, last), optimizers, strict=True):
        model.attach(optimizer)
        for name in model.masks:
            assert model.get_buffer(f"fxsparse.sites.{name}.mask").stride() == model.get_parameter(name).stride()
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):  # made-up gradients, so that the two differ in nothing but their strides
            for parameter in model.parameters():
                grad = torch.randn(parameter.shape, generator=generator)
                parameter.grad = torch.empty_like(parameter).copy_(grad)
            optimizer.step()
    assert_same_state(compiled, last)


def test_autocast() -> None:
    compiled, shape = make("resnet")
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    for x, y in batches(shape, 5):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(compiled(x), y)
        loss.backward()
        optimizer.step()
    require_exact(compiled, optimizer)


def test_functional_call_and_double_backward() -> None:
    compiled, shape = make("mlp", fxs.StaticMask(sparsity=0.7))
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    (x, y), *_ = batches(shape, 1)
    step(compiled, optimizer, x, y)
    parameters = {name: p.detach().clone() for name, p in compiled.named_parameters()}

    called = torch.func.functional_call(compiled, {name: 2 * p for name, p in parameters.items()}, (x,))
    doubled = copy.deepcopy(compiled)
    with torch.no_grad():
        for name, parameter in doubled.named_parameters():
            parameter.copy_(2 * parameters[name])
    assert torch.equal(called, doubled(x))
    optimizer.zero_grad()
    loss = F.cross_entropy(compiled(x), y)
    first = torch.autograd.grad(loss, list(compiled.parameters()), create_graph=True)
    sum(g.square().sum() for g in first).backward()  # type: ignore[union-attr]
    for name in compiled.masks:
        grad, mask = compiled.get_parameter(name).grad, compiled.get_buffer(f"fxsparse.sites.{name}.mask")
        assert grad is not None
        assert not bool(grad[~mask].any())


def test_a_copy_does_not_trust_what_was_noted_of_the_original() -> None:
    compiled, shape = make("mlp", fxs.StaticMask(sparsity=0.7))
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    step(compiled, optimizer, *batches(shape, 1)[0])
    for name in compiled.masks:
        assert int(compiled.get_buffer(f"fxsparse.sites.{name}.trust")[0]) >= 0
        assert int(copy.deepcopy(compiled).get_buffer(f"fxsparse.sites.{name}.trust")[0]) == -1


# torch.compile


@pytest.fixture
def fresh_dynamo(request: pytest.FixtureRequest) -> Iterator[None]:
    torch._dynamo.reset()
    # PyTorch cannot train its own nn.LSTM under torch.compile through oneDNN (pytorch/pytorch#158007)
    onednn = torch.backends.mkldnn.is_available() and "lstm" not in request.node.name
    recurrent = torch._dynamo.config.patch(error_on_recompile=True, allow_rnn=True)
    with recurrent, torch.backends.mkldnn.flags(enabled=onednn, allow_tf32=None):
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", ["resnet", "attention", pytest.param("mlp", marks=pytest.mark.slow), pytest.param("lstm", marks=pytest.mark.slow)]
)
def test_masks_change_without_a_recompile(name: str, backend: str) -> None:
    compiled, shape = make(name, GRANET)
    eager = copy.deepcopy(compiled)
    fast = torch.compile(compiled, fullgraph=True, backend=backend)
    losses = []
    for model, owner in ((fast, compiled), (eager, eager)):
        optimizer = sgd(owner)
        owner.attach(optimizer)
        losses.append(torch.stack([step(model, optimizer, x, y) for x, y in batches(shape, 10)]))
        require_exact(owner, optimizer)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh_dynamo")
def test_straight_through_compiles_too() -> None:
    compiled, shape = make("mlp", TECHNIQUES["2:4"])
    eager = copy.deepcopy(compiled)
    losses = []
    for model, owner in ((torch.compile(compiled, fullgraph=True, backend="aot_eager"), compiled), (eager, eager)):
        optimizer = sgd(owner)
        owner.attach(optimizer)
        losses.append(torch.stack([step(model, optimizer, x, y) for x, y in batches(shape, 6)]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_contraction_is_masked(name: str) -> None:
    compiled, shape = make(name, fxs.StaticMask(sparsity=0.7))
    assert set(compiled.masks) == set(compiled.sites)
    plain = copy.deepcopy(MODELS[name][0]())
    plain.load_state_dict({key: value for key, value in compiled.state_dict().items() if not key.startswith("fxsparse.")})
    with torch.no_grad():
        for key in compiled.masks:
            plain.get_parameter(key).mul_(compiled.get_buffer(f"fxsparse.sites.{key}.mask"))
    x, y = batches(shape, 1)[0]
    for model in (compiled, plain):
        F.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-6, atol=1e-6)
    for key, parameter in plain.named_parameters():
        found, expected = compiled.get_parameter(key).grad, parameter.grad
        assert found is not None
        assert expected is not None
        if key in compiled.masks:
            expected = expected * compiled.get_buffer(f"fxsparse.sites.{key}.mask")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=key)
