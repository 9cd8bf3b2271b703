"""The demo's data, schedule and figures."""

import io
import math
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import fxsparse as fxs
from fxsparse.demo import METHODS, DemoResult, demo_table, measured_densities, methods_of, run_demo
from fxsparse.digits import Digits, Recipe, SmallResNet, accuracy, load_digits, rate, shifted, train

TINY = Recipe(width=4, epochs=1)


@pytest.fixture(scope="module")
def data() -> Digits:
    return load_digits()


def test_the_split_is_stratified_and_its_parts_are_disjoint(data: Digits) -> None:
    assert (len(data.train_labels), len(data.test_labels)) == (1198, 599)
    shares = [labels.bincount(minlength=10) / len(labels) for labels in (data.train_labels, data.test_labels)]
    assert torch.allclose(*shares, atol=2e-3)
    seen = {image.numpy().tobytes() for image in data.train_images}
    assert not any(image.numpy().tobytes() in seen for image in data.test_images)


def test_images_are_scaled_by_the_training_set(data: Digits) -> None:
    assert float(data.train_images.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(data.train_images.std()) == pytest.approx(1.0, abs=1e-5)
    assert float(data.test_images.min()) == pytest.approx(data.black)


def test_shifted_images_are_the_originals_moved_by_at_most_one_pixel() -> None:
    images = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    moved = shifted(images, -1.0, torch.Generator().manual_seed(0))
    padded = torch.full((10, 10), -1.0)
    padded[1:9, 1:9] = images[0, 0]
    expected = {padded[row : row + 8, column : column + 8].numpy().tobytes() for row in range(3) for column in range(3)}
    assert {image.numpy().tobytes() for image in moved} == expected


def test_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    assert [rate(step, 12, 2) for step in range(3)] == [0.5, 1.0, 1.0]
    assert rate(7, 12, 2) == pytest.approx(0.5)
    assert rate(12, 12, 2) == pytest.approx(0.0)
    assert rate(0, 1, 0) == 1.0
    assert rate(1, 1, 1) == 1.0, "a training that is all warm-up"


def test_the_network_has_strided_residual_stages() -> None:
    model = SmallResNet(4)
    assert [module.stride for module in model.modules() if isinstance(module, nn.Conv2d)].count((2, 2)) == 4
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_the_perceptron_has_two_hidden_layers(data: Digits) -> None:
    compiled = train(None, data, Recipe(network="perceptron", width=12, epochs=1), 0)
    assert [site.shape for site in compiled.sites.values()] == [(12, 64), (12, 12), (10, 12)]


def test_training_depends_on_the_seed_alone(data: Digits) -> None:
    state = torch.get_rng_state()
    first = train("swat-u-90", data, TINY, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = train("swat-u-90", data, TINY, seed=1), train("swat-u-90", data, TINY, seed=2)
    weights = [dict(model.named_parameters())["stage2.conv1.weight"] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_training_is_on_one_thread_and_gives_the_others_back(data: Digits) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        seen: list[int] = []
        train(None, data, TINY, 0, lambda loss: seen.append(torch.get_num_threads()))
        assert seen == [1]
        assert torch.get_num_threads() == 3
        with pytest.raises(fxs.PolicyError):
            train("swat-u-9O", data, TINY, 0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_after_epoch_is_told_a_falling_loss(data: Digits) -> None:
    losses: list[float] = []
    train(None, data, Recipe(width=8, epochs=3), 0, losses.append)
    assert len(losses) == 3
    assert losses[2] < losses[0] < 2 * math.log(10)


def test_accuracy_counts_in_eval_mode() -> None:
    class Modes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -x if self.training else x

    model, labels = Modes(), torch.tensor([0, 1, 2, 0])
    assert accuracy(model, torch.eye(3)[[0, 1, 2, 2]], labels) == 0.75
    assert model.training


def test_measured_densities_equal_a_count_by_hand(data: Digits) -> None:
    """The kept elements of every w_hat, and of every a_hat of the last step, over all elements; the dense first layer's included."""
    recipe = Recipe(width=4, epochs=1, batch_size=64)
    compiled = train(fxs.SWAT(weight_sparsity=0.8, period=1), data, recipe, 0)
    kept: list[int] = [0, 0]
    total: list[int] = [0, 0]
    for name, row in compiled.sparsity().items():
        weight = compiled.get_parameter(name)
        state = compiled.fxsparse.site(name)
        kept[0] += weight.numel() if state is None else int((weight.abs() >= state.weight_threshold).sum())
        total[0] += weight.numel()
        elements = row["activation"]["total"] or 64 * 64
        kept[1] += row["activation"]["kept"] or elements
        total[1] += elements
    sizes = [64 * 64, *[64 * 4 * 64] * 3, 64 * 8 * 16, 64 * 4 * 64, 64 * 8 * 16, 64 * 16 * 4, 64 * 8 * 16, 64 * 16]
    assert total[1] == sum(sizes), "every contraction's input, the stem's too"
    assert measured_densities(compiled) == (kept[0] / total[0], kept[1] / total[1])
    assert measured_densities(compiled)[0] == pytest.approx(0.2, abs=0.02)


def test_run_demo_gives_what_train_gives(data: Digits) -> None:
    buffer = io.StringIO()
    results = run_demo(TINY, seeds=(5,), data=data, console=Console(file=buffer, width=100))
    assert [result.method for result in results] == list(METHODS)
    for result in results:
        compiled = train(METHODS[result.method], data, TINY, 5)
        assert result.accuracies == (accuracy(compiled, data.test_images, data.test_labels),)
        assert (result.weight_density, result.activation_density) == measured_densities(compiled)
        reduction = compiled.cost(convention="swat").reduction
        assert (result.training_reduction, result.inference_reduction) == (reduction["training"], reduction["inference"])
        assert result.method in buffer.getvalue()
    dense, uniform, erk, structured = results
    assert (dense.weight_density, dense.activation_density, dense.training_reduction, dense.inference_reduction) == (1, 1, 0, 0)
    assert uniform.weight_density < structured.weight_density < 0.4
    assert erk.training_reduction < uniform.training_reduction


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"width": -1}, "width is -1"),
        ({"network": "resnet"}, "no network 'resnet'; expected one of 'residual'"),
    ],
)
def test_a_recipe_that_trains_nothing_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(fxs.FxSparseError, match=said):
        Recipe(**settings)


