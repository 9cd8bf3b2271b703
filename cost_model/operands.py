"""Which operand of which pass is sparse, and how many bits its words take in memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from fxsparse.errors import CostError

from .formats import NM, Dense, Format
from .gemm import Pass
from .traffic import TiledProduct
from .validate import require_density, require_member
from .workload import Contraction

RULES = ("swat", "masked", "growing")


@dataclass(frozen=True, kw_only=True)
class OperandSparsity:
    """Densities of a contraction's operands in a training step, and how its weights are sparse.

    density_weight, density_activation: of the weight, and of the activation that grad-weight multiplies. density_input,
    density_gradient: natural zeros of the forward input and of the output's gradient, which only skipping or gating hardware
    notices. rule: see `conventions` ("masked": only the kept weights' gradients are computed). pattern: (kept, group) of N:M.
    """

    density_weight: float = 1.0
    density_activation: float = 1.0
    density_input: float = 1.0
    density_gradient: float = 1.0
    rule: str = "swat"
    pattern: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("density_weight", "density_activation", "density_input", "density_gradient"):
            require_density(name, getattr(self, name))
        require_member("rule", self.rule, RULES)
        if self.pattern is not None and (len(self.pattern) != 2 or not 1 <= self.pattern[0] <= self.pattern[1]):
            raise CostError(f"pattern is {self.pattern!r}; expected (kept, group) with 1 <= kept <= group, such as (2, 4)")

    @property
    def is_dense(self) -> bool:
        """True when no operand has zeros worth counting."""
        return min(self.density_weight, self.density_activation, self.density_input, self.density_gradient) == 1.0

    def of(self, which: Pass) -> dict[str, float]:
        """Density of each operand of a pass by its name: "activation", "weight", "gradient", "output"."""
        if which == "forward":
            return {"activation": self.density_input, "weight": self.density_weight}
        if which == "grad_input":
            return {"gradient": self.density_gradient, "weight": self.density_weight}
        made = self.density_weight if self.rule == "masked" else 1.0
        kept = self.density_activation if self.rule == "swat" else self.density_input
        return {"activation": kept, "gradient": self.density_gradient, "output": made}


DENSE = OperandSparsity()


def tiled_product(
    work: Contraction,
    which: Pass,
    sparsity: OperandSparsity,
    *,
    operand_bits: int,
    partial_bits: int,
    storage: Format | None = None,
    unfold: bool = False,
) -> TiledProduct:
    """The product of one pass with the stored size of its words; sparse operands take `storage` where that is smaller.

    unfold False: the unfolded operand of a convolution is fetched without repetition. A gradient of kept weights only holds those.
    """
    gemm = work.gemm(which)
    densities = sparsity.of(which)
    left_name, right_name = {
        "forward": ("activation", "weight"),
        "grad_input": ("gradient", "weight"),
        "grad_weight": ("activation", "gradient"),
    }[which]
    shares = dict.fromkeys(("left", "right", "result"), 1.0)
    if work.kernel and not unfold:
        side = _UNFOLDED[work.transposed][which]
        stored = work.output_elements if work.transposed else work.input_elements
        columns = (work.out_channels if work.transposed else work.in_channels) * prod(work.kernel)
        shares[side] = min(1.0, stored / max(1, work.positions * columns * work.repeats))
    storage = storage or Dense()
    pattern = NM(*sparsity.pattern) if sparsity.pattern is not None else None

    def bits(name: str, shape: tuple[int, int]) -> float:
        kind = pattern if pattern is not None and name == "weight" else storage
        return word_bits(kind, shape=shape, density=densities[name], element_bits=operand_bits)

    return TiledProduct(
        gemm=gemm,
        left_bits=bits(left_name, (gemm.m, gemm.k)),
        right_bits=bits(right_name, (gemm.n, gemm.k)),
        result_bits=operand_bits * densities.get("output", 1.0),
        partial_bits=partial_bits * densities.get("output", 1.0),
        left_share=shares["left"],
        right_share=shares["right"],
        result_share=shares["result"],
    )


_UNFOLDED: dict[bool, dict[Pass, str]] = {
    False: {"forward": "left", "grad_input": "result", "grad_weight": "left"},
    True: {"forward": "result", "grad_input": "left", "grad_weight": "right"},
}


def word_bits(kind: Format, *, shape: tuple[int, int], density: float, element_bits: int) -> float:
    """Expected bits an element takes: in the format if that is smaller, else dense."""
    elements = shape[0] * shape[1]
    if density == 1.0 or not elements:
        return float(element_bits)
    if isinstance(kind, NM) and density > kind.kept / kind.group + 1e-9:
        return float(element_bits)
    return min(float(element_bits), kind.expected_bits(shape=shape, density=density, element_bits=element_bits) / elements)
