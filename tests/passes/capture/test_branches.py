"""What Python asks about its inputs: answered as in the model's own run, never frozen for calls that would answer otherwise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsparse as fxs

from .neutral import assert_left, assert_whole, compile_neutral

X = torch.randn(2, 4)
IMAGE = torch.randn(2, 3, 6, 6)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)


def agree(compiled: fxs.CompiledModel, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Both give the same for this call, in both modes."""
    for train in (True, False):
        fxs.check(compiled, model, args, example_kwargs=kwargs, train=train).raise_if_different()


class Optional(Layers):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.a(x)
        if mask is None:
            return self.b(x)
        return x * mask


@pytest.mark.parametrize("first", [(X,), (X, torch.ones(2, 4)), (X, None)])
def test_optional_input_given_or_not_gets_a_graph_each(first: tuple[Any, ...]) -> None:
    model = Optional()
    compiled = compile_neutral(model, *first)
    assert_whole(compiled)
    for args, kwargs in [((X,), {}), ((X, torch.randn(2, 4)), {}), ((X,), {"mask": torch.randn(2, 4)}), ((X, None), {})]:
        agree(compiled, model, *args, **kwargs)


class Attention(Layers):
    """`x or default` on an optional tensor."""

    def forward(self, x: Tensor, bias: Tensor | None = None, *, scale: float | None = None) -> Tensor:
        bias = self.a.bias if bias is None else bias
        scale = scale or 0.5
        return self.b(x) * scale + bias


def test_keyword_only_number_with_several_values() -> None:
    model = Attention()
    compiled = compile_neutral(model, X)
    for scale in (None, 2.0, 3.0, 0.0):
        agree(compiled, model, X, scale=scale)
        agree(compiled, model, X, torch.randn(4), scale=scale)


class Instance(Layers):
    def forward(self, x: Any) -> Tensor:
        if isinstance(x, Tensor):
            return self.a(x)
        if isinstance(x, dict):
            return self.b(x["x"])
        if isinstance(x, (list, tuple)):
            return self.b(torch.stack(list(x)).sum(0))
        raise TypeError("neither")


@pytest.mark.parametrize("example", [X, {"x": X}, [X, 2 * X], (X, 2 * X, 3 * X)])
def test_isinstance_decides_as_in_eager(example: Any) -> None:
    model = Instance()
    compiled = compile_neutral(model, example)
    assert_whole(compiled)
    for other in (X, {"x": X}, [X, 2 * X], (X, 2 * X, 3 * X)):
        agree(compiled, model, other)


class IsTensor(Layers):
    def forward(self, x: Any) -> Tensor:
        x = self.a(x)
        return self.b(x) if torch.is_tensor(x) else x


def test_is_tensor_of_an_activation() -> None:
    assert_whole(compile_neutral(IsTensor(), X))


class TypeOf(Layers):
    def forward(self, x: Any) -> Tensor:
        x = self.a(x)
        return self.b(x) if type(x) is Tensor else x


def test_type_of_an_activation() -> None:
    assert_left(compile_neutral(TypeOf(), X), "", "it compares type(x)")


class Caught(Layers):
    def forward(self, x: Tensor) -> Tensor:
        try:
            y = self.a(x) @ torch.ones(x.shape[0], 4)
        except RuntimeError:
            y = self.b(x)
        return y


def test_try_around_tensor_code_keeps_its_python() -> None:
    model = Caught()
    compiled = compile_neutral(model, X)
    assert_left(compiled, "", "try/except", {"a", "b"})
    agree(compiled, model, torch.randn(4, 4))


class CaughtLeaf(Layers):
    """Only a layer is called inside the guarded block."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.a(x)
        except RuntimeError:
            x = x * 2
        return x


class CaughtChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.child(x)
        except RuntimeError:
            return x


@pytest.mark.parametrize("kind", [CaughtLeaf, CaughtChild])
def test_try_around_a_sub_module_keeps_its_python(kind: type[nn.Module]) -> None:
    model = kind()
    compiled = compile_neutral(model, X)
    assert "try/except" in compiled.report.left[""]
    assert torch.equal(compiled(torch.ones(2, 5)), model(torch.ones(2, 5)))


class CaughtBare(Layers):
    """Swallows everything, the tracer's own refusal included."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            positive = bool(x.sum() > 0)
        except Exception:
            positive = True
        return self.a(x) if positive else self.b(x)


def test_refusal_swallowed_by_the_model_still_counts() -> None:
    model = CaughtBare()
    compiled = compile_neutral(model, X)
    assert "" in compiled.report.left
    agree(compiled, model, X.abs())
    agree(compiled, model, -X.abs())


