"""Systolic cycles and buffer accesses against SCALE-Sim's recorded figures, a walk over folds, and their limits."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxsparse.cost_model import compressed_k, overlapped_cycles, systolic_cycles, systolic_sram_accesses, utilisation
from fxsparse.errors import CostError

Dataflow = Literal["os", "ws", "is"]
RECORDED = json.loads((Path(__file__).parent / "scalesim" / "recorded.json").read_text())
DATAFLOWS = st.sampled_from(["os", "ws", "is"])
SIZES = st.integers(1, 40)


def walked(dataflow: Dataflow, rows: int, columns: int, m: int, k: int, n: int) -> int:
    """Cycles by visiting every fold: load (stationary operand), fill along rows and columns, stream, drain."""
    over_rows, over_columns, streamed = {"os": (m, n, k), "ws": (k, n, m), "is": (k, m, n)}[dataflow]
    cycles = 0
    for _ in range(0, over_rows, rows):
        for _ in range(0, over_columns, columns):
            load = 0 if dataflow == "os" else rows
            cycles += load + streamed + (rows - 1) + (columns - 1)
    return cycles


@pytest.mark.parametrize("record", RECORDED, ids=lambda record: "-".join(map(str, record[:8])))
def test_cycles_are_scalesims_last_index_plus_one(record: tuple[Dataflow, int, int, int, int, int, int, int, int]) -> None:
    dataflow, rows, columns, m, k, n, kept, group, last = record[:9]
    length = compressed_k(k, kept, group)
    assert systolic_cycles(dataflow=dataflow, rows=rows, columns=columns, m=m, k=length, n=n) == last + 1


@pytest.mark.parametrize("record", [r for r in RECORDED if r[7] == 1], ids=lambda record: "-".join(map(str, record[:8])))
def test_accesses_are_scalesims(record: tuple[Dataflow, int, int, int, int, int, int, int, int, int, int, int]) -> None:
    dataflow, rows, columns, m, k, n, _, _, _, inputs, filters, outputs = record
    found = systolic_sram_accesses(dataflow=dataflow, rows=rows, columns=columns, m=m, k=k, n=n)
    assert (found.input, found.filter) == (inputs, filters)
    if dataflow != "os":  # for "os" the simulator counts partly filled columns as outputs; here each result is written once
        assert found.output == outputs


def test_enough_layers_were_recorded() -> None:
    assert len(RECORDED) > 200
    assert {record[0] for record in RECORDED} == {"os", "ws", "is"}


@pytest.mark.parametrize(
    ("dataflow", "rows", "columns", "sizes", "last"),
    [
        ("ws", 128, 128, (529, 2400, 256), 34617),
        ("os", 256, 256, (121, 3456, 256), 3965),
        ("is", 12, 14, (121, 3456, 256), 756863),
    ],
)
def test_alexnet_layers(dataflow: Dataflow, rows: int, columns: int, sizes: tuple[int, int, int], last: int) -> None:
    m, k, n = sizes
    assert systolic_cycles(dataflow=dataflow, rows=rows, columns=columns, m=m, k=k, n=n) == last + 1


def scalesims_resnet50() -> list[tuple[int, int, int]]:
    """The products of SCALE-Sim's own ResNet-50 topology: stride in the 1x1, no padding, a stem of 110 x 110."""
    products = [(110 * 110, 147, 64)]
    channels, size = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner, outer = 64 << stage, 256 << stage
        for block in range(blocks):
            made = size // 2 if stage and not block else size
            products += [(made**2, channels, inner), ((made - 2) ** 2, 9 * inner, inner), (made**2, inner, outer)]
            if not block:
                products.append((made**2, channels, outer))
            channels, size = outer, made
    return [*products, (1, 2048, 1000)]


@pytest.mark.parametrize(("dataflow", "printed"), [("ws", 872702), ("is", 997762), ("os", 611561)])
def test_whole_resnet50(dataflow: Dataflow, printed: int) -> None:
    layers = scalesims_resnet50()
    assert len(layers) == 54
    cycles = [systolic_cycles(dataflow=dataflow, rows=128, columns=128, m=m, k=k, n=n) for m, k, n in layers]
    assert sum(cycles) - len(layers) == printed
    last_indices = {tuple(record[3:6]): record[8] for record in RECORDED if record[:3] == [dataflow, 128, 128]}
    assert sum(last_indices[layer] for layer in layers) == printed


