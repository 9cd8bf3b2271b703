"""InsertSwat as a pass: the structure it makes, what it leaves alone and why, fuel, and the neutral setting."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxsparse as fxs
from fxsparse.passes import meta
from fxsparse.passes.insert_swat import InsertSwat
from fxsparse.passes.swat_thresholds import call_slots, threshold_dims, threshold_shape
from fxsparse.passes.verify import verify

from .swat_reference import compiled_copy, gradients

SWAT = fxs.SWAT(weight_sparsity=0.5, dense_first=False)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class TwoReads(nn.Module):
    """One weight that is read twice, once through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.unread = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(F.linear(x, self.weight)) @ self.weight.t()


def listing(gm: fx.GraphModule) -> list[str]:
    """One line for each node: target(node arguments)."""

    def shown(node: fx.Node) -> str:
        target = (
            node.target
            if isinstance(node.target, str)
            else getattr(node.target, "_opname", getattr(node.target, "__name__", str(node.target)))
        )
        return f"{node.name} = {target}({', '.join(map(str, node.all_input_nodes))})"

    return [shown(node) for node in gm.graph.nodes if node.op not in ("placeholder", "output")]


def test_before_and_after() -> None:
    model, x = TwoReads(), torch.randn(3, 4)
    assert listing(fxs.compile(model, None, (x,)).graphs[""]) == [
        "weight = weight()",
        "linear = linear(x, weight)",
        "relu = relu(linear)",
        "t = t(weight)",
        "matmul = matmul(relu, t)",
    ]
    compiled = fxs.compile(model, SWAT, (x,))
    site = "fxsparse_sites_weight"
    assert listing(compiled.graphs[""]) == [
        "is_grad_enabled = is_grad_enabled()",
        "fxsparse_clock_now = fxsparse.clock.now()",
        "weight = weight()",
        f"{site}_weight_threshold = fxsparse.sites.weight.weight_threshold()",
        f"{site}_weight_density = fxsparse.sites.weight.weight_density()",
        "detach = detach(weight)",
        f"refresh_threshold_default = refresh_threshold(detach, {site}_weight_threshold, fxsparse_clock_now, {site}_weight_density)",
        "sparsify_default = sparsify(weight, refresh_threshold_default)",
        *activation_listing("x", 0),
        "swat_linear_default = swat_linear(x, getitem, sparsify_default, getitem_1, getitem_2, weight, refresh_threshold_default)",
        "masked_function_default = masked_function(swat_linear_default, is_grad_enabled)",
        "getitem_8 = getitem(masked_function_default)",
        "t_1 = t(sparsify_default)",
        *activation_listing("getitem_8", 1),
        "swat_einsum_default = swat_einsum(getitem_8, getitem_4, t_1, getitem_5, getitem_6)",
    ]
    roles = [(node.name, meta.read(node)["role"]) for node in compiled.graphs[""].graph.nodes if "role" in meta.read(node)]
    assert roles == [
        ("refresh_threshold_default", "weight_threshold"),
        ("sparsify_default", "sparse_weight"),
        ("refresh_threshold_default_1", "activation_threshold"),
        ("pack_sparse_default", "sparse_activation"),
        ("count_kept_default", "activation_counter"),
        ("swat_linear_default", "contraction"),
        ("masked_function_default", "function"),
        ("refresh_threshold_default_2", "activation_threshold"),
        ("pack_sparse_default_1", "sparse_activation"),
        ("count_kept_default_1", "activation_counter"),
        ("swat_einsum_default", "contraction"),
    ]


def activation_listing(x: str, call: int) -> list[str]:
    """What is made of the activation x of a call."""
    site, again = "fxsparse_sites_weight_activation", f"_{call}" if call else ""
    detach = 2 * call + 1
    return [
        f"{site}_threshold_{call} = fxsparse.sites.weight.activation_threshold_{call}()",
        f"{site}_density{again} = fxsparse.sites.weight.activation_density()",
        f"detach_{detach} = detach({x})",
        f"refresh_threshold_default_{call + 1} = refresh_threshold("
        f"detach_{detach}, {site}_threshold_{call}, fxsparse_clock_now, {site}_density{again}, is_grad_enabled)",
        f"detach_{detach + 1} = detach({x})",
        f"pack_sparse_default{again} = pack_sparse("
        f"detach_{detach + 1}, refresh_threshold_default_{call + 1}, is_grad_enabled, fxsparse_clock_now)",
        *(f"getitem{f'_{item}' if item else ''} = getitem(pack_sparse_default{again})" for item in range(4 * call, 4 * call + 4)),
        f"{site}_counts_{call} = fxsparse.sites.weight.activation_counts_{call}()",
        f"count_kept_default{again} = count_kept({x}, getitem_{4 * call + 3}, {site}_counts_{call}, fxsparse_clock_now, is_grad_enabled)",
    ]


