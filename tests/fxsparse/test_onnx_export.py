"""Exported files: accepted by onnx, run by ONNX Runtime with the model's numbers, and as sparse as the model says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import numpy as np
import onnx
import torch
import torchvision
from torch import nn

import fxsparse as fxs
from tests.transformer_models import Transformer, bert_base_like, gpt2_small_like

from .onnx_reference import Recurrent, check, relative_error, resized, stored_weights

POLICIES: dict[str, Callable[[], fxs.Policy]] = {
    "swat": lambda: fxs.Policy(fxs.SWAT(weight_sparsity=0.9)),
    "granet": lambda: fxs.Policy(fxs.GraNet(initial_sparsity=0.9, final_sparsity=0.9, begin=0, end=10, total_steps=20, interval=1)),
    "2:4": lambda: fxs.Policy(fxs.NM(n=2, m=4)),
}


def _tiny_bert() -> nn.Module:
    return Transformer(60, 24, 32, 4, 2, 0.1, causal=False, fused=False)


def _tiny_gpt() -> nn.Module:
    return Transformer(60, 24, 32, 4, 2, 0.1, causal=True, fused=True, tied=True)


def _image(side: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, 3, side, side),)


def _words(count: int, length: int) -> tuple[torch.Tensor, ...]:
    return (torch.arange(length).remainder(count - 1).add(1).reshape(1, -1),)


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    "resnet18": (torchvision.models.resnet18, _image(64)),
    "lstm": (Recurrent, (torch.randn(2, 5, 16),)),
    "bert": (_tiny_bert, _words(60, 8)),
    "gpt": (_tiny_gpt, _words(60, 8)),
}
LARGE: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    **{name: (getattr(torchvision.models, name), _image(224)) for name in ("resnet18", "resnet50", "vgg16_bn", "densenet121")},
    **{name: (getattr(torchvision.models, name), _image(224)) for name in ("mobilenet_v3_small", "efficientnet_b0", "convnext_tiny")},
    **{name: (getattr(torchvision.models, name), _image(224)) for name in ("vit_b_16", "swin_t")},
    "bert": (bert_base_like, _words(30522, 16)),
    "gpt2": (gpt2_small_like, _words(50257, 16)),
}


def _awake(model: nn.Module) -> nn.Module:
    """Gives layers that begin as zeros some values, and batch norms some statistics."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.any()):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
            elif name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model


def _weights(compiled: fxs.CompiledModel) -> dict[str, Any]:
    return {name: row["weight"] for name, row in compiled.sparsity().items()}


def _compare(compiled: fxs.CompiledModel, inputs: tuple[torch.Tensor, ...], path: Path) -> None:
    compiled.export_onnx(path)
    check(path)
    assert fxs.onnx_file(path).sparsity() == _weights(compiled)
    compiled.eval()
    for batch in (1, 3):
        assert relative_error(path, compiled, resized(inputs, batch)) < 1e-4
    initializer = path.with_name("initializer.onnx")
    compiled.export_onnx(initializer, sparse="initializer")
    check(initializer, full=False)
    assert fxs.onnx_file(initializer).sparsity() == _weights(compiled)
    assert relative_error(initializer, compiled, resized(inputs, 2)) < 1e-4


