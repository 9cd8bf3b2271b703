"""The four kinds of workload, and the way back from a dictionary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

from fxsparse.errors import CostError

from .attention import Attention
from .pointwise import Pointwise
from .recurrent import Recurrent
from .validate import closest
from .workload import Contraction

Workload: TypeAlias = Contraction | Attention | Recurrent | Pointwise

KINDS: dict[str, type[Contraction] | type[Attention] | type[Recurrent] | type[Pointwise]] = {
    "contraction": Contraction,
    "attention": Attention,
    "recurrent": Recurrent,
    "pointwise": Pointwise,
}


def workload_from_dict(values: dict[str, Any]) -> Workload:
    """The workload that some `to_dict` described, whichever its kind.

    Raises: CostError for a missing or unknown "kind".
    """
    kind = values.get("kind")
    if kind not in KINDS:
        raise CostError(f"workload kind is {kind!r}; expected one of {', '.join(map(repr, KINDS))}{closest(kind, KINDS)}")
    return KINDS[kind].from_dict(values)


def contractions_of(workload: Workload) -> tuple[Contraction, ...]:
    """The matrix products inside a workload: itself, those of an attention or of a recurrent layer, or none."""
    if isinstance(workload, Contraction):
        return (workload,)
    if isinstance(workload, (Attention, Recurrent)):
        return workload.contractions()
    return ()


def without_input_gradient(workload: Workload) -> Workload:
    """The same workload when its input is the network's own, for which no gradient is taken."""
    if isinstance(workload, Pointwise):
        return replace(workload, backward_read_bytes=0, backward_write_bytes=0, backward_flops=0, backward_made_bytes=0)
    return replace(workload, input_needs_grad=False)
