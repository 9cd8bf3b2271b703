"""InsertSwat against SWAT written with plain autograd operations: outputs and all gradients, through fxs.compile of real modules."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .swat_reference import assert_swat, compiled_copy, gradients, swat, top_k

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_MODULE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
TRANSPOSED_MODULE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
KEPT_DIMS = {"tensor": (), "sample": (0,), "channel": (1,), "sample_channel": (0, 1)}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def kernel_mask(w: Tensor, sparsity: float) -> Tensor:
    return top_k(w.abs().flatten(2).sum(2), sparsity).reshape(*w.shape[:2], *[1] * (w.dim() - 2)).expand_as(w)


def filter_mask(w: Tensor, sparsity: float) -> Tensor:
    return top_k(w.abs().flatten(1).sum(1), sparsity).reshape(-1, *[1] * (w.dim() - 1)).expand_as(w)


MASKS = {"element": lambda w, s: top_k(w.abs(), s), "kernel": kernel_mask, "filter": filter_mask}


def conv_case(axes: int, size: int, *, structure: str = "element", granularity: str = "tensor", ws: float = 0.7, **conv: Any) -> None:
    """A convolution of 6 channels, whatever its geometry."""
    module = CONV_MODULE[axes](6, conv.pop("out", 8), **{"kernel_size": 3, **conv})
    x = torch.randn(2, 6, *[size] * axes)
    mode = module.padding_mode

    def contract(a: Tensor, w: Tensor) -> Tensor:
        padding = module.padding
        if mode != "zeros":
            a, padding = F.pad(a, module._reversed_padding_repeated_twice, mode=mode), 0
        return CONV[axes](a, w, None, module.stride, padding, module.dilation, module.groups)

    def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = swat(contract, x, weight, MASKS[structure](weight, ws), top_k(x.abs(), ws, KEPT_DIMS[granularity]))
        return out if bias is None else out + bias.reshape(-1, *[1] * axes)

    assert_swat(module, x, reference, structure=structure, granularity=granularity, weight_sparsity=ws)


@pytest.mark.parametrize("granularity", KEPT_DIMS)
@pytest.mark.parametrize("structure", MASKS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_each_structure_and_granularity(axes: int, structure: str, granularity: str) -> None:
    conv_case(axes, 5, structure=structure, granularity=granularity, padding=1)


GEOMETRIES: list[dict[str, Any]] = [
    {"stride": 2},
    {"stride": 2, "padding": 1, "dilation": 2},
    {"dilation": 3, "padding": 3},
    {"groups": 2, "padding": 1},
    {"groups": 6, "out": 12},
    {"kernel_size": 1, "stride": 3},
    {"padding": "valid"},
    {"padding": "same"},
    {"padding": "same", "dilation": 2},
    {"padding": "same", "kernel_size": 2},
    {"padding": "same", "kernel_size": 4, "dilation": 3},
    {"padding": "same", "kernel_size": 4, "padding_mode": "circular"},
    {"padding": 2, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "circular", "stride": 2},
    {"padding": 1, "padding_mode": "replicate", "groups": 2},
    {"bias": False},
]


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_each_geometry(axes: int, geometry: dict[str, Any]) -> None:
    conv_case(axes, 8, **geometry)


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [((3, 2), (2, 1), (0, 1), (1, 2)), ((1, 4), 1, "same", (1, 3))])
def test_geometry_that_differs_along_the_axes(kernel: Any, stride: Any, padding: Any, dilation: Any) -> None:
    conv_case(2, 8, kernel_size=kernel, stride=stride, padding=padding, dilation=dilation)


@pytest.mark.parametrize("structure", MASKS)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_structures_of_grouped_and_depthwise_convolutions(structure: str, groups: int) -> None:
    module = nn.Conv2d(6, 6 * 2 if groups == 6 else 8, 3, groups=groups)

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = swat(lambda a, w: F.conv2d(a, w, groups=groups), x, weight, MASKS[structure](weight, 0.5), top_k(x.abs(), 0.5))
        return out + bias.reshape(-1, 1, 1)

    assert_swat(module, torch.randn(2, 6, 5, 5), reference, structure=structure, weight_sparsity=0.5)


def transposed_mask(structure: str, w: Tensor, groups: int, sparsity: float) -> Tensor:
    """For (in, out / groups, ...) weights: a filter is what makes one output channel, a kernel one slice (in, out)."""
    if structure == "element":
        return top_k(w.abs(), sparsity)
    if structure == "kernel":
        return kernel_mask(w, sparsity)
    split = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    scores = split.abs().sum([1, *range(3, split.dim())], keepdim=True)
    return top_k(scores, sparsity).expand_as(split).reshape(w.shape)


@pytest.mark.parametrize("structure", MASKS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_transposed_convolutions(axes: int, groups: int, structure: str) -> None:
    geometry: dict[str, Any] = {"stride": 3, "padding": 1, "output_padding": 1, "dilation": 2, "groups": groups}
    module = TRANSPOSED_MODULE[axes](6, 8, 3, **geometry)

    def contract(a: Tensor, w: Tensor) -> Tensor:
        return TRANSPOSED[axes](a, w, **geometry)

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mask = transposed_mask(structure, weight, groups, 0.6)
        return swat(contract, x, weight, mask, top_k(x.abs(), 0.6)) + bias.reshape(-1, *[1] * axes)

    assert_swat(module, torch.randn(2, 6, *[4] * axes), reference, structure=structure, weight_sparsity=0.6)


@pytest.mark.parametrize("granularity", ["tensor", "sample", "channel", "sample_channel"])
@pytest.mark.parametrize(("axes", "mode"), [(1, "zeros"), (2, "reflect"), (3, "zeros")])
def test_unbatched_convolutions_are_a_batch_of_one(axes: int, mode: str, granularity: str) -> None:
    module = CONV_MODULE[axes](3, 4, 3, padding=1, padding_mode=mode)
    x = torch.randn(3, *[5] * axes)

    def contract(a: Tensor, w: Tensor) -> Tensor:
        return CONV[axes](F.pad(a, [1] * 2 * axes, mode="constant" if mode == "zeros" else mode), w)

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kept = (0,) if "channel" in granularity else ()
        return swat(contract, x, weight, top_k(weight.abs(), 0.7), top_k(x.abs(), 0.7, kept)) + bias.reshape(-1, *[1] * axes)

    assert_swat(module, x, reference, granularity=granularity)


@pytest.mark.parametrize("granularity", ["tensor", "sample", "channel", "sample_channel"])
@pytest.mark.parametrize("shape", [(10,), (6, 10), (4, 3, 10), (2, 3, 2, 10)])
def test_linear_on_inputs_of_each_rank(shape: tuple[int, ...], granularity: str) -> None:
    x = torch.randn(shape)
    last = len(shape) - 1
    kept = {"tensor": (), "sample": (0,), "channel": (last,), "sample_channel": (0, last)}[granularity]
    if last == 0 and "sample" in granularity:  # the one vector is the one sample
        kept = (0,) if granularity == "sample_channel" else ()

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return swat(F.linear, x, weight, top_k(weight.abs(), 0.7), top_k(x.abs(), 0.7, kept)) + bias

    assert_swat(nn.Linear(10, 7), x, reference, granularity=granularity)


@pytest.mark.parametrize("structure", ["kernel", "filter"])
def test_structures_of_a_linear_layer(structure: str) -> None:
    """A kernel slice of a matrix is one element, a filter one row."""

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mask = top_k(weight.abs(), 0.6) if structure == "kernel" else filter_mask(weight, 0.6)
        return swat(F.linear, x, weight, mask, top_k(x.abs(), 0.6)) + bias

    assert_swat(nn.Linear(10, 7), torch.randn(5, 10), reference, structure=structure, weight_sparsity=0.6)


@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_bilinear(shape: tuple[int, ...]) -> None:
    second = torch.randn(*shape, 3)

    def reference(x: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return swat(lambda a, w: F.bilinear(a, second, w), x, weight, top_k(weight.abs(), 0.7), top_k(x.abs(), 0.7)) + bias

    assert_swat(nn.Bilinear(4, 3, 6), torch.randn(*shape, 4), reference, others=(second,), rtol=2e-5)


def test_bilinear_gives_its_second_input_the_gradient_of_the_sparse_weight() -> None:
    module = nn.Bilinear(4, 3, 6)
    compiled = compiled_copy(module, torch.randn(5, 4), torch.randn(5, 3))
    x, second = torch.randn(5, 4), torch.randn(5, 3, requires_grad=True)
    (found,) = gradients(compiled(x, second), second)
    w = module.weight.detach()
    (expected,) = gradients(F.bilinear(x, second, w * top_k(w.abs(), 0.7), module.bias), second)
    torch.testing.assert_close(found, expected)


class PaddedByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.pad(x, (1, 0, 2, 0)))


def test_what_the_model_pads_itself_is_the_activation() -> None:
    """The top-K is taken over what the layer is given, zeros of an earlier pad included; its own padding comes after that."""

    def reference(x: Tensor, layer_weight: Tensor) -> Tensor:
        given = F.pad(x, (1, 0, 2, 0))
        return swat(
            lambda a, w: F.conv2d(F.pad(a, [1] * 4, mode="circular"), w), given, layer_weight, mask_of(layer_weight), mask_of(given)
        )

    assert_swat(PaddedByHand(), torch.randn(2, 3, 5, 5), reference)


# Functional forms


class Functional(nn.Module):
    """One parameter and one expression."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