def test_changes_say_what_was_done_where_and_why() -> None:
    compiled = fxs.compile(TwoReads(), SWAT, (torch.randn(3, 4),))
    first, second, relu = compiled.report.changes
    assert (first.site, first.graph, first.why) == ("weight", "", "SWAT selects weight")
    assert first.what == "linear with element weights at density 0.5, activations at 0.5 by tensor"
    names = {node.name for node in compiled.graphs[""].graph.nodes}
    assert (relu.what, relu.why) == ("masked: keeps one bit for each element (48 B before, about 1 B now)", "SWAT keeps its output sparse")
    for change in (first, second, relu):
        assert {change.node, *change.added, *change.rewired} <= names | set(relu.removed)
        assert not set(change.removed) & names
    assert len(second.removed) == 2  # the product and the view of the dense weight that only it read


def test_a_view_that_others_read_stays() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            w = self.weight.t()
            return x @ w + w.sum()

    model, x = Both(), torch.randn(3, 4)
    compiled = fxs.compile(model, SWAT, (x,))
    w = model.weight.detach()
    kept = w * (w.abs() >= w.abs().flatten().sort().values[8])
    torch.testing.assert_close(compiled(x), x @ kept.t() + w.sum())


def test_a_second_run_changes_nothing() -> None:
    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 2, padding="same", padding_mode="circular")
            self.linear, self.bilinear = nn.Linear(4, 6), nn.Bilinear(6, 6, 5)
            self.weight = nn.Parameter(torch.randn(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(self.conv(x).mean((2, 3)))
            return torch.addmm(y.new_zeros(4), self.bilinear(y, y), self.weight)

    compiled = fxs.compile(Everything(), SWAT, (torch.randn(2, 3, 5, 5),))
    recurrent = fxs.compile(nn.Sequential(nn.GRU(4, 4)), SWAT, (torch.randn(2, 3, 4),))
    for made in (compiled, recurrent):
        for path, gm in made.graphs.items():
            before, code = listing(gm), gm.code
            result = InsertSwat(path, dict(made.plan), {name: name for name in made.plan})(gm)
            assert result.changes == ()
            assert result.skips == ()
            assert listing(gm) == before
            assert gm.code == code


def test_a_run_after_the_fuel_gave_out_does_the_rest() -> None:
    model, x = TwoReads(), torch.randn(3, 4)
    whole, half = fxs.compile(model, SWAT, (x,)), fxs.compile(model, SWAT, (x,), fuel=1)
    gm = half.graphs[""]
    result = InsertSwat("", dict(half.plan), {"weight": "weight"})(gm)
    verify(gm)
    assert len(result.changes) == 1
    targets = [[node.target for node in made.graph.nodes if node.op == "get_attr"] for made in (gm, whole.graphs[""])]
    assert set(targets[0]) == set(targets[1])
    torch.testing.assert_close(half(x), whole(x))


# Fuel and neutral settings


def deep_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 6), nn.Dropout(0.3)
    )


@pytest.mark.parametrize("fuel", [0, 1, 2, 3, 10])
def test_fuel_is_the_number_of_rewrites(fuel: int) -> None:
    compiled = fxs.compile(deep_model(), SWAT, (torch.randn(2, 3, 4, 4),), fuel=fuel)
    changed = [change.site for change in compiled.report.changes]
    contractions, relu = ["0.weight", "4.weight", "6.weight"], "5"  # whose output the last one keeps sparse, so that its mask is in bits
    assert changed == [*contractions, relu][:fuel]
    assert list(compiled.plan) == changed[:3]
    assert [skip.site for skip in compiled.report.skips] == contractions[fuel:] + [relu] * (fuel == 3)
    assert all(skip.reason == "no fuel is left" for skip in compiled.report.skips)


