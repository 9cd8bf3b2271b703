"""The ways in which models hold and call their parts."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsparse as fxs

from .neutral import assert_left, assert_whole, compile_neutral, operators

X = torch.randn(2, 4)
IMAGE = torch.randn(2, 3, 6, 6)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu() + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


HOOKS = ("block", "head", "block.layer", "")


@pytest.mark.parametrize("where", HOOKS)
def test_forward_hooks_fire_and_may_change_the_output(where: str) -> None:
    model = Net()
    seen: list[str] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(type(module).__name__)
        return output * 3

    model.get_submodule(where).register_forward_hook(hook)
    compiled = compile_neutral(model, X)
    seen.clear()
    expected = model(X)
    once = list(seen)
    assert torch.equal(compiled(X), expected)
    assert seen == once * 2


@pytest.mark.parametrize("where", HOOKS)
def test_forward_pre_hooks_fire_and_may_change_the_input(where: str) -> None:
    model = Net()
    calls = []
    model.get_submodule(where).register_forward_pre_hook(lambda module, args: (calls.append(1), (args[0] * 2,))[1])
    compiled = compile_neutral(model, X)
    calls.clear()
    compiled(X)
    assert calls == [1]


@pytest.mark.parametrize("where", HOOKS)
def test_backward_hooks_fire(where: str) -> None:
    model = Net()
    seen = []
    model.get_submodule(where).register_full_backward_hook(lambda module, inputs, outputs: seen.append(1))
    compiled = compile_neutral(model, X)
    seen.clear()
    compiled(X.clone().requires_grad_()).sum().backward()
    assert seen == [1]


@pytest.mark.parametrize("where", ["block", "block.layer", "head"])
def test_hook_registered_on_the_compiled_model_fires(where: str) -> None:
    compiled = fxs.compile(Net(), None, (X,))
    seen: list[Tensor] = []
    try:
        module = compiled.get_submodule(where)
        module.register_forward_hook(lambda module, args, output: seen.append(output))
    except AttributeError:
        pytest.skip("no such module")
    compiled(X)
    if where != "block":  # a module that is dissolved into the graph is not called any more
        assert len(seen) == 1


class SharedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.again = self.block
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.again(self.norm(self.block(self.block(x)))))


def test_module_called_twice_and_under_two_names() -> None:
    compiled = compile_neutral(SharedBlock(), X)
    assert_whole(compiled)
    assert sum(node.op == "call_module" for node in compiled.graphs[""].graph.nodes) == 5


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)))


def test_tied_embedding_and_head_stay_one_parameter() -> None:
    model = TiedLanguageModel()
    compiled = compile_neutral(model, torch.randint(0, 7, (2, 5)))
    assert_whole(compiled)
    assert compiled.head.weight is compiled.embed.weight is model.embed.weight
    assert compiled.sites["embed.weight"].aliases == ("head.weight",)


class TiedFunctional(TiedLanguageModel):
    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(self.body(self.embed(tokens)), self.embed.weight)


def test_embedding_weight_used_as_output_projection() -> None:
    compiled = compile_neutral(TiedFunctional(), torch.randint(0, 7, (2, 5)))
    assert_whole(compiled)
    assert "embed.weight" in compiled.sites


class ScriptPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.script = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return self.script(self.first(x))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_part_is_called_as_it_is() -> None:
    compiled = compile_neutral(ScriptPart(), X)
    assert "" in compiled.graphs
    assert "script" in operators(compiled)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_model_is_refused() -> None:
    with pytest.raises(fxs.TraceError, match=r"TorchScript module.*compile the torch\.nn\.Module that it was scripted from"):
        fxs.compile(torch.jit.script(nn.Sequential(nn.Linear(4, 4))), None, (X,))


def test_forward_replaced_on_an_instance_is_used() -> None:
    model = Net()
    model.block.forward = types.MethodType(lambda self, x: self.layer(x) * 5, model.block)  # type: ignore[method-assign]
    compiled = compile_neutral(model, X)
    assert torch.equal(compiled(X), model(X))
    plain = Net()
    plain.load_state_dict(model.state_dict())
    assert not torch.equal(compiled(X), plain(X))


def test_forward_replaced_on_the_root_is_used() -> None:
    model = Net()
    model.forward = lambda x: model.head(x) * 2  # type: ignore[method-assign]
    compiled = compile_neutral(model, X)
    assert_left(compiled, "", "its forward was replaced on the instance")


class InList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(4, 4), Block()]
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = layer(x)
        return self.head(x)


def test_modules_in_a_plain_list_keep_python() -> None:
    model = InList()
    compiled = compile_neutral(model, X)
    assert_left(compiled, "", "not registered as one of its sub-modules", {"head"})
    assert compiled.hidden[0].weight is model.hidden[0].weight


class TensorAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.table = torch.arange(4.0)
        self.tables = [torch.ones(4), torch.zeros(4)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.table


class TensorInList(TensorAttribute):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.tables[0]


class TensorComputed(TensorAttribute):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (self.table + 1)


def test_tensor_kept_as_plain_attribute_stays_live() -> None:
    model = TensorAttribute()
    compiled = compile_neutral(model, X)
    assert_whole(compiled)
    compiled.table.fill_(3.0)
    assert torch.equal(compiled(X), model(X))


@pytest.mark.parametrize("kind", [TensorInList, TensorComputed])
def test_tensors_in_lists_and_computed_from_attributes_stay_live(kind: type[TensorAttribute]) -> None:
    model = kind()
    compiled = compile_neutral(model, X)
    assert_whole(compiled)
    model.table.fill_(3.0)
    model.tables[0].fill_(4.0)
    assert torch.equal(compiled(X), model(X))


TABLE = torch.ones(4)


class TensorOutside(TensorAttribute):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * TABLE


def test_tensors_that_a_graph_cannot_name_keep_python() -> None:
    compiled = compile_neutral(TensorOutside(), X)
    assert_left(compiled, "", "neither a parameter nor a buffer", {"layer"})


class ParameterOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.tokens = nn.ParameterList([nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))])
        self.named = nn.ParameterDict({"shift": nn.Parameter(torch.randn(4))})
        self.register_buffer("mean", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x) * self.scale + self.named["shift"] - self.mean
        for token in self.tokens:
            x = x + token.exp()
        return x


class ParametersListed(ParameterOutside):
    """A penalty on all parameters, read as a list."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + sum(parameter.sum() for parameter in self.layer.parameters())


