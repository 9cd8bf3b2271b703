"""What autograd saves of a compiled model: positions and values of sparse activations, and no copy of a dense operand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .swat_reference import compiled_copy


class Chain(nn.Module):
    """Contractions with nothing between them that would save a value of its own."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Einsums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8, 9)), nn.Parameter(torch.randn(7, 9))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(torch.einsum("btc,cd->btd", x, self.a), self.b.t())


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(8, 6, num_layers=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: Chain(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=2, stride=2), nn.ConvTranspose2d(6, 4, 2)), (2, 3, 9, 9)),
    "padded conv": (lambda: Chain(nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.Conv2d(6, 6, 4, padding="same")), (2, 3, 9, 9)),
    "linear": (lambda: Chain(nn.Linear(8, 7), nn.Linear(7, 6), nn.Linear(6, 5)), (4, 3, 8)),
    "einsum": (Einsums, (4, 3, 8)),
    "LSTM": (lambda: Recurrent(nn.LSTM), (5, 3, 8)),
    "GRU": (lambda: Recurrent(nn.GRU), (5, 3, 8)),
}


class Operands(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps the activations that SWAT contractions are given, and the values of them that are to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.dense: list[Tensor] = []
        self.values: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fxsparse" and func._opname.startswith("swat_"):
            self.dense.append(args[0].detach())
            names = [argument.name for argument in func._schema.arguments]
            found = dict(zip(names, args, strict=False))
            if found.get("scheme", "exact") != "exact":
                self.values.append(found["values"].detach())
        return func(*args, **(kwargs or {}))


def run(compiled: nn.Module, x: Tensor) -> tuple[list[Tensor], Operands]:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    operands = Operands()
    with operands, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compiled(x)
    return saved, operands


def shares(a: Tensor, b: Tensor) -> bool:
    return a.numel() > 0 and b.numel() > 0 and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def has_values(saved: Tensor, dense: Tensor) -> bool:
    """Whether a saved tensor holds all values of a dense one, in whatever order."""
    a, b = saved.detach().flatten().sort().values, dense.detach().flatten().sort().values
    return a.shape == b.shape and torch.equal(a, b)


def offenders(compiled: nn.Module, x: Tensor) -> list[str]:
    saved, operands = run(compiled, x)
    assert operands.dense
    assert saved
    found = [
        f"activation {i}"
        for i, dense in enumerate(operands.dense)
        for s in saved
        if dense.any() and (shares(s, dense) or has_values(s, dense))
    ]
    weights = [(name, p) for name, p in compiled.named_parameters() if p.dim() > 1]
    return found + [name for name, weight in weights for s in saved if not shares(s, weight) and has_values(s, weight)]


@pytest.mark.parametrize("structure", ["element", "filter"])
@pytest.mark.parametrize("name", MODELS)
def test_no_dense_operand_is_saved(name: str, structure: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    if structure == "filter" and name == "einsum":
        structure = "element"
    x = torch.randn(shape, requires_grad=True)
    compiled = compiled_copy(make(), x, structure=structure, weight_sparsity=0.5)
    assert not compiled.report.skips
    for _ in range(2):
        assert offenders(compiled, x) == []


def test_the_search_finds_what_a_dense_layer_saves() -> None:
    """What the test above looks for is there when nothing is sparsified."""
    torch.manual_seed(0)
    x = torch.randn(4, 8, requires_grad=True)
    weights_only = compiled_copy(Chain(nn.Linear(8, 7)), x, activation_sparsity=0.0)
    assert offenders(weights_only, x) == ["activation 0"]

    class Copied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(7, 8))
            self.layer = nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(F.linear(x, self.weight.clone()))

    assert "weight" in offenders(compiled_copy(Copied(), x, include=("layer",)), x)


@pytest.mark.parametrize("name", ["conv", "linear", "einsum"])
def test_the_kept_values_are_saved_once(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    x = torch.randn(shape, requires_grad=True)
    compiled = compiled_copy(make(), x, weight_sparsity=0.5)
    saved, operands = run(compiled, x)
    assert len(operands.values) == len(operands.dense)
    assert all(sum(shares(s, values) for s in saved) == 1 for values in operands.values)
    for dense, values in zip(operands.dense, operands.values, strict=True):
        assert values.numel() == (dense.numel() + 1) // 2
        assert torch.equal(values.abs().sort().values, dense.abs().flatten().sort().values[-values.numel() :])


def test_bytes_that_are_saved() -> None:
    """At 90 %: half a bit for a position and a tenth of the values; the weight follows from the parameter and its threshold."""
    torch.manual_seed(0)
    x = torch.randn(64, 128, requires_grad=True)
    compiled = compiled_copy(nn.Linear(128, 32), x, weight_sparsity=0.9)
    saved, _ = run(compiled, x)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in compiled.parameters()}
    own = {s.untyped_storage().data_ptr(): s.untyped_storage().nbytes() for s in saved}
    elements = x.numel()
    kept = sum(size for storage, size in own.items() if storage not in parameters)
    assert kept < elements * (0.6 / 8 + 4 * 0.1) + 16


def test_without_a_gradient_for_the_input_its_weight_is_not_saved() -> None:
    x = torch.randn(4, 8)
    compiled = compiled_copy(nn.Linear(8, 7), x)
    saved, operands = run(compiled, x)
    weight = compiled.get_parameter("weight")
    assert not any(shares(s, weight) or s.shape == weight.shape for s in saved)
    assert sum(shares(s, operands.values[0]) for s in saved) == 1


def test_autocast_saves_the_cast_sparse_operands() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8, requires_grad=True)
    compiled = compiled_copy(Chain(nn.Linear(8, 7), nn.Linear(7, 6)), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert offenders(compiled, x) == []
        saved, operands = run(compiled, x)
    assert {values.dtype for values in operands.values} == {torch.bfloat16}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in compiled.parameters()}
    wide = [s for s in saved if s.dtype == torch.float32 and s.untyped_storage().data_ptr() not in parameters]
    assert all(s.numel() <= 1 for s in wide)


def test_memory_that_a_chain_holds_is_its_sparse_operands() -> None:
    """Nothing keeps the dense activation alive after the forward pass."""
    import gc
    import weakref

    x = torch.randn(4, 8)
    first, second = nn.Linear(8, 16), nn.Linear(16, 4)
    compiled = compiled_copy(Chain(first, second), x)
    alive: list[Any] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.fxsparse.swat_linear.default:
                alive.append(weakref.ref(args[0].untyped_storage()))
            return func(*args, **(kwargs or {}))

    with Watch():
        out = compiled(x)
    gc.collect()
    assert out.requires_grad
    assert alive[1]() is None
    assert F.mse_loss(out, torch.zeros_like(out)).requires_grad