def test_fuel_bisects_to_the_first_rewrite_that_matters() -> None:
    model, x = deep_model().eval(), torch.randn(2, 3, 4, 4)
    outputs = [fxs.compile(model, SWAT, (x,), fuel=fuel)(x) for fuel in range(4)]
    assert torch.equal(outputs[0], model(x))
    w = model[0].weight.detach()
    first = copy.deepcopy(model)
    first[0].weight.data *= w.abs() >= w.abs().flatten().sort().values[w.numel() // 2]
    torch.testing.assert_close(outputs[1], first(x))
    assert not torch.equal(outputs[1], outputs[2])
    assert not torch.equal(outputs[2], outputs[3])


@pytest.mark.parametrize(
    "settings", [{"policy": None}, {"policy": fxs.SWAT(weight_sparsity=0.0)}, {"policy": SWAT, "fuel": 0}], ids=["none", "zero", "fuel"]
)
@pytest.mark.parametrize("train", [True, False])
def test_a_neutral_compilation_equals_the_model_bit_for_bit(settings: dict[str, Any], train: bool) -> None:
    model, x = deep_model(), torch.randn(4, 3, 4, 4)
    compiled = fxs.compile(model, example_inputs=(x,), **settings)
    assert fxs.check(compiled, model, (x,), train=train).equal


def test_activations_alone_leave_the_output_as_it_is() -> None:
    model, x = deep_model(), torch.randn(4, 3, 4, 4)
    compiled = compiled_copy(model, x, weight_sparsity=0.0, activation_sparsity=0.9)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    found = compiled(x)
    assert torch.equal(found, expected)
    names = [name for name, _ in model.named_parameters()]
    pairs = zip(gradients(found, *compiled.parameters()), gradients(expected, *model.parameters()), strict=True)
    differs = {name for name, (a, b) in zip(names, pairs, strict=True) if not torch.equal(a, b)}
    assert {name for name in differs if name.endswith("weight")} >= {"0.weight", "4.weight", "6.weight"}
    assert not {name for name in differs if name.startswith(("1.", "4.bias", "6.bias"))}


# Refusals


def refused(model: nn.Module, *x: Any, **settings: Any) -> list[str]:
    return [skip.reason for skip in compiled_copy(model, *x, **settings).report.skips]


def test_reasons_to_leave_a_contraction_exact() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, 4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    class Hooked(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 4))
            self[0].register_forward_hook(lambda module, args, out: out * 2)

    assert refused(Broadcast(), torch.randn(3, 2, 4)) == ["its operands are broadcast against each other along a dimension of size 1"]
    assert "hooks" in refused(Hooked(), torch.randn(3, 4))[0]


def test_a_contraction_of_unknown_shape_says_what_is_missing() -> None:
    compiled = fxs.compile(nn.Sequential(nn.Linear(4, 4)), fxs.SWAT(weight_sparsity=0.5, dense_first=False, granularity="channel"))
    assert compiled.report.skips[0].reason == "granularity 'channel' needs the activation's rank; pass example inputs"
    compiled = fxs.compile(nn.Sequential(nn.Linear(4, 4)), SWAT)
    assert len(compiled.report.changes) == 1


def test_a_hook_of_the_model_still_runs_where_the_layer_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].register_forward_hook(lambda module, args, out: out * 2)
    x = torch.randn(3, 4)
    compiled = fxs.compile(model, SWAT, (x,), fuel=0)
    assert torch.equal(compiled(x), model(x))


# The dimensions of thresholds


@pytest.mark.parametrize(
    ("operator", "rank", "granularity", "equation", "dims"),
    [
        ("conv", 4, "tensor", "", ()),
        ("conv", 4, "sample", "", (0,)),
        ("conv_transpose", 3, "channel", "", (1,)),
        ("conv", 5, "sample_channel", "", (0, 1)),
        ("linear", 3, "channel", "", (2,)),
        ("linear", 1, "sample", "", ()),
        ("linear", 1, "sample_channel", "", (0,)),
        ("bilinear", 2, "sample_channel", "", (0, 1)),
        ("einsum", 3, "channel", "bth,hkd->btkd", (2,)),
        ("einsum", 3, "channel", "bhc,hcd->bhd", (2,)),
        ("einsum", 4, "sample_channel", "bxyc,oyc->bxo", (0, 2, 3)),
    ],
)
def test_threshold_dims(operator: str, rank: int, granularity: str, equation: str, dims: tuple[int, ...]) -> None:
    assert threshold_dims(operator, rank, granularity, equation) == dims


def test_threshold_shape_is_free_of_the_batch() -> None:
    assert threshold_shape("conv", (8, 3, 5, 5), "channel") == (1, 3, 1, 1)
    assert threshold_shape("linear", (8, 7, 5), "channel") == (1, 1, 5)
    assert threshold_shape("conv", (8, 3, 5, 5), "sample") == ()
    assert threshold_shape("conv", None, "channel") == ()


def test_each_call_has_a_number_of_its_own() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.a(x))

    site = fxs.compile(Tied(), None, (torch.randn(2, 4),)).sites["a.weight"]
    assert call_slots(site) == {("", 0): 0, ("", 1): 1}


# The model is left as it is


def test_compiling_and_training_leaves_the_original_python_alone() -> None:
    model, x = deep_model().eval(), torch.randn(2, 3, 4, 4)
    state, attributes = copy.deepcopy(model.state_dict()), {name: dict(vars(m)) for name, m in model.named_modules()}
    expected = model(x)
    random = torch.get_rng_state()
    fxs.compile(model, SWAT, (x,))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model(x), expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert {name: vars(m).keys() for name, m in model.named_modules()} == {name: found.keys() for name, found in attributes.items()}