class TryElsewhere(Layers):
    """A handler around Python that touches no tensor is harmless."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            factor = {"a": 1}["b"]
        except KeyError:
            factor = 3
        return self.a(x) * factor


def test_try_around_plain_python_is_traced() -> None:
    assert_whole(compile_neutral(TryElsewhere(), X))


class DataDependent(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else self.b(x)


class DataDependentItem(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum().item() > 0 else self.b(x)


@pytest.mark.parametrize("kind", [DataDependent, DataDependentItem])
def test_branch_on_data_keeps_its_python(kind: type[Layers]) -> None:
    model = kind()
    compiled = compile_neutral(model, X)
    assert_left(compiled, "", "a branch depends on the data", {"a", "b"})
    agree(compiled, model, X.abs())
    agree(compiled, model, -X.abs())


class LoopOnData(Layers):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().max()) + 1):
            x = self.a(x).clamp(-1, 1)
        return x


def test_loop_length_from_data_keeps_its_python() -> None:
    model = LoopOnData()
    compiled = compile_neutral(model, X)
    assert_left(compiled, "", "int() depends on the data", {"a", "b"})
    agree(compiled, model, 5 * X)


class OnBatch(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.shape[0] > 3 else self.b(x)


class OnLen(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if len(x) > 3 else self.b(x)


class OnNumel(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.numel() > 12 else self.b(x)


@pytest.mark.parametrize("kind", [OnBatch, OnLen, OnNumel])
def test_branch_on_the_batch_size_gets_a_graph_for_each_size(kind: type[Layers]) -> None:
    model = kind()
    compiled = compile_neutral(model, X)
    assert_whole(compiled)
    for size in (1, 2, 3, 5):
        agree(compiled, model, torch.randn(size, 4))


class LoopOverBatch(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(row) for row in x])


def test_iteration_over_the_batch_gets_a_graph_for_each_size() -> None:
    model = LoopOverBatch()
    compiled = compile_neutral(model, X)
    assert_whole(compiled)
    agree(compiled, model, torch.randn(3, 4))


class LoopOverTokens(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(token) for token in x.unbind(1)], 1)


def test_iteration_over_a_fixed_dimension_is_specialised() -> None:
    model = LoopOverTokens()
    compiled = compile_neutral(model, torch.randn(2, 3, 4))
    agree(compiled, model, torch.randn(2, 5, 4))


class OnSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.b = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.shape[-1] > 4 else self.b(x)


class OnSpaceUnpacked(OnSpace):
    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        return self.a(x) if height * width > 16 else self.b(x)


@pytest.mark.parametrize("kind", [OnSpace, OnSpaceUnpacked])
def test_branch_on_the_image_size_gets_a_graph_for_each(kind: type[nn.Module]) -> None:
    model = kind()
    compiled = compile_neutral(model, IMAGE)
    assert_whole(compiled)
    for size in (3, 4, 6, 8):
        agree(compiled, model, torch.randn(2, 3, size, size))
        agree(compiled, model, torch.randn(5, 3, size, size))


def test_more_forms_than_are_kept_run_in_parts_that_are_rewritten() -> None:
    model = OnSpace()
    compiled = fxs.compile(model, fxs.SWAT(weight_sparsity=0.5, dense_first=False), (IMAGE,))
    for size in (3, 4, 5, 7, 8, 9, 10):
        compiled(torch.randn(1, 3, size, size))
    assert len(compiled._forwards[""].variants) == 8
    for each in (compiled, copy.deepcopy(compiled)):
        x = torch.randn(1, 3, 11, 11)
        each.eval()
        kept = torch.where(compiled.a.weight.abs() >= compiled.fxsparse.sites.a.weight.weight_threshold, compiled.a.weight, 0.0)
        assert not torch.equal(each(x), model(x))
        assert int((kept == 0).sum()) == kept.numel() // 2
    assert len(compiled._forwards[""].variants) == 8


def test_more_forms_than_are_kept_fall_back_to_python_where_nothing_was_rewritten() -> None:
    model = OnSpace()
    compiled = fxs.compile(model, None, (IMAGE,))
    for size in range(3, 16):
        x = torch.randn(1, 3, size, size)
        assert torch.equal(compiled(x), model(x))
    assert len(compiled._forwards[""].variants) == 8


class OnRank(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            x = x.mean(1)
        return self.a(x) if x.ndim == 2 else self.b(x)


def test_branch_on_the_rank_gets_a_graph_for_each() -> None:
    model = OnRank()
    compiled = compile_neutral(model, X)
    assert_whole(compiled)
    agree(compiled, model, torch.randn(2, 3, 4))


class OnDtype(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.int64:
            x = x.float() / 10
        return self.a(x) if x.is_floating_point() else self.b(x)


def test_branch_on_the_dtype_gets_a_graph_for_each() -> None:
    model = OnDtype()
    compiled = compile_neutral(model, X)
    assert_whole(compiled)
    agree(compiled, model, torch.arange(8).reshape(2, 4))


class OnLayout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * (2 if x.is_contiguous() else 3)


def test_branch_on_the_memory_layout_is_not_frozen() -> None:
    model = OnLayout()
    compiled = compile_neutral(model, IMAGE)
    agree(compiled, model, IMAGE.to(memory_format=torch.channels_last))
    agree(compiled, model, IMAGE)


class OnStride(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * (2 if x.stride(1) == 1 else 3)


def test_branch_on_strides_is_not_frozen() -> None:
    model = OnStride()
    compiled = compile_neutral(model, IMAGE)
    agree(compiled, model, IMAGE.to(memory_format=torch.channels_last))
    agree(compiled, model, IMAGE)


class Shapes(Layers):
    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        y = self.a(x).view(batch * tokens, width)
        y = self.b(y).view(*x.shape[:2], -1)
        y = y.reshape(x.size(0), -1, int(x.shape[2]))
        y = y.transpose(1, 2).reshape((batch, width, tokens))
        shape = list(x.shape[:-1])
        return y.transpose(1, 2).reshape([*shape, width]) / x.size()[1] + torch.zeros(batch, 1, width)


def test_shape_arithmetic_keeps_the_batch_open() -> None:
    model = Shapes()
    compiled = compile_neutral(model, torch.randn(2, 3, 4))
    assert_whole(compiled)
    agree(compiled, model, torch.randn(5, 3, 4))
    agree(compiled, model, torch.randn(5, 7, 4))


class Windows(nn.Module):
    """Pads to a multiple, as window attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        pad = (4 - x.shape[-1] % 4) % 4
        x = nn.functional.pad(x, (0, pad, 0, pad))
        return self.a(x) if pad else self.a(x) + 1