class Conv2dCall(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, 2, "valid", groups=2)


class ConvSameCall(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, weight=self.weight, padding="same", dilation=(3,))


class ConvTransposeCall(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, stride=(2, 1), output_padding=(1, 0), groups=2)


class LinearCall(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class MatmulRight(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight)


class MatmulLeft(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.weight, x)


class AtRight(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class AtLeft(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x


class MethodCall(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return x.mm(self.weight.t())


class ViewCall(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.reshape(5, 2, 6).transpose(0, 1).flatten(0, 1)[:7])


class TransposedLinear(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T)


class Addmm(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(torch.linspace(0, 1, 5, dtype=x.dtype), x, self.weight, beta=0.5, alpha=3)


class AddmmWithoutInput(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(torch.full((5,), torch.nan), x, self.weight, beta=0)


class Baddbmm(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(torch.ones(3, 1, 5), self.weight, x, beta=2.0, alpha=0.25)


class Einsum(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bth,hkd->btkd", x, self.weight)


class EinsumWeightFirst(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oi,b i -> b o", self.weight, x)


class EinsumImplicit(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ij,jk", (x, self.weight))


def mask_of(w: Tensor) -> Tensor:
    return top_k(w.abs(), 0.7)


FUNCTIONAL: list[tuple[Functional, tuple[int, ...], Any]] = [
    (Conv2dCall(8, 3, 3, 3), (2, 6, 7, 7), lambda x, w: F.conv2d(x, w, None, 2, 0, groups=2)),
    (ConvSameCall(8, 6, 4), (2, 6, 9), lambda x, w: F.conv1d(x, w, padding="same", dilation=3)),
    (ConvTransposeCall(6, 3, 3, 3), (2, 6, 4, 4), lambda x, w: F.conv_transpose2d(x, w, None, (2, 1), 0, (1, 0), 2)),
    (LinearCall(5, 6), (4, 3, 6), lambda x, w: (x.reshape(-1, 6) @ w.t()).reshape(4, 3, 5)),
    (MatmulRight(6, 5), (4, 6), lambda x, w: x.mm(w)),
    (MatmulRight(6, 5), (2, 4, 6), lambda x, w: (x.reshape(-1, 6) @ w).reshape(2, 4, 5)),
    (MatmulRight(2, 6, 5), (2, 4, 6), lambda x, w: x.bmm(w)),
    (MatmulRight(2, 6, 5), (3, 2, 4, 6), lambda x, w: torch.einsum("abij,bjk->abik", x, w)),
    (MatmulRight(6), (4, 6), lambda x, w: x.mv(w)),
    (MatmulRight(6, 5), (6,), lambda x, w: (x[None] @ w)[0]),
    (MatmulLeft(5, 6), (6, 4), lambda x, w: w.mm(x)),
    (MatmulLeft(5, 6), (3, 6, 4), lambda x, w: torch.stack([w.mm(item) for item in x])),
    (MatmulLeft(5, 6), (6,), lambda x, w: w.mv(x)),
    (AtRight(6, 5), (4, 6), lambda x, w: x.mm(w)),
    (AtLeft(5, 6), (6, 4), lambda x, w: w.mm(x)),
    (MethodCall(5, 6), (4, 6), lambda x, w: x.mm(w.t())),
    (ViewCall(10, 6), (4, 6), lambda x, w: x.mm(w.reshape(5, 2, 6).transpose(0, 1).reshape(10, 6)[:7].t())),
    (TransposedLinear(6, 5), (4, 6), lambda x, w: x.mm(w)),
    (Baddbmm(3, 4, 6), (3, 6, 5), lambda x, w: 0.25 * w.bmm(x)),
    (Addmm(6, 5), (4, 6), lambda x, w: 3 * x.mm(w)),
    (AddmmWithoutInput(6, 5), (4, 6), lambda x, w: x.mm(w)),
    (Einsum(6, 2, 3), (4, 5, 6), lambda x, w: (x.reshape(20, 6) @ w.reshape(6, 6)).reshape(4, 5, 2, 3)),
    (EinsumWeightFirst(5, 6), (4, 6), lambda x, w: x.mm(w.t())),
    (EinsumImplicit(6, 5), (4, 6), lambda x, w: x.mm(w)),
]
ADDED = {"Baddbmm": 2.0, "Addmm": 0.5 * torch.linspace(0, 1, 5)}


@pytest.mark.parametrize(("module", "shape", "contract"), FUNCTIONAL, ids=[f"{type(m).__name__}-{len(s)}" for m, s, _ in FUNCTIONAL])
def test_functional_forms(module: Functional, shape: tuple[int, ...], contract: Any) -> None:
    def reference(x: Tensor, weight: Tensor) -> Tensor:
        return swat(contract, x, weight, mask_of(weight), top_k(x.abs(), 0.7)) + ADDED.get(type(module).__name__, 0.0)

    assert_swat(module, torch.randn(shape), reference)


@pytest.mark.parametrize("granularity", ["sample", "channel"])
def test_granularity_of_a_matrix_product_follows_its_indices(granularity: str) -> None:
    def reference(x: Tensor, weight: Tensor) -> Tensor:
        kept = (0,) if granularity == "sample" else (2,)
        return swat(lambda a, w: torch.einsum("bth,hkd->btkd", a, w), x, weight, mask_of(weight), top_k(x.abs(), 0.7, kept))

    assert_swat(Einsum(6, 2, 3), torch.randn(4, 5, 6), reference, granularity=granularity)


def test_a_product_whose_first_dimension_is_contracted_has_no_samples() -> None:
    compiled = compiled_copy(AtLeft(5, 6), torch.randn(6, 4), granularity="sample")
    assert "has no dimension of samples" in compiled.report.skips[0].reason


# Sparsities apart


@pytest.mark.parametrize(("ws", "own"), [(0.8, 0.0), (0.0, 0.5), (0.5, 0.9), (0.9, 0.25)])
@pytest.mark.parametrize("kind", ["conv", "linear", "einsum"])
def test_weights_and_activations_have_sparsities_of_their_own(kind: str, ws: float, own: float) -> None:
    made: dict[str, tuple[nn.Module, tuple[int, ...], Any]] = {
        "conv": (nn.Conv2d(4, 6, 3, bias=False), (2, 4, 6, 6), F.conv2d),
        "linear": (nn.Linear(8, 6, bias=False), (5, 8), F.linear),
        "einsum": (AtRight(8, 6), (5, 8), torch.mm),
    }
    module, shape, contract = made[kind]

    def reference(x: Tensor, weight: Tensor) -> Tensor:
        return swat(contract, x, weight, top_k(weight.abs(), ws) if ws else 1.0, top_k(x.abs(), own) if own else 1.0)

    assert_swat(module, torch.randn(shape), reference, weight_sparsity=ws, activation_sparsity=own)


# Distributions


@pytest.mark.parametrize("kernel", [False, True])
def test_erdos_renyi_distributions_reach_the_numbers(kernel: bool) -> None:
    """Two layers whose densities are solved by hand: eps from the budget, no layer saturated."""
    model = nn.Sequential(nn.Conv2d(4, 16, 3, bias=False), nn.Conv2d(16, 8, 5, bias=False))
    raw = [(4 + 16 + 6) / (4 * 16 * 9), (16 + 8 + 10) / (16 * 8 * 25)] if kernel else [20 / 64, 24 / 128]
    sizes = [4 * 16 * 9, 16 * 8 * 25]
    budget = -(-sum(sizes) // 5)
    eps = budget / sum(r * n for r, n in zip(raw, sizes, strict=True))
    densities = [eps * r for r in raw]
    assert all(density < 1 for density in densities)
    distribution = "erk" if kernel else "er"
    x = torch.randn(2, 4, 8, 8)
    compiled = compiled_copy(model, x, weight_sparsity=0.8, distribution=distribution)
    kept = [compiled.plan[name].weight_kept for name in ("0.weight", "1.weight")]
    assert sum(kept) == budget
    assert kept == pytest.approx([density * n for density, n in zip(densities, sizes, strict=True)], abs=1)
    out = compiled(x)
    h = x
    for index, count in enumerate(kept):
        w = model[index].weight.detach()
        keep = w.abs() >= w.abs().flatten().sort(descending=True).values[count - 1]
        assert int(keep.sum()) == count
        h = F.conv2d(h, w * keep)
    torch.testing.assert_close(out, h, rtol=1e-5, atol=1e-5)
    found = compiled.sparsity()
    for name, count, n in zip(("0.weight", "1.weight"), kept, sizes, strict=True):
        assert found[name]["weight"]["kept"] == count
        activation = found[name]["activation"]
        assert activation["target"] == pytest.approx(count / n)
        assert activation["kept"] == -(-activation["total"] * count // n)


@pytest.mark.parametrize("distribution", ["er", "erk"])
def test_a_layer_alone_gets_the_whole_budget(distribution: str) -> None:
    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return swat(F.conv2d, x, weight, top_k(weight.abs(), 0.5), top_k(x.abs(), 0.5)) + bias.reshape(-1, 1, 1)

    assert_swat(nn.Conv2d(4, 8, 3), torch.randn(2, 4, 6, 6), reference, distribution=distribution, weight_sparsity=0.5)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("structure", MASKS)
def test_other_dtypes(structure: str, dtype: torch.dtype) -> None:
    module = nn.Conv2d(6, 8, 3, padding=1).to(dtype)
    tolerance = 1e-2 if dtype is torch.bfloat16 else 1e-12

    def mask(weight: Tensor) -> Tensor:
        return MASKS[structure](weight.float() if dtype is torch.bfloat16 else weight, 0.7)

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        contract = lambda a, w: F.conv2d(a, w, padding=1)  # noqa: E731
        return swat(contract, x, weight, mask(weight), top_k(x.abs(), 0.7)) + bias.reshape(-1, 1, 1)

    assert_swat(module, torch.randn(2, 6, 6, 6, dtype=dtype), reference, structure=structure, rtol=tolerance, atol=tolerance)


# Many contractions together


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)
        self.outward.weight = self.inward.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.inward(x) @ self.outward.weight


def swat_linear(x: Tensor, w: Tensor, bias: Tensor | None = None, sparsity: float = 0.7, w_mask: Tensor | None = None) -> Tensor:
    mask = top_k(w.abs(), sparsity) if w_mask is None else w_mask
    out = swat(F.linear, x, w, mask, top_k(x.detach().abs(), sparsity))
    return out if bias is None else out + bias


def test_a_module_that_is_called_twice() -> None:
    def reference(x: Tensor, layer_weight: Tensor, layer_bias: Tensor) -> Tensor:
        return swat_linear(swat_linear(x, layer_weight, layer_bias), layer_weight, layer_bias)

    compiled = assert_swat(Twice(), torch.randn(5, 6), reference)
    sparse = [
        node for node in compiled.graphs[""].graph.nodes if node.meta.get("custom", {}).get("fxsparse", {}).get("role") == "sparse_weight"
    ]
    assert len(sparse) == 1


def test_tied_weights() -> None:
    def reference(x: Tensor, inward_weight: Tensor) -> Tensor:
        return swat_linear(swat_linear(x, inward_weight), inward_weight.t())

    compiled = assert_swat(Tied(), torch.randn(5, 6), reference)
    assert list(compiled.plan) == ["inward.weight"]


# Attention


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    n, t, e = q.shape
    split = [item.reshape(n, -1, heads, e // heads).transpose(1, 2) for item in (q, k, v)]
    out = (split[0] @ split[1].transpose(-1, -2) / (e // heads) ** 0.5).softmax(-1) @ split[2]
    return out.transpose(1, 2).reshape(n, t, e)


@pytest.mark.parametrize("need_weights", [False, True])
def test_self_attention(need_weights: bool) -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.mha(x, x, x, need_weights=need_weights)[0]

    def reference(
        x: Tensor, mha_in_proj_weight: Tensor, mha_in_proj_bias: Tensor, mha_out_proj_weight: Tensor, mha_out_proj_bias: Tensor
    ) -> Tensor:
        q, k, v = swat_linear(x, mha_in_proj_weight, mha_in_proj_bias).chunk(3, -1)
        return swat_linear(attention(q, k, v, 2), mha_out_proj_weight, mha_out_proj_bias)

    assert_swat(Attend(), torch.randn(3, 5, 8), reference, rtol=1e-4)


def test_cross_attention_sparsifies_its_joint_weight_once() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            return self.mha(x, memory, memory)[0]

    def reference(
        x: Tensor,
        memory: Tensor,
        mha_in_proj_weight: Tensor,
        mha_in_proj_bias: Tensor,
        mha_out_proj_weight: Tensor,
        mha_out_proj_bias: Tensor,
    ) -> Tensor:
        mask = top_k(mha_in_proj_weight.abs(), 0.7)
        parts = zip((x, memory, memory), mha_in_proj_weight.chunk(3), mha_in_proj_bias.chunk(3), mask.chunk(3), strict=True)
        q, k, v = (swat_linear(a, w, b, w_mask=m) for a, w, b, m in parts)
        return swat_linear(attention(q, k, v, 2), mha_out_proj_weight, mha_out_proj_bias)

    assert_swat(Attend(), torch.randn(3, 5, 8), reference, others=(torch.randn(3, 4, 8),), rtol=1e-4)


def test_attention_with_widths_of_their_own() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True, bias=False)

        def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return self.mha(x, key, value)[0]

    def reference(
        x: Tensor,
        key: Tensor,
        value: Tensor,
        mha_q_proj_weight: Tensor,
        mha_k_proj_weight: Tensor,
        mha_v_proj_weight: Tensor,
        mha_out_proj_weight: Tensor,
    ) -> Tensor:
        weights = (mha_q_proj_weight, mha_k_proj_weight, mha_v_proj_weight)
        q, k, v = (swat_linear(a, w) for a, w in zip((x, key, value), weights, strict=True))
        return swat_linear(attention(q, k, v, 2), mha_out_proj_weight)

    assert_swat(Attend(), torch.randn(3, 5, 8), reference, others=(torch.randn(3, 4, 6), torch.randn(3, 4, 5)), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "structure", "granularity", "stride", "dilation", "groups"),
    list(itertools.product([1, 2, 3], MASKS, KEPT_DIMS, [1, 2], [1, 2], [1, 2])),
)
def test_every_combination(axes: int, structure: str, granularity: str, stride: int, dilation: int, groups: int) -> None:
    conv_case(axes, 7, structure=structure, granularity=granularity, stride=stride, dilation=dilation, groups=groups, padding=1)
