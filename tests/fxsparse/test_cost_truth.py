"""The report against what torch does: its FLOP counter, what autograd saves, and what the allocator hands out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import fxsparse as fxs

models = pytest.importorskip("torchvision").models

# GFLOP (2 x MAC) of one 224 x 224 image; backward where it was measured.
REFERENCE = {
    "resnet50": (8.178, 16.121),
    "mobilenet_v3_large": (0.433, 0.856),
    "mobilenet_v2": (0.602, None),
    "convnext_tiny": (8.911, 17.793),
    "swin_t": (8.981, 17.933),
    "vit_b_16": (35.128, 70.024),
    "resnext50_32x4d": (8.461, None),
    "efficientnet_b0": (0.772, None),
    "vgg16": (30.941, None),
    "densenet121": (5.668, None),
}
# MiB that autograd saves at batch 2 in training mode.
SAVED = {"resnet50": 164.1, "vit_b_16": 225.4, "swin_t": 203.4, "mobilenet_v3_large": 84.2, "convnext_tiny": 208.2}
PEAK = ("resnet50", "vit_b_16", "mobilenet_v3_large", "convnext_tiny")
SMALL = {"resnet18": 64, "mobilenet_v3_small": 64, "squeezenet1_1": 64, "shufflenet_v2_x0_5": 64}


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    """Modules and graphs are cycles, which Python sees no hurry to collect."""
    yield
    gc.collect()


def build(name: str) -> nn.Module:
    arguments: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name == "vit_h_14":
        arguments["image_size"] = 518
    model: nn.Module = models.get_model(name, weights=None, **arguments)
    return model.train()


def really_saved(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes of the unique storages that autograd keeps, parameters left out."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            seen[storage._cdata] = storage.nbytes()
        alive.append(storage)  # so that no address is used twice; not the tensor, which would keep the graph that keeps it

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*inputs)
    return sum(seen.values())


def torch_counts(model: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter:
        leaves = [leaf for leaf in pytree.tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]
        forward = counter.get_total_flops()
        torch.autograd.backward([leaf.sum() for leaf in leaves])
    model.zero_grad(set_to_none=True)
    return forward, counter.get_total_flops() - forward


def measured_peak(model: nn.Module, *inputs: Tensor) -> int:
    """The most bytes that one training step allocates beyond what was there before, by the allocator's events."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(*inputs).sum().backward()

    step()
    model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    found = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = sorted((event.start_ns(), event.nbytes()) for event in found if event.name() == "[memory]")
    now = peak = 0
    for _, change in events:
        now += change
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("name", SMALL)
def test_small_models_equal_torchs_counter_and_autograd(name: str) -> None:
    model, x = build(name), torch.randn(2, 3, SMALL[name], SMALL[name])
    report = fxs.estimate(model, (x,), convention="torch")
    assert report.coverage == 1.0
    total = report.total
    assert (2 * total.forward.macs, 2 * (total.grad_input.macs + total.grad_weight.macs)) == torch_counts(model, x)
    assert report.saved_bytes == really_saved(model, x)


MODULES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.MultiheadAttention(16, 4, batch_first=True), (2, 5, 16)),
    (lambda: nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True), (2, 5, 16)),
    (lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()), (2, 4, 8, 8)),
    (lambda: nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5), nn.LayerNorm(8), nn.Softmax(-1)), (2, 3, 8)),
    (lambda: nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(inplace=True), nn.Hardswish(), nn.Sigmoid()), (2, 8)),
]


@pytest.mark.parametrize(("make", "shape"), MODULES)
def test_saved_bytes_of_modules_equal_autograds(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, x = make(), torch.randn(shape)
    if isinstance(model, nn.MultiheadAttention):
        model = _SelfAttention(model)
    assert fxs.estimate(model, (x,)).saved_bytes == really_saved(model, x)


class _SelfAttention(nn.Module):
    def __init__(self, inner: nn.MultiheadAttention) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


def test_saved_bytes_of_a_sparse_model_are_autograds() -> None:
    """But for the positions, whose size depends on where values fall."""
    x = torch.randn(2, 3, 64, 64)
    compiled = fxs.compile(build("resnet18"), fxs.SWAT(weight_sparsity=0.9), (x,))
    assert compiled.cost().saved_bytes == pytest.approx(really_saved(compiled, x), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE)
def test_exact_counts_are_the_reference_gigaflops(name: str) -> None:
    total = fxs.estimate(build(name), (torch.zeros(2, 3, 224, 224),), batch_size=1).total
    forward, backward = REFERENCE[name]
    assert round(2 * total.forward.macs / 1e9, 3) == forward
    if backward is not None:
        assert round(2 * (total.grad_input.macs + total.grad_weight.macs) / 1e9, 3) == backward


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
def test_saved_bytes_equal_autograds(name: str) -> None:
    """To the byte; the figures beside are those of a first measurement, which left buffers out."""
    model, x = build(name), torch.randn(2, 3, 224, 224)
    report = fxs.estimate(model, (x,))
    assert report.saved_bytes == really_saved(model, x)
    assert report.saved_bytes / 2**20 == pytest.approx(SAVED[name], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEAK)
def test_predicted_peak_is_within_a_tenth_of_the_allocators(name: str) -> None:
    model, x = build(name), torch.randn(2, 3, 224, 224)
    report = fxs.estimate(model, (x,))
    assert report.peak_bytes - report.resident_bytes == pytest.approx(measured_peak(model, x), rel=0.1)


LARGE = ("vit_h", "vit_l", "regnet_y_128gf", "regnet_y_32gf", "convnext_large")  # one sample of them is enough to hold


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_classification_model_equals_torchs_counter_and_autograd(name: str) -> None:
    size = {"inception_v3": 299, "vit_h_14": 518}.get(name, 224)
    model, x = build(name), torch.randn(1 if name.startswith(LARGE) else 2, 3, size, size)
    truth = torch_counts(model, x), really_saved(model, x)
    report = fxs.estimate(model, (x,), convention="torch")
    total = report.total
    assert ((2 * total.forward.macs, 2 * (total.grad_input.macs + total.grad_weight.macs)), report.saved_bytes) == truth
    assert report.coverage == 1.0
