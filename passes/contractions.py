"""Finds, in a graph, every contraction of an activation with a parameter, and says how its operands are laid out.

A weight may reach its contraction through views (``w.t()``, ``w[:n]``, ``w.view(...)``). It may not be computed: a weight
that goes through arithmetic is not the parameter any more, and such a contraction is reported, not rewritten.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

from .capture.recipes import is_composite
from .graph import value
from .masks.apply import apply_mask
from .recurrent import recurrent

_CONV_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_MODULES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONV = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED = {torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3}
_PRODUCTS = {torch.matmul, torch.mm, torch.bmm, torch.mv, operator.matmul, operator.imatmul, "matmul", "mm", "bmm", "mv", "__matmul__"}
_ADDED_PRODUCTS = {torch.addmm, torch.baddbmm, "addmm", "baddbmm"}
_EINSUM = {torch.einsum, torch.functional.einsum}
_GROUPED = frozenset({"_grouped_mm", "grouped_mm", "grouped_mm_fallback"})
_VIEW_METHODS = frozenset(
    [
        "t",
        "transpose",
        "permute",
        "view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "expand",
        "contiguous",
        "flatten",
        "unflatten",
        "chunk",
        "split",
        "narrow",
        "select",
        "__getitem__",
        "to",
        "type",
        "type_as",
        "float",
        "half",
        "bfloat16",
        "double",
        "swapaxes",
        "movedim",
    ]
)
_VIEW_FUNCTIONS = {
    *(torch.t, torch.transpose, torch.permute, torch.reshape, torch.unsqueeze, torch.squeeze, torch.flatten, torch.chunk, torch.split),
    *(torch.narrow, torch.select, torch.swapaxes, torch.movedim, operator.getitem),
}
_VIEW_ATTRIBUTES = frozenset({"T", "mT", "H", "mH"})


@dataclass(frozen=True, kw_only=True)
class Operands:
    """The operands of one contraction in a graph.

    Attributes:
        operator: "conv", "conv_transpose", "linear", "bilinear", "einsum" or "recurrent".
        weight: the node that reads the parameter (masked or not), or the module's own path for a call_module node.
        chain: view nodes between the parameter and the contraction, in order.
        activation: the node of the activation.
        arguments: the other arguments, by the operator's own names.
    """

    node: fx.Node
    operator: str
    weight: fx.Node | str
    activation: Any
    chain: tuple[fx.Node, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def parameter(self) -> str:
        """The path of its weight's parameter, from the graph's module."""
        return self.weight if isinstance(self.weight, str) else path_of(self.weight)


def path_of(weight: fx.Node) -> str:
    """The path of the parameter that a weight's node reads, masked or not."""
    source: Any = weight.args[0] if is_masked(weight) else weight
    return str(source.target)


def is_masked(node: fx.Node) -> bool:
    """Whether a node makes a masked weight of a parameter."""
    return node.target is apply_mask


def find_contractions(gm: fx.GraphModule) -> list[Operands]:
    """Every contraction with a parameter in a graph, in order; those that cannot be rewritten carry their ``problem``."""
    found: list[Operands] = []
    for node in gm.graph.nodes:
        found += contractions_of_node(gm, node)
    return found


def contractions_of_node(gm: fx.GraphModule, node: fx.Node) -> list[Operands]:
    """The contractions that a node computes: none or one, or one for each weight of a recurrent layer."""
    if node.op == "call_module":
        return _of_module(gm, node)
    if node.op == "call_function":
        target: Any = node.target
    elif node.op == "call_method":
        target = str(node.target)
    else:
        return []
    if target in _CONV or target in _TRANSPOSED:
        return _of_convolution(gm, node, transposed=target in _TRANSPOSED)
    if target is F.linear:
        return _two_operands(gm, node, "linear", _named(node, "input", "weight", "bias"))
    if target in (F.bilinear, torch.bilinear):
        arguments = _named(node, "input1", "input2", "weight", "bias")
        return _with_weight(gm, node, "bilinear", arguments, arguments["weight"], arguments["input1"])
    if target in _PRODUCTS:
        return _of_product(gm, node, node.args[0], _second(node), {})
    if target in _ADDED_PRODUCTS:
        arguments = _named(node, "input", "batch1", "batch2", beta=1, alpha=1, aliases={"mat1": "batch1", "mat2": "batch2"})
        return _of_product(gm, node, arguments["batch1"], arguments["batch2"], arguments)
    if target in _EINSUM:
        return _of_einsum(gm, node)
    if target is recurrent:
        return _of_recurrent(gm, node)
    if str(getattr(target, "__name__", "")).partition(".")[0] in _GROUPED and len(node.args) > 1:
        problem = "it multiplies groups of rows with a matrix each (a mixture of experts)"
        found = _with_weight(gm, node, "grouped", {}, node.args[1], node.args[0])
        return [_with_problem(item, problem) for item in found]
    return []


