"""The second way from a module to graphs: recordings of one call, opened for every number of samples where that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from .fake_twin import FakeTwin
from .graph_forward import Facts, Variant
from .open_batch import opened
from .record import Culprit, Recorder, Recording
from .refusals import Diverged, Refused
from .signature import Arguments, CallSignature, object_in

_ATTEMPTS = 24


@dataclass
class Recorded:
    """What recording a module gave.

    Attributes:
        left: why modules below it keep their Python, by path from it. apart: those that only have hooks.
        calls: the arguments of modules that are single calls, by path from the model's root.
    """

    variants: list[Variant]
    left: dict[str, str] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)
    calls: dict[str, Any] = field(default_factory=dict)


class ByExample:
    """Records modules of one model.

    Args:
        probe: gives the twin for another number of samples.
    """

    def __init__(self, twin: FakeTwin, probe: Callable[[], FakeTwin]) -> None:
        self.twin = twin
        self.probe = probe

    def capture(self, module: nn.Module, path: str, example: Arguments, both_modes: bool = True) -> Recorded:
        """The graphs of the module at ``path``: one, or one for each mode if Python branches on that.

        Raises:
            Refused: its own Python must stay.
        """
        twins = self._module(self.twin, path)
        left: dict[str, str] = {}
        for _ in range(_ATTEMPTS):
            try:
                return self._attempt(module, path, example, left, both_modes)
            except Culprit as culprit:
                if culprit.path in ("", *left):
                    raise Refused(str(culprit)) from None
                kind = type(twins.get_submodule(culprit.path))
                left.update({name: str(culprit) for name, other in twins.named_modules() if type(other) is kind and name})
        raise Refused("too many of its parts keep their Python")

    def _attempt(self, module: nn.Module, path: str, example: Arguments, left: dict[str, str], both_modes: bool) -> Recorded:
        variant, recording = self._record(module, path, example, set(left))
        result = Recorded([variant])
        recordings = [recording]
        if recording.flags and both_modes:
            trees = (module, self._module(self.twin, path))
            parts = [tree.get_submodule(name) for tree in trees for name in recording.flags]
            flags = [part.training for part in parts]
            try:
                for part in parts:
                    part.training = not part.training
                variant, recording = self._record(module, path, example, set(left))
            finally:
                for part, flag in zip(parts, flags, strict=True):
                    part.training = flag
            result.variants.append(variant)
            recordings.append(recording)
        called = {str(node.target) for item in recordings for node in item.graph.nodes if node.op == "call_module"}
        result.left = {name: reason for name, reason in left.items() if name in called}
        for item in recordings:
            result.apart |= item.apart
            for name, call in item.calls.items():
                result.calls.setdefault(name, call)
        return result

    def _record(self, module: nn.Module, path: str, example: Arguments, own_python: set[str]) -> tuple[Variant, Recording]:
        signature = CallSignature(type(module).forward, example)
        if not all(isinstance(tensor, torch.Tensor) for tensor in signature.tensors_of_example()):
            raise Refused("the form of its call is not known")
        given = object_in(example)
        if given is not None:
            raise Refused(f"it is given an object of type {given}, which may change from call to call")
        call = self._fresh_call(self.twin, example)
        inputs = signature.tensors(*call)
        recording = Recorder(self.twin, path, own_python).record(signature, call, type(module).forward)
        is_open, least = self._open(recording, signature, module, path, own_python, inputs, example)
        first = next((name for name, parameter in module.named_parameters() if parameter.is_floating_point()), None)
        facts = Facts(
            dtypes=tuple(tensor.dtype for tensor in inputs),
            training=tuple(recording.flags.items()),
            sizes=tuple((None, *tensor.shape[1:]) if move else tuple(tensor.shape) for tensor, move in zip(inputs, is_open, strict=True)),
            least=least,
            parameter=None if first is None else (first, module.get_parameter(first).dtype),
        )
        signature.forget_example()
        _finish(recording.graph)
        return Variant(module, recording.graph, signature, facts), recording

    def _open(
        self,
        recording: Recording,
        signature: CallSignature,
        module: nn.Module,
        path: str,
        own_python: set[str],
        inputs: tuple[torch.Tensor, ...],
        example: Arguments,
    ) -> tuple[list[bool], int]:
        """Which inputs have the samples in their first dimension, and the least number of them that the graph is right for."""
        closed = [False] * len(inputs)
        if not inputs:
            return closed, 0
        probe = self.probe()
        call = self._fresh_call(probe, example)
        others = signature.tensors(*call)
        moves = [a.shape != b.shape for a, b in zip(inputs, others, strict=True)]
        if not any(moves):
            return closed, 0
        source = moves.index(True)
        sizes = (inputs[source].shape[0], others[source].shape[0])
        for own, other in zip(self._module(self.twin, path).modules(), self._module(probe, path).modules(), strict=True):
            if not isinstance(own, torch.jit.ScriptModule):
                other.training = own.training
        try:
            again = Recorder(probe, path, own_python, like=recording, batch=sizes[1]).record(signature, call, type(module).forward)
            if again.batch_read:
                return closed, 0
            opened(recording.graph, again.graph, sizes, source)
        except (Diverged, Refused):
            return closed, 0
        return moves, min(2, sizes[0])

    def _fresh_call(self, twin: FakeTwin, example: Arguments) -> Arguments:
        """The example's call with fake tensors; what is one tensor there is one here."""
        made: dict[int, torch.Tensor] = {}

        def fresh(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in made:
                made[id(tensor)] = self._fresh(twin, tensor)
            return made[id(tensor)]

        args, kwargs = pytree.tree_map_only(torch.Tensor, fresh, example)
        return tuple(args), dict(kwargs)

    @staticmethod
    def _fresh(twin: FakeTwin, tensor: torch.Tensor) -> torch.Tensor:
        """A fake tensor of its own, which nobody else writes to; no leaf if it learns, so that it may be written in place."""
        made = twin.example(tensor)
        if made is tensor and isinstance(tensor, FakeTensor):
            with twin.mode:
                made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        if tensor.requires_grad:
            with twin.mode:
                leaf = made.detach().requires_grad_()
                made = leaf.view_as(leaf)
        return made

    @staticmethod
    def _module(twin: FakeTwin, path: str) -> nn.Module:
        return twin.modules[path] if path else twin.root


def _finish(graph: fx.Graph) -> None:
    """Removes reads that nothing uses, and checks the rest."""
    for node in reversed(list(graph.nodes)):
        if not node.users and (node.op == "get_attr" or (node.target is getattr and node.args[1] == "device")):
            graph.erase_node(node)
    graph.lint()