@pytest.mark.slow
def test_the_real_simulator_still_prints_what_was_recorded() -> None:
    """Needs an interpreter that has SCALE-Sim, named by FXSPARSE_SCALESIM_PYTHON (see record_scalesim.py on how to make one)."""
    python = os.environ.get("FXSPARSE_SCALESIM_PYTHON")
    if not python:
        pytest.skip("FXSPARSE_SCALESIM_PYTHON names no interpreter with SCALE-Sim")
    folder = Path(__file__).parent / "scalesim"
    program = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from record_scalesim import simulate; "
        "runs = json.loads(sys.argv[2]); print(json.dumps([simulate(r[0], r[1], r[2], [r[3:6]], tuple(r[6:8]))[0] for r in runs]))"
    )
    chosen = [record for record in RECORDED if max(record[3:6]) <= 70][::12]
    done = subprocess.run([python, "-c", program, str(folder), json.dumps(chosen)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == chosen


@given(dataflow=DATAFLOWS, rows=SIZES, columns=SIZES, m=SIZES, k=SIZES, n=SIZES)
def test_cycles_equal_the_walk_over_folds(dataflow: Dataflow, rows: int, columns: int, m: int, k: int, n: int) -> None:
    assert systolic_cycles(dataflow=dataflow, rows=rows, columns=columns, m=m, k=k, n=n) == walked(dataflow, rows, columns, m, k, n)


@given(dataflow=DATAFLOWS, rows=SIZES, columns=SIZES, m=SIZES, k=SIZES, n=SIZES)
def test_no_array_does_more_than_its_multipliers(dataflow: Dataflow, rows: int, columns: int, m: int, k: int, n: int) -> None:
    assert 0 < utilisation(dataflow=dataflow, rows=rows, columns=columns, m=m, k=k, n=n) <= 1


@given(dataflow=DATAFLOWS, rows=SIZES, columns=SIZES, m=SIZES, k=SIZES, n=SIZES)
def test_overlap_never_costs_and_never_beats_streaming(dataflow: Dataflow, rows: int, columns: int, m: int, k: int, n: int) -> None:
    sizes = {"dataflow": dataflow, "rows": rows, "columns": columns, "m": m, "k": k, "n": n}
    overlapped = overlapped_cycles(**sizes)  # type: ignore[arg-type]
    assert -(-m * k * n // (rows * columns)) <= overlapped <= systolic_cycles(**sizes)  # type: ignore[arg-type]


@given(dataflow=DATAFLOWS, rows=SIZES, columns=SIZES, m=SIZES, k=SIZES, n=SIZES, axis=st.sampled_from("mkn"))
def test_cycles_grow_with_every_size(dataflow: Dataflow, rows: int, columns: int, m: int, k: int, n: int, axis: str) -> None:
    sizes = {"m": m, "k": k, "n": n}
    larger = sizes | {axis: sizes[axis] + 1}
    smaller_cycles = systolic_cycles(dataflow=dataflow, rows=rows, columns=columns, **sizes)
    assert smaller_cycles <= systolic_cycles(dataflow=dataflow, rows=rows, columns=columns, **larger)


def test_one_multiplier_takes_a_cycle_a_mac_plus_its_loads() -> None:
    assert systolic_cycles(dataflow="os", rows=1, columns=1, m=3, k=5, n=7) == 105
    assert systolic_cycles(dataflow="ws", rows=1, columns=1, m=3, k=5, n=7) == 5 * 7 * (3 + 1)


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_an_empty_product_takes_nothing(dataflow: Dataflow) -> None:
    assert systolic_cycles(dataflow=dataflow, rows=4, columns=4, m=0, k=3, n=3) == 0
    assert overlapped_cycles(dataflow=dataflow, rows=4, columns=4, m=3, k=0, n=3) == 0


@pytest.mark.parametrize(("k", "kept", "group", "left"), [(16, 2, 4, 8), (18, 2, 4, 10), (17, 2, 4, 9), (19, 2, 4, 10), (3, 1, 4, 1)])
def test_compressed_length_by_hand(k: int, kept: int, group: int, left: int) -> None:
    assert compressed_k(k, kept, group) == left


@given(k=st.integers(1, 200), group=st.integers(1, 8), kept=st.integers(1, 8))
def test_compression_keeps_at_least_the_density(k: int, group: int, kept: int) -> None:
    kept = min(kept, group)
    assert k * kept / group <= compressed_k(k, kept, group) <= k


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataflow": "sw"}, "dataflow is 'sw'; expected one of 'os', 'ws', 'is'"),
        ({"rows": 0}, "systolic rows is 0; expected an integer >= 1"),
        ({"m": -1}, "systolic m is -1; expected an integer >= 0"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"dataflow": "os", "rows": 2, "columns": 2, "m": 2, "k": 2, "n": 2}
    with pytest.raises(CostError, match=message):
        systolic_cycles(**(good | changes))  # type: ignore[arg-type]


def test_a_pattern_that_keeps_more_than_its_group_is_refused() -> None:
    with pytest.raises(CostError, match="keeps 5 of 4"):
        compressed_k(8, 5, 4)


@pytest.mark.benchmark
def test_a_layer_takes_under_twenty_microseconds() -> None:
    start = time.perf_counter()
    for m in range(1, 1001):
        systolic_cycles(dataflow="ws", rows=128, columns=128, m=m, k=2400, n=256)
    assert (time.perf_counter() - start) / 1000 < 20e-6