def parameter_of(gm: fx.GraphModule, node: Any) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """The node of the parameter that ``node`` is, or is a view of, and the views in between; None if it is neither.

    A parameter's node is a get_attr, or the masked weight that is made of it.
    """
    chain: list[fx.Node] = []
    while isinstance(node, fx.Node):
        if node.op == "get_attr" or is_masked(node):
            try:
                tensor = operator.attrgetter(path_of(node))(gm)
            except AttributeError:
                return None
            return (node, tuple(reversed(chain))) if isinstance(tensor, nn.Parameter) else None
        if not _is_view(node):
            return None
        chain.append(node)
        node = node.args[0]
    return None


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _VIEW_METHODS
    if node.op == "call_function":
        return node.target in _VIEW_FUNCTIONS or (node.target is getattr and node.args[1] in _VIEW_ATTRIBUTES)
    return False


def _computed_from_parameter(gm: fx.GraphModule, node: Any, depth: int = 12) -> bool:
    """Whether a value is a parameter, or computed from parameters (and buffers) alone."""
    if not isinstance(node, fx.Node) or depth == 0:
        return False
    if parameter_of(gm, node) is not None:
        return True
    if node.op not in ("call_function", "call_method"):
        return False
    inputs = [other for other in node.all_input_nodes if isinstance(value(other), torch.Tensor)]
    return bool(inputs) and all(_computed_from_parameter(gm, other, depth - 1) or _is_buffer(gm, other) for other in inputs)


def _is_buffer(gm: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "get_attr" and isinstance(value(node), torch.Tensor)


def _named(node: fx.Node, *names: str, aliases: dict[str, str] | None = None, **defaults: Any) -> dict[str, Any]:
    arguments = {**dict.fromkeys(names), **defaults}
    arguments.update(zip([*names, *defaults], node.args, strict=False))
    for key, argument in node.kwargs.items():
        arguments[(aliases or {}).get(key, key)] = argument
    return arguments


def _second(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values()), None)


def _with_weight(gm: fx.GraphModule, node: fx.Node, kind: str, arguments: dict[str, Any], weight: Any, activation: Any) -> list[Operands]:
    source = parameter_of(gm, weight)
    if source is not None:
        return [Operands(node=node, operator=kind, weight=source[0], chain=source[1], activation=activation, arguments=arguments)]
    if _computed_from_parameter(gm, weight):
        reason = f"its weight is computed by {weight.target!r}, it is not a parameter"
        return [Operands(node=node, operator=kind, weight="", activation=activation, arguments=arguments, problem=reason)]
    return []


def _two_operands(gm: fx.GraphModule, node: fx.Node, kind: str, arguments: dict[str, Any]) -> list[Operands]:
    if _computed_from_parameter(gm, arguments["input"]):
        return []
    return _with_weight(gm, node, kind, arguments, arguments["weight"], arguments["input"])


def _of_convolution(gm: fx.GraphModule, node: fx.Node, transposed: bool) -> list[Operands]:
    if transposed:
        arguments = _named(node, "input", "weight", bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)
        return _two_operands(gm, node, "conv_transpose", arguments)
    return _two_operands(gm, node, "conv", _named(node, "input", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1))


def _of_module(gm: fx.GraphModule, node: fx.Node) -> list[Operands]:
    module = gm.get_submodule(str(node.target))
    kinds: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
        (_CONV_MODULES, "conv"),
        (_TRANSPOSED_MODULES, "conv_transpose"),
        ((nn.Linear,), "linear"),
        ((nn.Bilinear,), "bilinear"),
    )
    kind = next((name for classes, name in kinds if isinstance(module, classes)), None)
    if kind is None or is_composite(module):
        return []
    problem = module_problem(module)
    if problem is None and kind == "conv_transpose" and (len(node.args) > 1 or node.kwargs.get("output_size") is not None):
        problem = "it is called with output_size"
    return [
        Operands(
            node=node,
            operator=kind,
            weight=f"{node.target}.weight",
            activation=_module_input(node),
            problem=problem,
            arguments={"second": _second(node)} if kind == "bilinear" else {},
        )
    ]


