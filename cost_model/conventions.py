"""Four ways in which papers and tools count the MACs of a training step, each under its own name.

exact  what is multiplied: no grad-input for an input that needs none, groups right, padding zeros counted unless asked.
torch  equal to torch.utils.flop_counter (2.14), its errors included: grad-weight of grouped convolutions times groups; fused
       attention and the fused LSTM 0 on the CPU, every fused recurrent layer 0 on CUDA, attention never causal, bilinear 0.
swat   conv and linear only; grad-input of a strided layer at input resolution (times the product of the strides), the first
       layer's included although nobody needs it. Source: derived from Raihan & Aamodt 2020, reproduces their tables.
rigl   backward = 2 x forward for every contraction, the first layer included. Source: Evci et al. 2020, appendix on FLOPs.

The sparse rules: "swat" multiplies forward and grad-input by the weight's density and grad-weight by the activation's;
"masked" multiplies all three by the weight's; "growing" is masked with a dense grad-weight (the steps that grow weights).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum, prod
from typing import NamedTuple

from fxsparse.errors import CostError

from .attention import Attention
from .gemm import PASSES
from .recurrent import Recurrent
from .validate import require_count, require_density, require_member
from .workload import Contraction
from .workloads import Workload, without_input_gradient

CONVENTIONS = ("exact", "torch", "swat", "rigl")
RULES = ("swat", "masked", "growing")


class PassMacs(NamedTuple):
    """Dense MACs of the three passes."""

    forward: int
    grad_input: int
    grad_weight: int


class SparsePassMacs(NamedTuple):
    """Expected MACs of the three passes of a sparse workload; an integer where the density is 1."""

    forward: float
    grad_input: float
    grad_weight: float


def pass_macs(
    workload: Workload, convention: str = "exact", *, is_first: bool = False, padding_zeros: bool = True, device: str = "cpu"
) -> PassMacs:
    """Dense MACs of forward, grad-input and grad-weight under one convention.

    is_first: the input is the network's own, so no gradient is taken for it (exact and torch count 0; swat and rigl count it).
    padding_zeros: False leaves products with padding zeros out (exact only). device: "cpu" or "cuda" (torch only).
    Raises: CostError for an unknown convention. Source: see this file's head.
    """
    require_member("convention", convention, CONVENTIONS)
    require_member("device", device, ("cpu", "cuda"))
    if not padding_zeros and convention != "exact":
        raise CostError(f"padding_zeros=False belongs to convention 'exact'; got {convention!r}")
    if convention == "swat":
        return _swat(workload)
    if convention == "rigl":
        return PassMacs(workload.macs("forward"), workload.macs("forward"), workload.macs("forward"))
    if is_first:
        workload = without_input_gradient(workload)
    if convention == "torch":
        return _torch(workload, device)
    if isinstance(workload, Contraction) and not padding_zeros:
        unpadded = workload.unpadded_forward_macs
        return PassMacs(*(unpadded if workload.macs(which) else 0 for which in PASSES))
    return PassMacs(*(workload.macs(which) for which in PASSES))


def _torch(workload: Workload, device: str) -> PassMacs:
    fused = isinstance(workload, Recurrent) and (device == "cuda" or (workload.cell == "lstm" and not workload.projection_size))
    if fused or workload.operator == "bilinear":
        return PassMacs(0, 0, 0)
    if isinstance(workload, Attention):
        if device == "cpu" and workload.backward != "math":
            return PassMacs(0, 0, 0)
        pairs = workload.batch * workload.heads * workload.query_length * workload.key_length
        forward = pairs * (workload.head_size + workload.value_size)
        recomputed = pairs * workload.head_size if workload.backward != "math" else 0
        return PassMacs(forward, 2 * forward + recomputed if workload.input_needs_grad else 0, 0)
    forward, grad_input, grad_weight = (workload.macs(which) for which in PASSES)
    if isinstance(workload, Contraction) and workload.operator in ("conv", "conv_transpose"):
        grad_weight *= workload.groups
    return PassMacs(forward, grad_input, grad_weight)


def _swat(workload: Workload) -> PassMacs:
    if not isinstance(workload, Contraction) or workload.operator not in ("conv", "conv_transpose", "linear"):
        return PassMacs(0, 0, 0)
    forward = workload.forward_macs
    at_input_resolution = 1 if workload.transposed else prod(workload.stride)
    return PassMacs(forward, forward * at_input_resolution, forward)


def sparse_pass_macs(
    dense: PassMacs, *, density_weight: float = 1.0, density_activation: float = 1.0, rule: str = "swat"
) -> SparsePassMacs:
    """Expected MACs of the three passes at the given densities (kept fractions). Raises: CostError for an unknown rule or density."""
    require_member("rule", rule, RULES)
    weight = require_density("density_weight", density_weight)
    activation = require_density("density_activation", density_activation)
    last = {"swat": activation, "masked": weight, "growing": 1.0}[rule]
    densities = (weight, weight, last)
    return SparsePassMacs(*(macs if density == 1.0 else macs * density for macs, density in zip(dense, densities, strict=True)))


@dataclass(frozen=True, kw_only=True)
class CountedWorkload:
    """One workload with the densities at which it runs, for `step_macs` and `reduction`."""

    workload: Workload
    density_weight: float = 1.0
    density_activation: float = 1.0
    is_first: bool = False
    rule: str = "swat"


@dataclass(frozen=True, kw_only=True)
class StepMacs:
    """MACs of a whole training step, dense and sparse, under one convention."""

    convention: str
    dense: PassMacs
    sparse: SparsePassMacs

    @property
    def reduction(self) -> dict[str, float]:
        """The fraction of MACs saved against dense, under "training" (three passes) and "inference" (forward)."""
        dense, sparse = sum(self.dense), fsum(self.sparse)
        return {
            "training": 1.0 - sparse / dense if dense else 0.0,
            "inference": 1.0 - self.sparse.forward / self.dense.forward if self.dense.forward else 0.0,
        }


def step_macs(items: Iterable[CountedWorkload], convention: str = "exact") -> StepMacs:
    """MACs of a training step over all items, dense and sparse, pass by pass."""
    dense_rows: list[PassMacs] = []
    sparse_rows: list[SparsePassMacs] = []
    for item in items:
        dense = pass_macs(item.workload, convention, is_first=item.is_first)
        dense_rows.append(dense)
        sparse_rows.append(
            sparse_pass_macs(dense, density_weight=item.density_weight, density_activation=item.density_activation, rule=item.rule)
        )
    return StepMacs(
        convention=convention,
        dense=PassMacs(*(sum(row[which] for row in dense_rows) for which in range(3))),
        sparse=SparsePassMacs(*(fsum(row[which] for row in sparse_rows) for which in range(3))),
    )


def reduction(items: Iterable[CountedWorkload], convention: str = "exact") -> dict[str, float]:
    """The fraction of MACs saved against dense: {"training": three passes, "inference": forward}."""
    return step_macs(items, convention).reduction


def rigl_training_multiplier(method: str, *, sparse: float, dense: float = 1.0, interval: int = 100) -> float:
    """MACs of a sparse training step over those of a dense one, backward = 2 x forward.

    sparse, dense: forward MACs of the sparse and the dense network (any common unit). method: "static" (3 f_S), "rigl"
    ((3 f_S interval + 2 f_S + f_D) / (interval + 1)), "snfs" (2 f_S + f_D), "dense" (3 f_D). Source: Evci et al. 2020.
    """
    require_member("method", method, ("dense", "static", "rigl", "snfs"))
    require_count("interval", interval)
    step = {
        "dense": 3 * dense,
        "static": 3 * sparse,
        "rigl": (3 * sparse * interval + 2 * sparse + dense) / (interval + 1),
        "snfs": 2 * sparse + dense,
    }[method]
    return step / (3 * dense)