def test_no_seed_is_refused() -> None:
    with pytest.raises(fxs.FxSparseError, match="no seed"):
        run_demo(TINY, seeds=())


def test_the_table_says_mean_and_spread() -> None:
    common = {"policy": None, "weight_density": 0.5, "activation_density": 0.25, "training_reduction": 0.1, "inference_reduction": 0.2}
    result = DemoResult(method="dense", accuracies=(0.9, 0.92), seconds=3.0, **common)
    buffer = io.StringIO()
    Console(file=buffer, width=150).print(demo_table([result]))
    assert "91.00 ± 1.41 %" in buffer.getvalue()
    single = DemoResult(method="dense", accuracies=(0.9,), seconds=3.0, **common)
    assert single.std == 0.0


def test_the_demo_of_masks(data: Digits) -> None:
    results = run_demo(TINY, (0,), technique="granet", data=data, console=Console(file=io.StringIO()))
    assert [result.method for result in results] == list(methods_of("granet", 37))
    by_name = {result.method: result for result in results}
    for name, result in by_name.items():
        assert 0 <= result.accuracies[0] <= 1
        assert result.activation_density == 1.0
        if name.endswith(("90 %", "95 %")) and not name.startswith("GraNet"):
            kept = 0.1 if "90" in name else 0.05
            assert result.weight_density == pytest.approx(kept, abs=2e-3)
    assert by_name["RigL 95 %"].training_reduction < by_name["SET 95 %"].training_reduction, "growing by gradients costs dense ones"
    assert by_name["GraNet 95 %"].weight_density < 0.07
    with pytest.raises(fxs.FxSparseError, match="there is no demo of 'granat'"):
        run_demo(TINY, technique="granat", data=data)