def _module_input(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("input1"))


def module_problem(module: nn.Module) -> str | None:
    """Why a module's weight is not simply the parameter that its forward multiplies with; None if it is."""
    if parametrize.is_parametrized(module):
        return "its weight is parametrized (torch.nn.utils.parametrize)"
    if not isinstance(getattr(module, "weight", None), nn.Parameter):
        return "its weight is computed by a hook (weight_norm or spectral_norm)"
    own: Any = next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules"))
    if type(module).forward is not own.forward:
        return f"{type(module).__name__} has a forward of its own"
    if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
        return "it has forward or backward hooks, which a rewritten node would not call"
    return None


def _of_product(gm: fx.GraphModule, node: fx.Node, left: Any, right: Any, added: dict[str, Any]) -> list[Operands]:
    on_left, on_right = _computed_from_parameter(gm, left), _computed_from_parameter(gm, right)
    if on_left == on_right:
        return []
    weight, activation = (right, left) if on_right else (left, right)
    equation, problem = product_equation(value(activation), value(weight), weight_first=on_left)
    arguments = {"equation": equation, **added}
    found = _with_weight(gm, node, "einsum", arguments, weight, activation)
    return [_with_problem(item, problem) for item in found]


def product_equation(activation: Any, weight: Any, *, weight_first: bool) -> tuple[str, str | None]:
    """The einsum equation "activation,weight->out" of torch.matmul, and why there is none if it cannot be written so."""
    if not isinstance(activation, torch.Tensor) or not isinstance(weight, torch.Tensor):
        return "", "its shapes are not known; pass example inputs"
    first, second = (weight, activation) if weight_first else (activation, weight)
    batch = "abcdefgh"
    deepest = max(first.dim(), second.dim(), 2) - 2
    names = batch[:deepest]
    left = "k" if first.dim() == 1 else names[deepest - (first.dim() - 2) :] + "mk"
    right = "k" if second.dim() == 1 else names[deepest - (second.dim() - 2) :] + "kn"
    for letter in set(left[:-2]) & set(right[:-2]):
        if first.shape[left.index(letter)] != second.shape[right.index(letter)]:
            return "", "its operands are broadcast against each other along a dimension of size 1"
    out = names + ("m" if "m" in left else "") + ("n" if "n" in right else "")
    return (f"{right},{left}->{out}" if weight_first else f"{left},{right}->{out}"), None


def _of_einsum(gm: fx.GraphModule, node: fx.Node) -> list[Operands]:
    equation, operands = node.args[0], list(node.args[1:])
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    weights = [index for index, operand in enumerate(operands) if _computed_from_parameter(gm, operand)]
    if not weights or len(weights) == len(operands):
        return []
    index = weights[0]
    activation = next(operand for position, operand in enumerate(operands) if position != index)
    written, problem = _ordered_equation(equation, operands, index)
    found = _with_weight(gm, node, "einsum", {"equation": written}, operands[index], activation)
    return [_with_problem(item, problem) for item in found]


def _ordered_equation(equation: Any, operands: list[Any], weight: int) -> tuple[str, str | None]:
    if len(operands) != 2 or not isinstance(equation, str):
        return "", "an einsum of two operands and an equation given as text can be sparsified, this one is another"
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if "." in equation or any(len(set(term)) != len(term) for term in terms):
        return "", "its equation has an ellipsis or a repeated index"
    if not arrow:
        letters = "".join(terms)
        out = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    if any(letter not in out + terms[1 - side] for side in (0, 1) for letter in terms[side]):
        return "", "its equation sums over an index of one operand alone"
    return f"{terms[1 - weight]},{terms[weight]}->{out}", None


def _of_recurrent(gm: fx.GraphModule, node: fx.Node) -> list[Operands]:
    weights: Any = node.args[2]
    found = []
    for index, weight in enumerate(weights):
        source = parameter_of(gm, weight)
        shape = value(weight)
        if source is not None and isinstance(shape, torch.Tensor) and shape.dim() == 2:
            arguments = {"index": index}
            found.append(Operands(node=node, operator="recurrent", weight=source[0], activation=node.args[0], arguments=arguments))
    return found


def _with_problem(item: Operands, problem: str | None) -> Operands:
    return item if problem is None else Operands(**{**item.__dict__, "problem": item.problem or problem})


Matcher = Callable[[fx.GraphModule, fx.Node], list[Operands]]
