"""Training with saved activations in few bits: exact forward passes, bytes that are kept, gradients, survival, refusals."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, get_model

import fxsparse as fxs


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the unique storages that a forward pass keeps for backward, parameters left out."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage._cdata not in parameters:
            seen[storage._cdata] = storage.nbytes()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: None):
        model(x)
    return sum(seen.values())


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def vit() -> nn.Module:
    model = VisionTransformer(image_size=32, patch_size=4, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=256, num_classes=10)
    model.heads.head.reset_parameters()  # torchvision's zeros let no gradient through
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], fxs.Policy, tuple[int, ...], float]] = {
    "resnet18, BLPA-4": (lambda: get_model("resnet18", weights=None), fxs.Policy(fxs.BLPA(bits=4)), (4, 3, 64, 64), 7.0),
    "resnet18, 4 bits": (lambda: get_model("resnet18", weights=None), fxs.Policy(fxs.SavedActivations(bits=4)), (4, 3, 64, 64), 6.0),
    "vit, 4 bits": (vit, fxs.Policy(fxs.SavedActivations(bits=4)), (8, 3, 32, 32), 5.0),
}


@pytest.mark.parametrize(("make", "policy", "shape", "ratio"), MODELS.values(), ids=MODELS.keys())
def test_outputs_are_exact_and_little_is_kept(
    make: Callable[[], nn.Module], policy: fxs.Policy, shape: tuple[int, ...], ratio: float
) -> None:
    model, x = make().train(), torch.randn(shape)
    eager = copy.deepcopy(model)
    compiled = fxs.compile(model, policy, (x,))
    assert torch.equal(compiled(x), eager(x))
    buffers = dict(eager.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in compiled.named_buffers() if not name.startswith("fxsparse."))
    assert kept_bytes(eager, x) / kept_bytes(compiled, x) > ratio
    compiled.eval()
    eager.eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention in one kernel rounds otherwise
    try:
        with torch.no_grad():
            assert torch.equal(compiled(x), eager(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@pytest.mark.parametrize(("make", "policy", "shape", "ratio"), MODELS.values(), ids=MODELS.keys())
def test_gradients_point_the_way_of_the_exact_ones(
    make: Callable[[], nn.Module], policy: fxs.Policy, shape: tuple[int, ...], ratio: float
) -> None:
    model, x = make().train(), torch.randn(shape)
    exact = gradients(copy.deepcopy(model), x)
    found = gradients(fxs.compile(model, policy, (x,)), x)
    assert len(found) == len(exact)
    cosines = [nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in zip(found, exact, strict=True) if b.abs().sum()]
    assert min(cosines) > 0.9


def test_stochastic_rounding_is_right_on_average() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4)), torch.randn(8, 16)
    exact = gradients(copy.deepcopy(model), x)
    compiled = fxs.compile(model, fxs.SavedActivations(bits=2, group_size=16), (x,))
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.0)
    draws = []
    for _ in range(600):
        draws.append(gradients(compiled, x))
        optimizer.step()
    for index, expected in enumerate(exact):
        sample = torch.stack([draw[index] for draw in draws]).double()
        deviation = sample.std(0) / len(draws) ** 0.5
        assert ((sample.mean(0) - expected).abs() <= 6 * deviation + 1e-6).all()


def test_a_compiled_model_survives_copies_and_state_dicts() -> None:
    model, x = get_model("resnet18", weights=None).train(), torch.randn(2, 3, 32, 32)
    policy = fxs.Policy(fxs.BLPA(bits=4), fxs.SavedActivations(bits=8))
    compiled = fxs.compile(model, policy, (x,))
    buffer = io.BytesIO()
    torch.save(compiled, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(compiled), torch.load(buffer, weights_only=False)):
        assert all(torch.equal(a, b) for a, b in zip(gradients(other, x), gradients(copy.deepcopy(compiled), x), strict=True))
    fresh = fxs.compile(get_model("resnet18", weights=None), policy, (x,))
    fresh.load_state_dict(compiled.state_dict(), strict=True)
    assert torch.equal(fresh(x), copy.deepcopy(compiled)(x))


def test_nothing_is_left_after_backward() -> None:
    model, x = get_model("resnet18", weights=None).train(), torch.randn(2, 3, 32, 32)
    compiled = fxs.compile(model, fxs.BLPA(bits=4), (x,))
    y = compiled(x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_the_report_says_what_is_kept_and_why() -> None:
    x = torch.randn(2, 3, 32, 32)
    model = get_model("resnet18", weights=None)
    compiled = fxs.compile(model, fxs.BLPA(bits=4), (x,))
    changes = {change.site: change for change in compiled.report.changes}
    assert (
        changes["bn1"].what
        == "batch_norm: keeps its normalised input, and what follows from it, as norm:4:relu (128 KiB before, about 16 KiB now)"
    )
    assert changes["bn1"].why == "BLPA selects it"
    assert changes["layer1.0.conv2"].what == "conv: keeps its input as norm:4:relu (32 KiB before, about 0 B now)"  # the norm's own code
    assert [(skip.site, skip.reason) for skip in compiled.report.skips] == [
        ("conv1.weight", "BLPA: its input is that of the model or module, not of a norm")
    ]


@pytest.mark.parametrize("bits", [0, 3, 16, 4.5])
def test_other_numbers_of_bits_are_refused(bits: float) -> None:
    for technique in (fxs.BLPA, fxs.SavedActivations):
        with pytest.raises(fxs.PolicyError, match="bits"):
            technique(bits=bits)  # type: ignore[arg-type]


def test_group_sizes_are_powers_of_two() -> None:
    with pytest.raises(fxs.PolicyError, match="group_size"):
        fxs.SavedActivations(group_size=100)
    with pytest.raises(fxs.PolicyError, match="rounding"):
        fxs.SavedActivations(rounding="up")  # type: ignore[arg-type]