def _pairs() -> list[Any]:
    """Every small model under every policy, most of them only in the slow runs."""
    usual = {("resnet18", "swat"), ("lstm", "granet"), ("bert", "2:4"), ("gpt", "swat")}
    pairs = [(name, policy) for name in SMALL for policy in POLICIES]
    return [pytest.param(*pair, marks=() if pair in usual else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("name", "policy"), _pairs())
def test_small_models(name: str, policy: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, inputs = SMALL[name]
    _compare(fxs.compile(_awake(make()), POLICIES[policy](), inputs), inputs, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", LARGE)
def test_large_models(name: str, policy: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, inputs = LARGE[name]
    _compare(fxs.compile(_awake(make()), POLICIES[policy](), inputs), inputs, tmp_path / "model.onnx")


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.head = nn.Conv2d(16, 32, 3), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


INPUT = (torch.randn(2, 3, 8, 8),)


def _compiled(policy: Any = None) -> fxs.CompiledModel:
    torch.manual_seed(0)
    return fxs.compile(_awake(Net()), policy or fxs.SWAT(weight_sparsity=0.9), INPUT)


def test_the_free_size_is_called_batch(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    _compiled().export_onnx(path)
    graph = onnx.load(path).graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_weights_of_the_file_are_those_of_the_eager_rule_bit_for_bit(tmp_path: Path) -> None:
    compiled = _compiled()
    compiled.export_onnx(tmp_path / "net.onnx")
    count, values = stored_weights(tmp_path / "net.onnx")["second.weight"]
    weight = compiled.get_parameter("second.weight").detach()
    kept = -(-weight.numel() // 10)
    least = weight.abs().flatten().sort(descending=True).values[kept - 1]
    assert count == kept
    assert np.array_equal(values, torch.where(weight.abs() >= least, weight, 0.0).numpy())


def test_zeros_that_a_mask_keeps_are_stored_and_counted(tmp_path: Path) -> None:
    compiled = _compiled(fxs.StaticMask(sparsity=0.9))
    with torch.no_grad():
        compiled.get_parameter("second.weight").zero_()
    wanted = _weights(compiled)["second.weight"]["kept"]
    for form in ("constant", False):
        compiled.export_onnx(tmp_path / "net.onnx", sparse=form)
        assert fxs.onnx_file(tmp_path / "net.onnx").sparsity()["second.weight"]["kept"] == wanted
    compiled.export_onnx(tmp_path / "net.onnx")
    assert stored_weights(tmp_path / "net.onnx")["second.weight"][0] == wanted


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.66, 0.68, 0.99])
def test_a_file_is_never_larger_than_the_dense_one(sparsity: float, tmp_path: Path) -> None:
    compiled = _compiled(fxs.SWAT(weight_sparsity=sparsity, activation_sparsity=0.5))
    sparse = compiled.export_onnx(tmp_path / "sparse.onnx")
    dense = compiled.export_onnx(tmp_path / "dense.onnx", sparse=False)
    assert sparse.size_bytes == (tmp_path / "sparse.onnx").stat().st_size <= dense.size_bytes
    assert ("sparse" in sparse.stored.values()) == (sparsity > 2 / 3)


def test_tied_word_vectors_are_stored_once(tmp_path: Path) -> None:
    make, inputs = SMALL["gpt"]
    compiled = fxs.compile(make(), fxs.SWAT(weight_sparsity=0.5), inputs).eval()
    shared = compiled.export_onnx(tmp_path / "shared.onnx")
    assert "shared" in shared.stored.values()
    assert {"words.weight", "head.weight"} & stored_weights(tmp_path / "shared.onnx").keys() == {"words.weight"}
    assert relative_error(tmp_path / "shared.onnx", compiled, inputs) < 1e-4
    assert fxs.onnx_file(tmp_path / "shared.onnx").sparsity() == _weights(compiled)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    compiled = fxs.compile(Net().to(dtype), fxs.SWAT(weight_sparsity=0.9), (x,)).eval()
    for shown in (False, True):
        compiled.export_onnx(tmp_path / "net.onnx", keep_nodes=shown)
        check(tmp_path / "net.onnx")
        assert fxs.onnx_file(tmp_path / "net.onnx").sparsity() == _weights(compiled)
        if dtype is torch.float16:  # ONNX Runtime has no float64 convolution
            assert relative_error(tmp_path / "net.onnx", compiled, (x,)) < 1e-2


@pytest.mark.parametrize(
    ("policy", "functions"),
    [
        (fxs.SWAT(weight_sparsity=0.9), {"sparsify", "swat_convolution", "swat_linear"}),
        (fxs.SWAT(weight_sparsity=0.5, structure="filter"), {"sparsify_structures", "swat_convolution", "swat_linear"}),
        (fxs.StaticMask(sparsity=0.8), {"masked_weight"}),
    ],
)
def test_nodes_are_kept_as_functions_that_any_runtime_runs(policy: Any, functions: set[str], tmp_path: Path) -> None:
    compiled = _compiled(policy).eval()
    compiled.export_onnx(tmp_path / "net.onnx", keep_nodes=True)
    check(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert {function.name for function in model.functions} == functions
    assert {node.op_type for node in model.graph.node if node.domain == "fxsparse"} == functions
    assert {node.domain for function in model.functions for node in function.node} == {""}
    assert relative_error(tmp_path / "net.onnx", compiled, INPUT) < 1e-4
    assert fxs.onnx_file(tmp_path / "net.onnx").sparsity() == _weights(compiled)


def test_export_in_the_middle_of_training_changes_nothing(tmp_path: Path) -> None:
    def trained(exports: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        compiled = _compiled(fxs.GraNet(initial_sparsity=0.3, final_sparsity=0.8, begin=0, end=8, total_steps=12, interval=2))
        optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1, momentum=0.9)
        compiled.attach(optimizer)
        torch.manual_seed(3)
        for step in range(8):
            optimizer.zero_grad()
            compiled(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
            if exports and step in (2, 5):
                compiled.export_onnx(tmp_path / "net.onnx", compact=step == 5)
                compiled.finalize()
                assert compiled.training
                assert all(module.training for module in compiled.modules())
        return compiled.state_dict(), torch.get_rng_state()

    plain, with_export = trained(False), trained(True)
    assert torch.equal(plain[1], with_export[1])
    assert plain[0].keys() == with_export[0].keys()
    assert all(torch.equal(plain[0][name], with_export[0][name]) for name in plain[0])


def test_a_root_that_keeps_its_python_is_exported_through_its_forward(tmp_path: Path) -> None:
    class Frozen(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = self.norm(self.first(x))
            out: torch.Tensor = self.head(torch.relu(self.second(x)).mean((2, 3)))
            return out

    compiled = fxs.compile(Frozen(), fxs.SWAT(weight_sparsity=0.9, dense_first=False), INPUT).eval()
    assert "" in compiled.report.left
    compiled.export_onnx(tmp_path / "net.onnx")
    assert relative_error(tmp_path / "net.onnx", compiled, INPUT) < 1e-4
    assert fxs.onnx_file(tmp_path / "net.onnx").sparsity() == _weights(compiled)


def test_metadata_can_be_left_out_and_nothing_of_this_machine_is_in_a_file(tmp_path: Path) -> None:
    compiled = _compiled()
    compiled.export_onnx(tmp_path / "plain.onnx", metadata=False)
    compiled.export_onnx(tmp_path / "full.onnx")
    assert not onnx.load(tmp_path / "plain.onnx").metadata_props
    for name in ("plain.onnx", "full.onnx"):
        assert not re.search(rb"site-packages|\.py", (tmp_path / name).read_bytes())


def test_nodes_say_site_densities_and_costs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    compiled = fxs.compile(Net(), fxs.SWAT(weight_sparsity=0.9), INPUT, accelerator="eyeriss")
    compiled.export_onnx(tmp_path / "net.onnx")
    facts = {row["site"]: row for row in fxs.onnx_file(tmp_path / "net.onnx").node_facts()}
    costs = {node.site: node for node in compiled.cost("eyeriss").nodes if node.site and node.contractions}
    assert set(facts) == {"first.weight", "second.weight", "head.weight"}
    for site, row in facts.items():
        assert row["accelerator"] == "eyeriss"
        assert row["density"] == _weights(compiled)[site]["actual"]
        for which in ("forward", "grad_input", "grad_weight"):
            assert row[which]["flops"] == pytest.approx(getattr(costs[site], which).flops, rel=1e-5)
            assert row[which]["cycles"] == getattr(costs[site], which).cycles
