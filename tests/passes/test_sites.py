"""Every contraction with a parameter is found, with its kind, its weight's shape and its loop bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fxsparse.passes.capture.capture import capture
from fxsparse.passes.sites import Site, describe, execution_order


def sites_of(model: nn.Module, *example: Any) -> dict[str, Site]:
    captured = capture(model, (example, {}))
    found = describe(captured)
    return {name: found[name] for name in execution_order(captured, found)}


def macs(site: Site) -> int:
    """Multiplications of all calls of a site in one forward pass."""
    return sum(call.workload.forward_macs if call.workload else 0 for call in site.calls if call.variant == 0)


class Free(nn.Module):
    """One contraction of a free parameter, written as a function."""

    def __init__(self, shape: tuple[int, ...], compute: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape))
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.w)


SEQUENCE, IMAGE, VOLUME = torch.randn(2, 4, 9), torch.randn(2, 4, 9, 7), torch.randn(2, 4, 5, 6, 7)
VECTORS = torch.randn(2, 5, 4)

MODULES: dict[str, tuple[nn.Module, Tensor, str, tuple[int, ...]]] = {
    "Conv1d": (nn.Conv1d(4, 6, 3), SEQUENCE, "conv", (6, 4, 3)),
    "Conv2d": (nn.Conv2d(4, 6, (3, 2), stride=2, padding=1), IMAGE, "conv", (6, 4, 3, 2)),
    "Conv3d": (nn.Conv3d(4, 6, 2), VOLUME, "conv", (6, 4, 2, 2, 2)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), IMAGE, "conv", (6, 2, 3, 3)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), IMAGE, "conv", (4, 1, 3, 3)),
    "dilation": (nn.Conv2d(4, 6, 3, dilation=2, stride=(2, 1)), IMAGE, "conv", (6, 4, 3, 3)),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), IMAGE, "conv", (6, 4, 3, 3)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), IMAGE, "conv", (6, 4, 3, 3)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), IMAGE, "conv", (6, 4, 3, 3)),
    "circular same": (nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), IMAGE, "conv", (6, 4, 3, 3)),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3), SEQUENCE, "conv_transpose", (4, 6, 3)),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), IMAGE, "conv_transpose", (4, 6, 3, 3)),
    "ConvTranspose3d": (nn.ConvTranspose3d(4, 6, 2, groups=2), VOLUME, "conv_transpose", (4, 3, 2, 2, 2)),
    "Linear": (nn.Linear(4, 6), VECTORS, "linear", (6, 4)),
    "Linear of a vector": (nn.Linear(4, 6, bias=False), torch.randn(4), "linear", (6, 4)),
}
COUNTED_WRONG = {"ConvTranspose2d", "ConvTranspose3d", "ConvTranspose1d", "Linear of a vector"}


@pytest.mark.parametrize(("module", "x", "operator", "shape"), MODULES.values(), ids=MODULES.keys())
def test_module(module: nn.Module, x: Tensor, operator: str, shape: tuple[int, ...]) -> None:
    sites = sites_of(nn.Sequential(module), x)
    assert list(sites) == ["0.weight"]
    site = sites["0.weight"]
    assert (site.operator, site.shape, site.module, site.defect) == (operator, shape, "0", None)
    assert type(module).__name__ in site.module_types
    assert [call.problem for call in site.calls] == [None]
    assert site.elements == math.prod(shape)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in COUNTED_WRONG])
def test_macs_of_modules_are_what_torch_counts(name: str) -> None:
    module, x, _, _ = MODULES[name]
    with FlopCounterMode(display=False) as counter:
        module(x)
    assert 2 * macs(sites_of(nn.Sequential(module), x)["0.weight"]) == counter.get_total_flops()


FUNCTIONS: dict[str, tuple[tuple[int, ...], Tensor, Callable[[Tensor, Tensor], Tensor], str]] = {
    "F.conv1d": ((6, 4, 3), SEQUENCE, lambda x, w: F.conv1d(x, w, padding=1), "conv"),
    "F.conv2d": ((6, 2, 3, 3), IMAGE, lambda x, w: F.conv2d(x, w, None, 2, 1, 1, 2), "conv"),
    "F.conv2d by keyword": ((6, 4, 3, 3), IMAGE, lambda x, w: F.conv2d(input=x, weight=w, stride=(1, 2)), "conv"),
    "F.conv3d": ((6, 4, 2, 2, 2), VOLUME, lambda x, w: torch.conv3d(x, w), "conv"),
    "F.linear": ((6, 4), VECTORS, F.linear, "linear"),
    "F.linear of t()": ((4, 6), VECTORS, lambda x, w: F.linear(x, w.t()), "linear"),
    "F.linear of a slice": ((12, 4), VECTORS, lambda x, w: F.linear(x, w[:6]), "linear"),
    "matmul": ((4, 6), VECTORS, torch.matmul, "einsum"),
    "@": ((4, 6), VECTORS, lambda x, w: x @ w, "einsum"),
    "@ t()": ((6, 4), VECTORS, lambda x, w: x @ w.t(), "einsum"),
    "@ .T": ((6, 4), VECTORS, lambda x, w: x @ w.T, "einsum"),
    "@ a chain of views": ((2, 3, 4), VECTORS, lambda x, w: x @ w.reshape(6, 4).transpose(0, 1).contiguous(), "einsum"),
    "weight on the left": ((6, 5), VECTORS, lambda x, w: w @ x, "einsum"),
    "mm": ((4, 6), torch.randn(3, 4), torch.mm, "einsum"),
    "method": ((4, 6), torch.randn(3, 4), lambda x, w: x.mm(w), "einsum"),
    "batched": ((2, 4, 6), VECTORS, torch.bmm, "einsum"),
    "batched matmul": ((2, 4, 6), VECTORS, lambda x, w: x.matmul(w), "einsum"),
    "addmm": ((4, 6), torch.randn(3, 4), lambda x, w: torch.addmm(torch.ones(6), x, w), "einsum"),
    "baddbmm": ((2, 4, 6), VECTORS, lambda x, w: torch.baddbmm(torch.ones(2, 5, 6), x, w, alpha=2), "einsum"),
    "einsum": ((6, 4), VECTORS, lambda x, w: torch.einsum("bti,oi->bto", x, w), "einsum"),
    "einsum, weight first": ((6, 4), VECTORS, lambda x, w: torch.einsum("oi,bti->bto", w, x), "einsum"),
    "einsum per head": ((2, 4, 6), VECTORS, lambda x, w: torch.einsum("bti,bio->bto", x, w), "einsum"),
}


@pytest.mark.parametrize(("shape", "x", "compute", "operator"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_function(shape: tuple[int, ...], x: Tensor, compute: Callable[[Tensor, Tensor], Tensor], operator: str) -> None:
    model = Free(shape, compute)
    sites = sites_of(model, x)
    assert list(sites) == ["w"]
    assert (sites["w"].operator, sites["w"].shape, sites["w"].defect) == (operator, shape, None)
    assert [call.problem for call in sites["w"].calls] == [None]
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert 2 * macs(sites["w"]) == counter.get_total_flops()


def test_transposed_convolution_by_hand() -> None:
    """Each input position is spread over the whole kernel: N * C_in * (C_out / g) * K * input positions."""
    sites = sites_of(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)), IMAGE)
    assert macs(sites["0.weight"]) == 2 * 4 * 3 * 9 * 63


def test_functional_transposed_convolution() -> None:
    sites = sites_of(Free((4, 6, 3), lambda x, w: F.conv_transpose1d(x, w, stride=2)), SEQUENCE)
    assert sites["w"].operator == "conv_transpose"
    assert macs(sites["w"]) == 2 * 4 * 6 * 3 * 9


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(4, 3, 6)
        self.w = nn.Parameter(torch.randn(6, 4, 3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x, y) + F.bilinear(x, y, self.w)


def test_bilinear() -> None:
    sites = sites_of(TwoInputs(), torch.randn(2, 4), torch.randn(2, 3))
    assert {name: site.operator for name, site in sites.items()} == {"layer.weight": "bilinear", "w": "bilinear"}
    assert macs(sites["w"]) == 2 * 6 * 4 * 3


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)
        self.embed = nn.Embedding(7, 4)
        self.first = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.last.weight = self.first.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.last(self.first(self.embed(tokens))))


def test_tied_weights_are_one_site_with_aliases() -> None:
    sites = sites_of(Tied(), torch.randint(0, 7, (2, 5)))
    assert {name: (site.aliases, len(site.calls)) for name, site in sites.items()} == {
        "last.weight": (("first.weight",), 2),
        "embed.weight": (("head.weight",), 1),
    }
    assert [call.index for call in sites["last.weight"].calls] == [0, 1]
    assert sites["last.weight"].names == ("last.weight", "first.weight", "last", "first")


class Reordered(nn.Module):
    """Runs its parts in another order than it defines them."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(4, 4)
        self.b = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.a = nn.Linear(4, 4)
        self.routed = Routed()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.routed(self.b(self.a(x))))


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else x