def test_parameters_that_are_listed() -> None:
    assert_whole(compile_neutral(ParametersListed(), X))


def test_parameters_outside_contractions() -> None:
    assert_whole(compile_neutral(ParameterOutside(), X))


class LeafNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = x * 1
        kept = x
        x += 1
        x = x * kept.mean()
        return nn.functional.relu_(x - 0.5).flatten(1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_in_place_operators_and_memory_formats(memory_format: torch.memory_format) -> None:
    model = LeafNorm().to(memory_format=memory_format)
    compiled = compile_neutral(model, IMAGE.contiguous(memory_format=memory_format), batches=False)
    assert_whole(compiled)
    fxs.check(compiled, model, (torch.randn(3, 3, 6, 6),)).raise_if_different()


class Aliased(Block):
    """Another name of a tensor sees what is done to it in place."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        other = y
        row = y[0]
        y += 1
        y[0] *= 2
        y /= 3
        return other * 2 + row


class KeepsType(Block):
    """In-place arithmetic keeps the dtype of its left side."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).to(torch.float16).detach()
        y += torch.ones(4, dtype=torch.float64)
        return self.layer(y.float()) + y.element_size()


def test_in_place_arithmetic_is_in_place() -> None:
    compiled = compile_neutral(Aliased(), X)
    assert_whole(compiled)
    assert "iadd" in operators(compiled)
    assert_whole(compile_neutral(KeepsType(), X))


class SetsItems(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).clone()
        y[:, 0] = 0.0
        y[..., 1] += 2
        y[x > 0] = 1.5
        y[0] = x[0]
        out = torch.zeros_like(y)
        out[:, :2] = y[:, :2]
        return out


def test_items_set_on_activations() -> None:
    assert_whole(compile_neutral(SetsItems(), X))


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.filter = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.layer(x)) * self.filter
        return torch.fft.irfft(spectrum, n=4) + torch.view_as_real(torch.complex(x, x))[..., 1] * spectrum.abs().mean()


class ComplexLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_complex_tensors() -> None:
    assert_whole(compile_neutral(Complex(), X))
    assert_whole(compile_neutral(ComplexLinear(), torch.randn(2, 4, dtype=torch.complex64)))


class Inherited(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + self[0].weight.sum()


def test_subclass_of_sequential() -> None:
    assert_whole(compile_neutral(Inherited(nn.Linear(4, 4), nn.ReLU()), X))


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * 2, self.bias)


def test_subclass_of_linear_is_looked_into() -> None:
    model = nn.Sequential(OwnLinear(4, 4))
    compiled = compile_neutral(model, X)
    assert_whole(compiled)
    assert torch.equal(compiled(X), model(X))


class CallsMethod(nn.Module):
    """Uses another method of a part than forward."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.forward(self.block.forward(x)) + self.helper(x)

    def helper(self, x: Tensor) -> Tensor:
        return self.block.layer(x)


def test_methods_of_parts() -> None:
    assert_whole(compile_neutral(CallsMethod(), X))


class Recursive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = self.layer(x)
        return self(x, depth - 1) if depth else x


def test_module_that_calls_itself() -> None:
    compile_neutral(Recursive(), X)


class LeftInTheMiddle(nn.Module):
    """A part with data-dependent Python between traced parts, with a traced part inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Block()
        self.router = Router()
        self.last = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.router(self.first(x)))


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([Block(), nn.Sequential(Block(), nn.Dropout(0.5))])

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[int(x.sum() > 0)](x)


def test_part_that_cannot_be_traced_leaves_the_rest_whole() -> None:
    model = LeftInTheMiddle()
    compiled = compile_neutral(model, X)
    assert_left(compiled, "router", "int() depends on the data", {"", "router.experts.0", "router.experts.1"})
    for x in (X, -X, X.abs(), -X.abs()):
        fxs.check(compiled, model, (x,)).raise_if_different()


class NumpyInside(Block):
    def forward(self, x: Tensor) -> Tensor:
        scale = float(x.detach().numpy().max())
        return self.layer(x) * scale


class ListInside(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * max(x.detach().flatten().tolist())


class PointerInside(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (1.0 if x.data_ptr() else 2.0)


@pytest.mark.parametrize("kind", [NumpyInside, ListInside, PointerInside])
def test_values_read_from_data_keep_python(kind: type[Block]) -> None:
    compiled = compile_neutral(kind(), X)
    assert set(compiled.graphs) == {"layer"}
    assert "depends on the data" in compiled.report.left[""] or "not known before it runs" in compiled.report.left[""]


def test_a_weight_that_is_computed_is_excluded_by_the_module_that_computes_it() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            mean, spread = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
            return F.conv2d(x, (self.weight - mean) / spread, self.bias)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Standardized(4, 4, 3)), nn.Conv2d(4, 2, 1))
    example = torch.randn(2, 3, 8, 8)
    with pytest.raises(fxs.PolicyError, match=r"exclude=\('1\.0',\)"):
        fxs.compile(model, fxs.SWAT(weight_sparsity=0.8, dense_first=False), (example,))
    compiled = fxs.compile(model, fxs.SWAT(weight_sparsity=0.8, dense_first=False, exclude=("1.0",)), (example,))
    assert set(compiled.swat) == {"0.weight", "2.weight"}
