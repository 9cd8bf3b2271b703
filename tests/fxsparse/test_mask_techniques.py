"""What mask techniques ask for, what is refused, and what a compiled model says of its masks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import fxsparse as fxs
from fxsparse.passes.specs import CombinedSpec

from .test_mask_survival import make, require_exact, sgd, step
from .test_survival import batches

GRADUAL: dict[str, Any] = {"final_sparsity": 0.9, "begin": 0, "end": 100, "interval": 10}
GRANET: dict[str, Any] = {**GRADUAL, "initial_sparsity": 0.5, "total_steps": 200}


class Saliency(fxs.Criterion):
    """|weight x gradient|, the first-order change of the loss."""

    reads = "gradient"

    def score(self, at: fxs.Weight) -> Tensor:
        assert at.gradient is not None
        return (at.weight * at.gradient).abs()


@pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
        (fxs.GraNet, {**GRANET, "final_sparsity": 0.3}, "GraNet.final_sparsity 0.3 is below initial_sparsity 0.5"),
        (fxs.GMP, {**GRADUAL, "initial_sparsity": 0.95}, "GMP.final_sparsity 0.9 is below initial_sparsity 0.95"),
        (fxs.GraNet, {**GRANET, "begin": 150}, "GraNet begins at step 150, after its end at step 100"),
        (fxs.GMP, {**GRADUAL, "begin": 150}, "GMP begins at step 150, after its end at step 100"),
        (fxs.GMP, {**GRADUAL, "begin": 100}, "no interval of 10 steps lies between begin=100 and end=100"),
        (fxs.GMP, {**GRADUAL, "begin": -1}, "GMP.begin is -1; expected a whole number of optimizer steps"),
        (fxs.GraNet, {**GRANET, "interval": 0}, "GraNet.interval is 0; expected a whole number of steps, at least 1"),
        (fxs.RigL, {"sparsity": 0.9, "end": 100, "interval": 0}, "RigL.interval is 0"),
        (fxs.RigL, {"sparsity": 0.9, "end": 50}, "no interval of 100 steps lies between begin=0 and end=50"),
        (fxs.RigL, {"sparsity": 1.0, "end": 100}, "RigL.sparsity is 1.0; expected a fraction of zeros"),
        (fxs.SET, {"sparsity": 0.9, "end": 100, "drop_fraction": -0.1}, "SET.drop_fraction is -0.1"),
        (fxs.GraNet, {**GRANET, "total_steps": 50}, "GraNet.total_steps 50 is before the end of pruning at step 100"),
        (fxs.GraNet, {**GRANET, "scope": "globl"}, "GraNet.scope is 'globl' (did you mean 'global'?)"),
        (fxs.GraNet, {**GRANET, "structure": "filter"}, "structure 'filter' goes with scope 'layer'"),
        (fxs.RigL, {"sparsity": 0.9, "end": 100, "distribution": "ek"}, "RigL.distribution is 'ek'"),
        (fxs.RigL, {"sparsity": 0.9, "end": 100, "grow": "gradients"}, "RigL.grow: there is no criterion 'gradients'"),
        (fxs.RigL, {"sparsity": 0.9, "end": 100, "grow": 3}, "RigL.grow: it is 3"),
        (fxs.StaticMask, {"sparsity": 0.5, "start": "zeros"}, "StaticMask.start is 'zeros'"),
        (fxs.StaticMask, {"sparsity": 0.5, "seed": "a"}, "StaticMask.seed is 'a'"),
        (fxs.NM, {"n": 5, "m": 4}, "NM keeps n of every m weights; got n=5, m=4"),
        (fxs.NM, {"n": 0, "m": 4}, "NM.n is 0"),
        (fxs.NM, {"n": 2, "m": 4, "decay": 1e-4}, "give straight_through=True as well"),
    ],
)
def test_what_cannot_be_wished_for(kind: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(fxs.PolicyError) as caught:
        kind(**settings)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "technique",
    [
        fxs.GraNet(**GRANET, scope="layer", structure="kernel", seed=4),
        fxs.GMP(**GRADUAL, to_the_end=True),
        fxs.RigL(sparsity=0.9, end=1000, grow=Saliency, regrow=False),
        fxs.SET(sparsity=0.8, end=1000, distribution="uniform", exclude=("fc",)),
        fxs.StaticMask(sparsity=0.7, start="magnitude"),
        fxs.StaticMask.from_weights(),
        fxs.NM(2, 4, straight_through=True, decay=2e-4),
    ],
)
@pytest.mark.parametrize("name", ["policy.yaml", "policy.json"])
def test_policies_of_masks_are_written_and_read(technique: Any, name: str, tmp_path: Path) -> None:
    policy = fxs.Policy(technique)
    policy.save(tmp_path / name)
    assert fxs.Policy.load(tmp_path / name) == policy
    assert fxs.Policy.from_dict(policy.to_dict()) == policy


def test_every_preset_masks_resnet18() -> None:
    model, x = torchvision.models.resnet18(), torch.randn(1, 3, 64, 64)
    names = [name for name in fxs.presets() if name.split("-")[0] in ("granet", "rigl", "nm")]
    assert {"granet-90", "rigl-90", "nm-2-4"} <= set(names)
    for name in names:
        assert fxs.compile(model, name, (x,), check_graphs=False).masks


def test_two_techniques_that_sparsify_one_weight() -> None:
    x = torch.randn(2, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    rigl = fxs.RigL(sparsity=0.5, end=100)
    for other in (fxs.StaticMask(sparsity=0.5), fxs.SWAT(weight_sparsity=0.5, dense_first=False)):
        for pair in ((rigl, other), (other, rigl)):
            with pytest.raises(fxs.PolicyError, match=r"two techniques want the weight '0.weight'"):
                fxs.compile(model, fxs.Policy(*pair), (x,))
    both = fxs.compile(model, fxs.Policy(fxs.StaticMask(sparsity=0.5, include=("0",)), fxs.NM(2, 4, include=("1",))), (x,))
    assert [spec.technique for spec in both.masks.values()] == ["StaticMask", "NM"]
    assert len(both.regimes) == 2


def test_sparse_activations_go_with_masks() -> None:
    swat = fxs.SWAT(weight_sparsity=0.0, activation_sparsity=0.5, dense_first=False)
    policy = fxs.Policy(fxs.RigL(sparsity=0.7, end=100, interval=2), swat)
    for order in (policy, fxs.Policy(*reversed(policy.techniques))):
        compiled, shape = make("resnet", order)
        spec = compiled.plan["block.conv1.weight"]
        assert isinstance(spec, CombinedSpec)
        assert spec.activation_density == 0.5
        optimizer = sgd(compiled)
        compiled.attach(optimizer)
        for x, y in batches(shape, 5):
            step(compiled, optimizer, x, y)
        require_exact(compiled, optimizer)
        for row in compiled.sparsity().values():
            assert row["activation"]["actual"] == pytest.approx(0.5, abs=0.05)
        copied = copy.deepcopy(compiled)
        assert copied.plan == compiled.plan
        assert spec.to_dict()["specs"][0]["technique"] == "RigL"
    assert compiled.cost().reduction["training"] > 0.6


def test_a_site_that_cannot_be_masked_says_why() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.thin, self.wide = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)
            self.table = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(self.thin(x).mean((2, 3))) @ self.table.t()

    compiled = fxs.compile(Odd(), fxs.NM(2, 4), (torch.randn(2, 3, 5, 5),))
    assert set(compiled.masks) == {"wide.weight"}
    reasons = {skip.site: skip.reason for skip in compiled.report.skips}
    assert reasons["thin.weight"] == "its input axis has 3 elements, not a multiple of 4"
    assert reasons["table"] == "N:M needs the weight as it is stored, and it is viewed otherwise before its contraction"
    with pytest.raises(fxs.PolicyError, match="NM can mask none of the weights that it selects: its input axis has 3 elements"):
        fxs.compile(Odd(), fxs.NM(2, 4, include=("thin",)), (torch.randn(2, 3, 5, 5),))
    with pytest.raises(fxs.PolicyError, match=r"RigL at sparsity 0.9999 keeps no weight at all in"):
        fxs.compile(Odd(), fxs.RigL(sparsity=0.9999, end=100), (torch.randn(2, 3, 5, 5),))


def test_tied_weights_have_one_mask() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight
            self.again = nn.Linear(8, 11, bias=False)
            self.again.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x).mean(1)
            return self.head(h) + self.again(h.tanh())

    torch.manual_seed(0)
    x = torch.randint(11, (4, 5))
    compiled = fxs.compile(Tied(), fxs.StaticMask(sparsity=0.5), (x,))
    assert list(compiled.masks) == ["embed.weight"]
    graph = compiled.graphs[""].graph
    assert sum("apply_mask" in node.name for node in graph.nodes) == 1
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    for _ in range(3):
        step(compiled, optimizer, x, torch.randint(11, (4,)))
    require_exact(compiled, optimizer)
    mask = compiled.get_buffer("fxsparse.sites.embed.weight.mask")
    with torch.no_grad():
        out = compiled(x)
        compiled.get_parameter("embed.weight").add_(3.0 * ~mask)  # what is masked is read by nobody, the table included
        assert torch.equal(compiled(x), out)


def test_neutral_masks_change_nothing() -> None:
    model = torchvision.models.resnet18(num_classes=10)
    x = torch.randn(2, 3, 32, 32)
    for policy in (fxs.StaticMask(sparsity=0.0), fxs.RigL(sparsity=0.0, end=100), fxs.NM(4, 4)):
        assert not fxs.compile(model, policy, (x,)).masks
    for policy in (fxs.GraNet(**{**GRANET, "initial_sparsity": 0.0}), fxs.GMP(**GRADUAL)):
        compiled = fxs.compile(model, policy, (x,))
        assert compiled.masks
        assert fxs.check(compiled, model, x).equal
        assert fxs.check(compiled, model, x, train=False).equal


def test_compiling_leaves_model_and_randomness_alone() -> None:
    model, x = torchvision.models.resnet18(num_classes=10), torch.randn(2, 3, 32, 32)
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    compiled = fxs.compile(model, fxs.RigL(sparsity=0.9, end=100), (x,))
    compiled.eval()(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


MODELS = ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "vgg11", "densenet121", "shufflenet_v2_x0_5", "squeezenet1_1",
          "regnet_y_400mf", "vit_b_16"]  # fmt: skip
QUICK = ("resnet18", "mobilenet_v3_small", "squeezenet1_1")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS])
def test_budgets_are_exact_after_every_update(name: str) -> None:
    torch.manual_seed(0)
    side = 224 if name == "vit_b_16" else 64
    model = torchvision.models.get_model(name, weights=None)
    x = torch.randn(2, 3, side, side)
    elements = None
    for technique in (
        fxs.GraNet(initial_sparsity=0.5, final_sparsity=0.9, begin=1, end=4, total_steps=8, interval=1),
        fxs.GMP(final_sparsity=0.9, begin=1, end=4, interval=1, scope="layer"),
        fxs.RigL(sparsity=0.9, end=8, interval=1),
    ):
        compiled = fxs.compile(model, technique, (x,), check_graphs=False)
        optimizer = torch.optim.SGD(compiled.parameters(), 1e-3, momentum=0.9)
        compiled.attach(optimizer)
        generator = torch.Generator().manual_seed(0)
        elements = {site: compiled.get_parameter(site).numel() for site in compiled.masks}
        kept = {site: spec.kept for site, spec in compiled.masks.items()}
        for number in range(1, 5):
            for parameter in compiled.parameters():  # what the gradients are does not matter for counts
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            rows = {site: row["weight"] for site, row in compiled.sparsity().items() if site in compiled.masks}
            pruned = number < 4
            sparsity = 0.0
            if isinstance(technique, (fxs.GraNet, fxs.GMP)):
                start, end = technique.initial_sparsity, technique.final_sparsity
                sparsity = end + (start - end) * (1 - (number - 1) / 3) ** 3
            if isinstance(technique, fxs.GraNet) and pruned:
                assert sum(row["kept"] for row in rows.values()) == min(sum(kept.values()), int(sum(elements.values()) * (1 - sparsity)))
            elif isinstance(technique, fxs.GMP) and pruned:
                kept = {site: max(1, int(count * (1 - sparsity))) for site, count in elements.items()}
            if not isinstance(technique, fxs.GraNet):
                assert {site: row["kept"] for site, row in rows.items()} == kept
            for site, row in rows.items():
                assert row["actual"] == row["target"], site
                assert int(torch.count_nonzero(compiled.get_parameter(site))) <= row["kept"]


# Static masks and N:M


def test_a_sparse_model_is_fine_tuned_without_reviving_its_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
    with pytest.raises(fxs.PolicyError, match="no weight of the model has a zero"):
        fxs.StaticMask.from_weights(model)
    with pytest.raises(fxs.PolicyError, match=r"StaticMask can mask none .*: none of its weights is zero"):
        fxs.compile(model, fxs.StaticMask.from_weights(), (torch.randn(4, 8),))
    with torch.no_grad():
        model[0].weight[torch.rand(16, 8) < 0.7] = 0.0
    zeros = (model[0].weight == 0).clone()
    compiled = fxs.compile(model, fxs.StaticMask.from_weights(model), (torch.randn(4, 8),))
    assert list(compiled.masks) == ["0.weight"]
    x = torch.randn(4, 8)
    assert torch.equal(compiled(x), model(x))
    optimizer = torch.optim.AdamW(compiled.parameters(), 1e-2, weight_decay=0.1)
    compiled.attach(optimizer)
    for x, y in batches((6, 8), 6):
        step(compiled, optimizer, x, y)
    assert bool((model[0].weight[zeros] == 0).all())
    assert bool((model[0].weight[~zeros] != 0).all())


def test_static_masks_train_without_an_optimizer_attached() -> None:
    compiled, shape = make("mlp", fxs.StaticMask(sparsity=0.7))
    twin = copy.deepcopy(compiled)
    first, second = sgd(compiled), sgd(twin)
    twin.attach(second)
    for x, y in batches(shape, 4):
        assert torch.equal(step(compiled, first, x, y), step(twin, second, x, y))


def test_by_magnitude() -> None:
    compiled, _ = make("mlp", fxs.StaticMask(sparsity=0.7, start="magnitude", distribution="uniform"))
    for name in compiled.masks:
        weight, mask = compiled.get_parameter(name).detach().abs(), compiled.get_buffer(f"fxsparse.sites.{name}.mask")
        assert float(weight[mask].min()) >= float(weight[~mask].max())


def test_straight_through_follows_the_weights_and_decays_the_masked_ones() -> None:
    torch.manual_seed(0)
    lr, decay = 0.1, 0.01
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    plain = copy.deepcopy(model)
    compiled = fxs.compile(model, fxs.NM(2, 4, straight_through=True, decay=decay), (torch.randn(6, 8),))
    optimizer = torch.optim.SGD(compiled.parameters(), lr)
    compiled.attach(optimizer)

    def chosen(weight: Tensor) -> Tensor:
        groups = weight.detach().abs().reshape(-1, 4)
        return (groups >= groups.topk(2).values[:, -1:]).reshape(weight.shape)

    for x, y in batches((6, 8), 8):
        y = y % 4
        step(compiled, optimizer, x, y)
        masks = [chosen(plain[index].weight) for index in (0, 2)]
        weights = [(plain[index].weight.detach() * mask).requires_grad_() for index, mask in zip((0, 2), masks, strict=True)]
        loss = F.cross_entropy(F.linear(F.linear(x, weights[0]).relu(), weights[1]), y)
        with torch.no_grad():
            for index, weight, mask, grad in zip((0, 2), weights, masks, torch.autograd.grad(loss, weights), strict=True):
                dense = plain[index].weight
                dense -= lr * (grad + decay * dense * ~mask)
                torch.testing.assert_close(model[index].weight, dense, rtol=1e-6, atol=1e-7)
                assert torch.equal(compiled.get_buffer(f"fxsparse.sites.{index}.weight.mask"), chosen(model[index].weight))
                assert weight is not None


def test_growth_by_a_criterion_of_ones_own() -> None:
    compiled, shape = make("mlp", fxs.RigL(sparsity=0.7, end=100, interval=2, drop=Saliency))
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    for x, y in batches(shape, 6):
        step(compiled, optimizer, x, y)
    require_exact(compiled, optimizer)
    assert compiled.regimes[0].spec.drop == Saliency()


# State


def test_a_checkpoint_of_another_policy_is_refused() -> None:
    compiled, _ = make("mlp", fxs.RigL(sparsity=0.7, end=100, interval=2))
    state = compiled.state_dict()
    others = [fxs.RigL(sparsity=0.6, end=100, interval=2), fxs.RigL(sparsity=0.7, end=200, interval=2)]
    for other in (*others, fxs.SET(sparsity=0.7, end=100, interval=2)):
        with pytest.raises(fxs.PolicyError, match=r"saved under another policy: its masks are not those of .*\(sparsity=0.[67]"):
            make("mlp", other)[0].load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        compiled.load_state_dict({key: value for key, value in state.items() if "mask" not in key})


def test_state_is_in_the_state_dict_and_strict() -> None:
    compiled, _ = make("mlp", fxs.RigL(sparsity=0.7, end=100, interval=2))
    added = {key for key in compiled.state_dict() if key.startswith("fxsparse.")}
    assert {"fxsparse.sites.0.weight.mask", "fxsparse.regimes.0.steps", "fxsparse.regimes.0.growing"} <= added
    assert not any("trust" in key for key in added)
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in make("mlp", None)[0].named_parameters()]


def test_batch_norm_is_calibrated_anew() -> None:
    compiled, shape = make("resnet", fxs.StaticMask(sparsity=0.7))
    compiled.eval()
    before, state = copy.deepcopy(compiled.state_dict()), torch.get_rng_state()
    data = [x for x, _ in batches(shape, 5)]
    assert fxs.recalibrate_batch_norm(compiled, ((x,) for x in data), limit=4) == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert not compiled.training
    norm = compiled.get_submodule("block.norm1")
    assert norm.momentum == 0.1
    assert int(norm.num_batches_tracked) == 4
    inputs: list[Tensor] = []
    with torch.no_grad():
        for x in data[:4]:
            first, second = (
                compiled.get_parameter(name) * compiled.get_buffer(f"fxsparse.sites.{name}.mask")
                for name in ("stem.weight", "block.conv1.weight")
            )
            inputs.append(F.conv2d(F.conv2d(x, first, compiled.get_parameter("stem.bias"), 2), second, padding=1))
    torch.testing.assert_close(norm.running_mean, torch.stack([h.mean((0, 2, 3)) for h in inputs]).mean(0))
    changed = {key for key, value in compiled.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all("running" in key or "num_batches" in key for key in changed)
    with pytest.raises(fxs.FxSparseError, match="no BatchNorm with running statistics"):
        fxs.recalibrate_batch_norm(nn.Linear(2, 2), [torch.zeros(1, 2)])
    with pytest.raises(fxs.FxSparseError, match="there is no batch"):
        fxs.recalibrate_batch_norm(compiled, [])


# What a run costs


def test_rigl_of_a_run_is_the_papers_formula() -> None:
    compiled, shape = make("resnet", fxs.RigL(sparsity=0.7, end=1000, interval=4))
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    with pytest.raises(fxs.CostError, match="has seen a step"):
        compiled.run_report()
    for x, y in batches(shape, 10):
        step(compiled, optimizer, x, y)
    report = compiled.run_report("rigl")
    static = compiled.cost(convention="rigl").total.forward
    sparse, dense = static.macs, static.dense_macs
    assert report.steps == 10
    assert report.dense_steps == 2
    assert report.training_multiplier == pytest.approx((3 * sparse * 8 + 2 * (2 * sparse + dense)) / (30 * dense))
    assert report.total_flops == pytest.approx(2 * (3 * sparse * 8 + 2 * (2 * sparse + dense)))
    assert "10 steps of 4 samples, 2 of them with a dense gradient" in str(report)
    assert report.to_dict()["training_multiplier"] == report.training_multiplier


def test_granets_run_follows_the_densities_that_it_had() -> None:
    compiled, shape = make("mlp", fxs.GraNet(initial_sparsity=0.0, final_sparsity=0.8, begin=2, end=8, total_steps=12, interval=2))
    optimizer = sgd(compiled)
    compiled.attach(optimizer)
    sizes = {name: compiled.get_parameter(name).numel() for name in compiled.masks}
    forward, grad_weight = 0.0, 0.0
    for number, (x, y) in enumerate(batches(shape, 10), start=1):
        kept = {name: int(compiled.get_buffer(f"fxsparse.sites.{name}.mask").sum()) for name in sizes}
        forward += sum(kept.values())
        grad_weight += sum(sizes.values()) if number % 2 == 0 else sum(kept.values())
        step(compiled, optimizer, x, y)
    report = compiled.run_report(batch_size=1)
    assert report.macs["forward"] == pytest.approx(forward / 10)
    assert report.macs["grad_weight"] == pytest.approx(grad_weight / 10)
    assert report.dense_macs["forward"] == sum(sizes.values())
    restored, _ = make("mlp", compiled.policy)
    restored.load_state_dict(compiled.state_dict())
    assert restored.run_report(batch_size=1).macs == report.macs


def test_the_cost_of_rigl_on_resnet50_is_the_published_one() -> None:
    model, x = torchvision.models.resnet50(), torch.randn(1, 3, 224, 224)
    for sparsity, forward in ((0.8, 0.4138), (0.9, 0.2418)):
        compiled = fxs.compile(model, fxs.RigL(sparsity=sparsity, end=25000), (x,), check_graphs=False)
        assert 1 - compiled.cost(convention="rigl").reduction["inference"] == pytest.approx(forward, abs=5e-5)
