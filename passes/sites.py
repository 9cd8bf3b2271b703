"""The sites of a model: every parameter that is contracted with an activation, with its calls and their loop bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxsparse.cost_model.workload import Contraction

from .capture.capture import Capture
from .contractions import Operands, find_contractions
from .graph import value


@dataclass(frozen=True, kw_only=True)
class Call:
    """One contraction with a site's weight.

    Attributes:
        graph, variant, node: where it is; ``index`` counts the site's calls within one graph.
        activation_shape: shape of the activation, None if it is not known.
        workload: its loop bounds, None if the shapes are not known.
        problem: why it cannot be rewritten.
        chained: whether the weight reaches it through views. equation: of an einsum.
    """

    graph: str
    variant: int
    node: str
    index: int
    operator: str
    activation_shape: tuple[int, ...] | None
    workload: Contraction | None
    problem: str | None
    chained: bool
    equation: str = ""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A parameter and its contractions.

    Attributes:
        name: the parameter's qualified name, the first one if it is shared. aliases: its other names.
        module, module_types: the module that holds it, and the names of that module's classes.
        operator: of its first call. contracted: dimensions of the weight that its contraction sums over.
        defect: why its weight is not a plain parameter of the model; a technique that selects it is refused.
    """

    name: str
    aliases: tuple[str, ...]
    module: str
    module_types: tuple[str, ...]
    operator: str
    shape: tuple[int, ...]
    contracted: tuple[int, ...]
    groups: int
    trainable: bool
    calls: tuple[Call, ...]
    defect: str | None = None

    @property
    def elements(self) -> int:
        """Elements of the weight."""
        return math.prod(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name under which a pattern can select it."""
        parameters = (self.name, *self.aliases)
        return (*parameters, *(name.rpartition(".")[0] for name in parameters))


def describe(capture: Capture) -> dict[str, Site]:
    """The sites of a captured model by name, in the order in which they are first called."""
    parameters = dict(capture.root.named_parameters(remove_duplicate=False))
    canonical: dict[int, str] = {}
    for name, parameter in parameters.items():
        canonical.setdefault(id(parameter), name)
    batch = batch_size_of(capture)
    found: dict[str, list[tuple[Operands, Call]]] = {}
    for path, variant, gm in graphs_in_order(capture):
        learning = _learning(gm, is_root=path == "")
        counts: dict[str, int] = {}
        for operands in find_contractions(gm):
            target = operands.parameter
            full = _join(path, target)
            known = canonical.get(id(parameters[full])) if full in parameters else (full if target else None)
            name = _join(path, _computed_name(operands.node)) if known is None else known
            needs_grad = learning.get(operands.activation, True)
            shape = _batched(operands, _shape(operands.activation), parameters.get(name))
            call = Call(
                graph=path,
                variant=variant,
                node=operands.node.name,
                index=counts.get(name, 0),
                operator=operands.operator,
                activation_shape=shape,
                workload=_workload(operands, parameters.get(name), batch, needs_grad),
                problem=operands.problem,
                chained=bool(operands.chain),
                equation=operands.arguments.get("equation", ""),
            )
            counts[name] = counts.get(name, 0) + 1
            found.setdefault(name, []).append((operands, call))
    return {name: _site(capture.root, name, parameters, calls) for name, calls in found.items()}


def graphs_in_order(capture: Capture) -> Iterator[tuple[str, int, fx.GraphModule]]:
    """Every graph of a capture with its path and variant: a nested graph right after the one that calls it first."""
    seen: set[str] = set()

    def walk(path: str) -> Iterator[tuple[str, int, fx.GraphModule]]:
        if path in seen:
            return
        seen.add(path)
        for variant, item in enumerate(capture.forwards[path].variants):
            yield path, variant, item.graph_module
        for item in capture.forwards[path].variants:
            for node in item.graph_module.graph.nodes:
                if node.op == "call_module":
                    yield from below(_join(path, str(node.target)))

    def below(path: str) -> Iterator[tuple[str, int, fx.GraphModule]]:
        for other in capture.forwards:
            if other == path or other.startswith(f"{path}."):
                yield from walk(other)

    for path in capture.forwards:
        yield from walk(path)


def execution_order(capture: Capture, sites: dict[str, Site]) -> list[str]:
    """Site names in the order in which a forward pass reaches them, nested graphs in place."""
    by_node: dict[tuple[str, str], list[str]] = {}
    for site in sites.values():
        for call in site.calls:
            if call.variant == 0:
                by_node.setdefault((call.graph, call.node), []).append(site.name)
    order: dict[str, None] = {}

    def walk(path: str) -> None:
        for node in capture.forwards[path].variants[0].graph_module.graph.nodes:
            for name in by_node.get((path, node.name), []):
                order.setdefault(name)
            if node.op == "call_module":
                inner = _join(path, str(node.target))
                for other in capture.forwards:
                    if other != path and (other == inner or other.startswith(f"{inner}.")):
                        walk(other)

    for path in capture.forwards:
        walk(path)
    return [*order, *(name for name in sites if name not in order)]


def _site(root: nn.Module, name: str, parameters: dict[str, nn.Parameter], calls: list[tuple[Operands, Call]]) -> Site:
    parameter = parameters.get(name)
    owner = name.rpartition(".")[0]
    module = _module_at(root, owner)
    aliases = tuple(other for other, tensor in parameters.items() if tensor is parameter and other != name) if parameter is not None else ()
    operands = calls[0][0]
    defect = None
    if parameter is None:
        defect = operands.problem or "its weight is not a parameter of the model"
    shape = tuple(parameter.shape) if parameter is not None else ()
    groups = _groups(operands, root) if operands.operator == "conv_transpose" else 1
    return Site(
        name=name,
        aliases=aliases,
        module=owner,
        module_types=tuple(kind.__name__ for kind in type(module).__mro__ if kind not in (object, nn.Module)) if module is not None else (),
        operator=operands.operator,
        shape=shape,
        contracted=_contracted(operands, shape, groups),
        groups=groups,
        trainable=parameter is not None and parameter.requires_grad,
        calls=tuple(call for _, call in calls),
        defect=defect,
    )


def _computed_name(node: fx.Node) -> str:
    """The name of a site without a parameter, under the module whose Python contracts."""
    return _join(next(reversed(node.meta.get("nn_module_stack") or [""])), f"{node.name}(computed weight)")


def _module_at(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _groups(operands: Operands, root: nn.Module) -> int:
    if isinstance(operands.weight, str):
        owner: Any = operands.node.graph.owning_module
        return int(owner.get_submodule(str(operands.node.target)).groups)
    groups = operands.arguments.get("groups", 1)
    return groups if isinstance(groups, int) else 1


def _contracted(operands: Operands, shape: tuple[int, ...], groups: int) -> tuple[int, ...]:
    """Dimensions of the weight (its first one split into groups if there are several) that are summed over in one output channel."""
    kind = operands.operator
    if kind == "conv_transpose":
        return (0, *range(2, len(shape))) if groups == 1 else (1, *range(3, len(shape) + 1))
    if kind == "einsum":
        _, term, out = _terms(operands.arguments["equation"])
        return tuple(index for index, letter in enumerate(term) if letter not in out)
    return tuple(range(1, len(shape)))


def _terms(equation: str) -> tuple[str, str, str]:
    inputs, _, out = equation.partition("->")
    first, _, second = inputs.partition(",")
    return first, second, out


def _shape(node: Any) -> tuple[int, ...] | None:
    found = value(node)
    return tuple(int(size) for size in found.shape) if isinstance(found, torch.Tensor) else None


def _batched(operands: Operands, shape: tuple[int, ...] | None, weight: torch.Tensor | None) -> tuple[int, ...] | None:
    """The shape of a convolution's input with the batch dimension that an unbatched one lacks."""
    is_conv = operands.operator in ("conv", "conv_transpose")
    return (1, *shape) if shape is not None and is_conv and weight is not None and len(shape) == weight.dim() - 1 else shape


def batch_size_of(capture: Capture) -> int | None:
    """The first size of the root's first tensor input."""
    for path in ("", *capture.forwards):
        if path in capture.forwards:
            for node in capture.forwards[path].variants[0].graph_module.graph.nodes:
                if node.op == "placeholder" and isinstance(value(node), torch.Tensor) and value(node).dim() > 0:
                    return int(value(node).shape[0])
    return None


def _learning(gm: fx.GraphModule, is_root: bool) -> dict[fx.Node, bool]:
    """For each node, whether its value depends on something that learns."""
    learns: dict[fx.Node, bool] = {}
    for node in gm.graph.nodes:
        found = value(node)
        if node.op == "placeholder":
            learns[node] = not is_root or (isinstance(found, torch.Tensor) and found.requires_grad)
        elif node.op == "get_attr":
            learns[node] = isinstance(found, nn.Parameter) and found.requires_grad
        else:
            own = node.op == "call_module" and any(p.requires_grad for p in gm.get_submodule(str(node.target)).parameters())
            learns[node] = own or any(learns[other] for other in node.all_input_nodes)
            if isinstance(found, torch.Tensor) and not (found.is_floating_point() or found.is_complex()):
                learns[node] = False
    return learns


def _workload(operands: Operands, weight: torch.Tensor | None, batch: int | None, needs_grad: bool) -> Contraction | None:
    shape, out = _shape(operands.activation), value(operands.node)
    if shape is None or weight is None or weight.dim() < 1 or batch is None:
        return None
    tensors = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        return None
    made = _loop_bounds(operands, shape, tuple(tensors[0].shape), tuple(weight.shape))
    if made is None:
        return None
    positions = made.batch * made.rows
    split = (batch, positions // batch) if batch > 0 and positions % batch == 0 else (positions, 1)
    return replace(made, batch=split[0], rows=split[1], input_needs_grad=needs_grad, weight_needs_grad=weight.requires_grad)


def _loop_bounds(operands: Operands, x: tuple[int, ...], out: tuple[int, ...], w: tuple[int, ...]) -> Contraction | None:
    kind = operands.operator
    if kind == "grouped":
        return None  # how many rows each matrix gets depends on the data
    if kind in ("conv", "conv_transpose"):
        return _conv_bounds(operands, x, out, w)
    if kind == "recurrent":
        steps_in_rows = operands.arguments["index"] % 2 == 0
        steps = x[1] if operands.node.args[9] else x[0]
        samples = math.prod(x[:-1]) // steps
        rows, repeats = (steps, 1) if steps_in_rows else (1, steps)
        return Contraction(operator="recurrent", batch=samples, rows=rows, repeats=repeats, in_channels=w[1], out_channels=w[0])
    if kind == "einsum":
        first, term, result = _terms(operands.arguments["equation"])
        if len(first) != len(x) or len(term) == 0:
            return None
        sizes = dict(zip(first, x, strict=True))
        weight_sizes = dict(zip(term, _viewed_shape(operands, w), strict=False))
        joint = [letter for letter in term if letter in first and letter in result]
        inner = [letter for letter in term if letter in first and letter not in result]
        outer = [letter for letter in term if letter not in first]
        groups = math.prod(sizes[letter] for letter in joint)
        return Contraction(
            operator="einsum",
            batch=math.prod(size for letter, size in sizes.items() if letter not in term),
            in_channels=groups * math.prod(sizes[letter] for letter in inner),
            out_channels=groups * math.prod(weight_sizes[letter] for letter in outer),
            groups=groups,
        )
    if kind == "bilinear":
        return Contraction(operator="bilinear", batch=math.prod(x[:-1]), in_channels=w[1] * w[2], out_channels=w[0])
    viewed = _viewed_shape(operands, w)
    return Contraction(operator="linear", batch=math.prod(x[:-1]), in_channels=x[-1], out_channels=viewed[0] if len(viewed) > 1 else 1)


def _viewed_shape(operands: Operands, w: tuple[int, ...]) -> tuple[int, ...]:
    last = _shape(operands.chain[-1]) if operands.chain else None
    return last if last is not None else w


def _conv_bounds(operands: Operands, x: tuple[int, ...], out: tuple[int, ...], w: tuple[int, ...]) -> Contraction | None:
    axes = len(w) - 2
    if isinstance(operands.weight, str):
        owner: Any = operands.node.graph.owning_module
        module = owner.get_submodule(str(operands.node.target))
        stride, padding, dilation, groups = module.stride, module.padding, module.dilation, module.groups
    else:
        stride, padding, dilation, groups = (operands.arguments[name] for name in ("stride", "padding", "dilation", "groups"))
    if not isinstance(groups, int):
        return None
    stride, dilation = each_axis(stride, axes), each_axis(dilation, axes)
    kernel = tuple(w[2:])
    if isinstance(padding, str):
        padding = tuple((d * (k - 1)) // 2 for k, d in zip(kernel, dilation, strict=True)) if padding == "same" else (0,) * axes
    return Contraction(
        operator=operands.operator,
        batch=math.prod(x[: -axes - 1]),
        in_channels=x[-axes - 1],
        out_channels=out[-axes - 1],
        groups=groups,
        kernel=kernel,
        stride=stride,
        padding=each_axis(padding, axes),
        dilation=dilation,
        input_size=tuple(x[-axes:]),
        output_size=tuple(out[-axes:]),
    )


def each_axis(number: Any, axes: int) -> tuple[int, ...]:
    """A number or sequence as one number for each axis."""
    if isinstance(number, int):
        return (number,) * axes
    values = tuple(int(item) for item in number)
    return values * axes if len(values) == 1 else values


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
