"""What is asked of one model: is it compiled, is it right, does it train, is everything found."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fxsparse as fxs
from fxsparse.passes.capture.graph_forward import GraphForward

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
aten = torch.ops.aten
CONTRACTIONS = {
    *(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.linear, aten.addbmm, aten.mv, aten.addmv, aten.dot),
    *(
        aten._convolution,
        aten.mkldnn_rnn_layer,
        aten.lstm,
        aten.gru,
        aten.rnn_tanh,
        aten._trilinear,
        aten.einsum,
        aten.matmul,
        aten._grouped_mm,
    ),
}


@dataclass
class Verdict:
    """What was found out about one model; None is what was not reached. Times are of the processor: others may run on it too."""

    name: str
    parameters: int = 0
    eager_seconds: float | None = None
    compile_seconds: float | None = None
    graphs: int = 0
    left: dict[str, str] = field(default_factory=dict)
    equal_in_training: str | None = None
    equal_in_evaluation: str | None = None
    step: str | None = None
    missing_sites: list[str] | None = None
    share: float | None = None
    copied: str | None = None
    error: str | None = None

    def compiled(self) -> bool:
        return self.compile_seconds is not None

    def right(self) -> bool:
        return self.equal_in_training == "equal" and self.equal_in_evaluation == "equal"


class Counter(TorchDispatchMode):
    """Every contraction that torch runs with a parameter: which parameter, and whether a graph or Python asked for it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {p.untyped_storage().data_ptr(): name for name, p in reversed(list(model.named_parameters()))}
        self.found: dict[str, int] = {}
        self.inside, self.outside = 0, 0
        self.where = ["python"]

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in CONTRACTIONS:
            leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
            names = [self.names.get(leaf.untyped_storage().data_ptr()) for leaf in leaves if leaf.dim() > 1]
            if any(names) and not all(names):
                for name in names:
                    if name:
                        self.found[name] = self.found.get(name, 0) + 1
                self.inside += self.where[-1] == "graph"
                self.outside += self.where[-1] != "graph"
        return func(*args, **(kwargs or {}))


@contextmanager
def told_apart(counter: Counter, compiled: fxs.CompiledModel) -> Iterator[None]:
    """Lets the counter know whether a graph or a module's own Python runs."""
    original, handles = GraphForward.__call__, []

    def call(self: GraphForward, *args: Any, **kwargs: Any) -> Any:
        counter.where.append("graph")
        try:
            return original(self, *args, **kwargs)
        finally:
            counter.where.pop()

    for path in compiled.report.left:
        module = compiled._root.get_submodule(path)
        if path and path not in compiled.graphs and not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(lambda *_: counter.where.append("python")))
            handles.append(module.register_forward_hook(lambda *_: counter.where.pop() and None))
    with patch.object(GraphForward, "__call__", call):
        yield
    for handle in handles:
        handle.remove()


def short(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def run(model: nn.Module, args: Any, kwargs: Any) -> None:
    """A forward and backward pass."""
    learning = [o for o in tensors_of(model(*args, **kwargs)) if o.requires_grad and (o.is_floating_point() or o.is_complex())]
    total = sum((o.abs() if o.is_complex() else o).float().sum() for o in learning)
    if isinstance(total, torch.Tensor):
        total.backward()


def tensors_of(value: Any) -> list[torch.Tensor]:
    from fxsparse.passes.capture.rebuild import tensors_in

    return tensors_in(value)


def judge(name: str, build: Callable[[], Built]) -> Verdict:
    """Everything that is asked, in order; the first exception ends a question, not the rest."""
    verdict = Verdict(name)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    model, args, kwargs = build()
    model.train()
    verdict.parameters = sum(p.numel() for p in model.parameters())
    reference = copy.deepcopy(model)
    run(reference, args, kwargs)
    learned = {n for n, p in reference.named_parameters() if p.grad is not None}
    finite = all(bool(p.grad.isfinite().all()) for p in reference.parameters() if p.grad is not None)
    started = time.process_time()
    with torch.no_grad():
        reference(*args, **kwargs)
    verdict.eager_seconds = time.process_time() - started
    del reference
    fxs.compile(nn.Linear(1, 1), None, (torch.ones(1, 1),))  # imports what compiling needs
    try:
        started = time.process_time()
        compiled = fxs.compile(model, None, args, example_kwargs=kwargs)
        verdict.compile_seconds = time.process_time() - started
    except Exception as error:
        verdict.error = short(error)
        return verdict
    verdict.graphs = len(compiled.graphs)
    verdict.left = dict(compiled.report.left)
    verdict.equal_in_training = compared(compiled, model, args, kwargs, True)
    verdict.equal_in_evaluation = compared(compiled, model, args, kwargs, False)
    try:
        copied = copy.deepcopy(model)
        counter, own = Counter(copied), Counter(compiled)
        with torch.no_grad(), counter:
            copied.train()(*args, **kwargs)
        with torch.no_grad(), told_apart(own, compiled), own:
            compiled.train()(*args, **kwargs)
        names = {alias: site.name for site in compiled.sites.values() for alias in (site.name, *site.aliases)}
        verdict.missing_sites = sorted(found for found in counter.found if found not in names)
        verdict.share = own.inside / max(1, own.inside + own.outside)
        del copied
    except Exception as error:
        verdict.missing_sites = [short(error)]
    defect = tuple(site.module for site in compiled.sites.values() if site.defect or _is_computed(model, site.module))
    try:
        copied = copy.deepcopy(compiled)
        copied.load_state_dict(compiled.state_dict())
        with torch.no_grad():
            copied(*args, **kwargs)
        kept = [key for key in compiled.state_dict() if not key.startswith("fxsparse.")]
        verdict.copied = "ok" if kept == list(model.state_dict()) else "other names in state_dict"
        del copied, compiled
    except Exception as error:
        verdict.copied = short(error)
    try:
        swat = fxs.SWAT(weight_sparsity=0.8, exclude=defect)
        try:
            sparse = fxs.compile(model, fxs.Policy(swat, fxs.SavedActivations(bits=4)), args, example_kwargs=kwargs)
        except fxs.PolicyError as error:
            if "SavedActivations" not in str(error):
                raise
            sparse = fxs.compile(model, swat, args, example_kwargs=kwargs)
        sparse.train()
        run(sparse, args, kwargs)
        missing = sorted(n for n, p in sparse.named_parameters() if n in learned and p.grad is None)
        infinite = [n for n, p in sparse.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
        verdict.step = f"no gradient: {missing[:3]}" if missing else f"not finite: {infinite[:3]}" if infinite and finite else "ok"
    except Exception as error:
        verdict.step = short(error)
    return verdict


def _is_computed(model: nn.Module, path: str) -> bool:
    """Whether a module's weight is computed (weight_norm and the like), which SWAT refuses."""
    from fxsparse.passes.contractions import module_problem

    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    return is_parametrized(module) or (isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) and "computed" in str(module_problem(module)))


def compared(compiled: fxs.CompiledModel, model: nn.Module, args: Any, kwargs: Any, train: bool) -> str:
    try:
        found = fxs.check(compiled, model, args, example_kwargs=kwargs, train=train)
    except Exception as error:
        return short(error)
    return "equal" if found else str(found).replace("\n", ";")[:300]