def test_sites_come_in_the_order_of_execution() -> None:
    sites = sites_of(Reordered(), torch.randn(2, 4))
    assert list(sites) == ["a.weight", "b.0.weight", "b.1.weight", "routed.inner.weight", "c.weight"]


def test_attention_and_recurrent_weights() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.rnn = nn.GRU(4, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.attention(x, x, x, need_weights=False)[0])[0]

    sites = sites_of(Both(), VECTORS)
    assert {name: site.operator for name, site in sites.items()} == {
        "attention.in_proj_weight": "linear",
        "attention.out_proj.weight": "linear",
        "rnn.weight_ih_l0": "recurrent",
        "rnn.weight_hh_l0": "recurrent",
    }
    assert macs(sites["attention.in_proj_weight"]) == 2 * 5 * 4 * 12
    assert macs(sites["rnn.weight_ih_l0"]) == 2 * 5 * 4 * 9
    assert macs(sites["rnn.weight_hh_l0"]) == 2 * 5 * 3 * 9


COMPUTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "scaled": lambda x, w: F.linear(x, w * 2),
    "normalised": lambda x, w: F.linear(x, F.normalize(w, dim=1)),
    "standardised convolution": lambda x, w: F.conv1d(x.transpose(1, 2), ((w - w.mean()) / w.std())[..., None]),
    "softmax @": lambda x, w: x @ w.softmax(0).t(),
    "softmax in einsum": lambda x, w: torch.einsum("bti,oi->bto", x, w.softmax(0)),
}


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED.keys())
def test_computed_weight_is_reported_with_a_reason(compute: Callable[[Tensor, Tensor], Tensor]) -> None:
    [site] = sites_of(Free((6, 4), compute), VECTORS).values()
    assert site.defect is not None
    assert "its weight is computed by" in site.defect


DEFECTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "parametrized": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), "parametrized"),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "parametrized"),
    "spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "computed by a hook"),
}


@pytest.mark.parametrize(("make", "reason"), DEFECTS.values(), ids=DEFECTS.keys())
def test_layer_whose_weight_is_not_its_parameter_is_a_defect(make: Callable[[], nn.Module], reason: str) -> None:
    [site] = sites_of(nn.Sequential(make()), VECTORS).values()
    problems = {site.defect, *(call.problem for call in site.calls)}
    assert any(reason in str(problem) for problem in problems)


PROBLEMS: dict[str, tuple[tuple[int, ...], Tensor, Callable[[Tensor, Tensor], Tensor], str]] = {
    "ellipsis": ((6, 4), VECTORS, lambda x, w: torch.einsum("...i,oi->...o", x, w), "ellipsis"),
    "broadcast": ((1, 4, 6), VECTORS, lambda x, w: x @ w, "broadcast"),
    "lone sum": ((6, 4), VECTORS, lambda x, w: torch.einsum("bti,oi->bt", x, w), "sums over an index of one operand alone"),
    "three operands": ((6, 4), VECTORS, lambda x, w: torch.einsum("bti,oi,btj->boj", x, w, x), "two operands"),
}


@pytest.mark.parametrize(("shape", "x", "compute", "reason"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_form_that_cannot_be_rewritten_says_why(shape: tuple[int, ...], x: Tensor, compute: Any, reason: str) -> None:
    [site] = sites_of(Free(shape, compute), x).values()
    assert reason in str(site.calls[0].problem)


def test_what_is_no_contraction_is_no_site() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.scale = nn.Parameter(torch.ones(4))
            self.embed = nn.Embedding(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) * self.scale + self.embed.weight.sum() + x @ x.transpose(1, 2) @ x + self.scale @ self.scale

    assert sites_of(Other(), VECTORS) == {}


def test_frozen_weight_and_input_gradients() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.requires_grad_(False)
    sites = sites_of(model, torch.randn(2, 4))
    first, second = (site.calls[0].workload for site in sites.values())
    assert first is not None
    assert second is not None
    assert (first.input_needs_grad, first.weight_needs_grad) == (False, True)
    assert (second.input_needs_grad, second.weight_needs_grad) == (True, False)
    assert [site.trainable for site in sites.values()] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "convnext_tiny", "densenet121"])
def test_macs_of_torchvision_are_what_torch_counts(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert 2 * sum(macs(site) for site in sites_of(model, x).values()) == counter.get_total_flops()