def test_padding_computed_from_the_size() -> None:
    model = Windows()
    compiled = compile_neutral(model, IMAGE)
    for size in (4, 5, 8):
        agree(compiled, model, torch.randn(2, 3, size, size))


class StaticLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 3)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for index, layer in enumerate(self.layers[:-1]):
            x = layer(x) + index
        x = self.layers[-1](x)
        return {name: head(x) for name, head in self.heads.items()}


def test_loops_over_module_containers() -> None:
    compiled = compile_neutral(StaticLoop(), X)
    assert_whole(compiled)
    assert [node.target for node in compiled.graphs[""].graph.nodes if node.op == "call_module"] == [
        "layers.0",
        "layers.1",
        "layers.2",
        "heads.a",
        "heads.b",
    ]


class Asserting(Layers):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 2, "two dimensions"
        assert x.shape[1] == 4
        torch._assert(x.shape[1] == self.a.in_features, f"width {x.shape} of {x.shape[0]}")
        return self.a(x)


def test_assertions_on_shapes_are_traced() -> None:
    assert_whole(compile_neutral(Asserting(), X))


class Contains(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if 1.0 in x else self.b(x)


def test_containment_keeps_its_python() -> None:
    model = Contains()
    compiled = compile_neutral(model, X)
    agree(compiled, model, torch.ones(2, 4))
    assert_left(compiled, "", "contained in a tensor")


class Printing(Layers):
    def forward(self, x: Tensor) -> Tensor:
        text = f"{x.shape[0]}"
        return self.a(x) * len(text)


def test_batch_size_through_text_is_not_frozen() -> None:
    model = Printing()
    compiled = compile_neutral(model, X)
    agree(compiled, model, torch.randn(12, 4))


class AsKey(Layers):
    def forward(self, x: Tensor) -> Tensor:
        table = {2: 1.0, 4: 5.0}
        return self.a(x) * table.get(x.shape[0], 9.0)


def test_batch_size_as_a_dictionary_key_is_not_frozen() -> None:
    model = AsKey()
    compiled = compile_neutral(model, X)
    agree(compiled, model, torch.randn(7, 4))


class ShapeEqual(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.shape == (2, 4) else self.b(x)


class ShapesEqual(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return y + x if y.shape == x.shape else y


def test_shape_compared_with_a_constant_is_not_frozen() -> None:
    model = ShapeEqual()
    compiled = compile_neutral(model, X)
    agree(compiled, model, torch.randn(3, 4))


def test_shapes_compared_with_each_other() -> None:
    compile_neutral(ShapesEqual(), X)
