"""Cycles and buffer accesses of a matrix product on a systolic array, by closed formulas.

M, K, N: rows of the input, contraction length, output channels. A fold is one pass of the array over a tile that fits it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fxsparse.errors import CostError

from .validate import require_count, require_member

Dataflow = Literal["os", "ws", "is"]
DATAFLOWS = ("os", "ws", "is")


def systolic_cycles(*, dataflow: Dataflow, rows: int, columns: int, m: int, k: int, n: int) -> int:
    """Cycles of one (m, k) x (k, n) product on a rows x columns array, folds one after another; 0 for an empty product.

    Raises: CostError for an unknown dataflow or a size that is no positive integer (m, k, n may be 0).
    Source: counting argument: T + R + C - 2 cycles a fold when outputs stay, T + 2R + C - 2 when an operand is loaded first.
    """
    if rows < 1 or columns < 1 or m < 0 or k < 0 or n < 0:
        _refuse(rows=rows, columns=columns, m=m, k=k, n=n)
    if not (m and k and n):
        require_member("dataflow", dataflow, DATAFLOWS)
        return 0
    if dataflow == "os":
        return -(-m // rows) * -(-n // columns) * (k + rows + columns - 2)
    if dataflow == "ws":
        return -(-k // rows) * -(-n // columns) * (m + 2 * rows + columns - 2)
    if dataflow == "is":
        return -(-k // rows) * -(-m // columns) * (n + 2 * rows + columns - 2)
    raise CostError(f"dataflow is {dataflow!r}; expected one of {', '.join(map(repr, DATAFLOWS))}")


def overlapped_cycles(*, dataflow: Dataflow, rows: int, columns: int, m: int, k: int, n: int) -> int:
    """Cycles when a fold's fill and drain hide behind its neighbours': every fold but the last costs its streaming time.

    Loading the next stationary tile takes `rows` cycles, which shorter streaming times cannot hide. Source: counting argument.
    """
    whole = systolic_cycles(dataflow=dataflow, rows=rows, columns=columns, m=m, k=k, n=n)
    if not whole:
        return 0
    time, folds, load = {
        "os": (k, -(-m // rows) * -(-n // columns), 0),
        "ws": (m, -(-k // rows) * -(-n // columns), rows),
        "is": (n, -(-k // rows) * -(-m // columns), rows),
    }[dataflow]
    return (folds - 1) * max(time, load) + whole // folds


def compressed_k(k: int, kept: int, group: int) -> int:
    """Length of the contraction when the weights keep `kept` of every `group` consecutive elements along it.

    A rest shorter than a group keeps at most `kept`. Source: counting argument.
    """
    require_count("group", group)
    require_count("kept", kept)
    if kept > group:
        raise CostError(f"an N:M pattern keeps {kept} of {group}; expected kept <= group")
    return k // group * kept + min(k % group, kept)


@dataclass(frozen=True, kw_only=True)
class SramAccesses:
    """Words read from the input and filter buffers and written to the output buffer."""

    input: int
    filter: int
    output: int

    @property
    def total(self) -> int:
        """All accesses."""
        return self.input + self.filter + self.output


def systolic_sram_accesses(*, dataflow: Dataflow, rows: int, columns: int, m: int, k: int, n: int) -> SramAccesses:
    """Buffer accesses in words of one product on the array, every operand's refetches counted. Source: counting argument."""
    require_member("dataflow", dataflow, DATAFLOWS)
    if rows < 1 or columns < 1 or m < 0 or k < 0 or n < 0:
        _refuse(rows=rows, columns=columns, m=m, k=k, n=n)
    over_m, over_n, over_k = {
        "os": (-(-m // rows), -(-n // columns), 1),
        "ws": (1, -(-n // columns), -(-k // rows)),
        "is": (-(-m // columns), 1, -(-k // rows)),
    }[dataflow]
    return SramAccesses(input=m * k * over_n, filter=k * n * over_m, output=m * n * over_k)


def utilisation(*, dataflow: Dataflow, rows: int, columns: int, m: int, k: int, n: int) -> float:
    """The fraction of multiplier-cycles that do useful work, 0..1."""
    cycles = systolic_cycles(dataflow=dataflow, rows=rows, columns=columns, m=m, k=k, n=n)
    return m * k * n / (cycles * rows * columns) if cycles else 0.0


def _refuse(**sizes: int) -> None:
    for name, value in sizes.items():
        require_count(f"systolic {name}", value, at_least=1 if name in ("rows", "columns") else 0)
