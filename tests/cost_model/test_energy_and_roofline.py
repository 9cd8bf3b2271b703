"""Energy tables, their ERT files, and roofline times."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxsparse.cost_model import EnergyTable, read_ert, roofline_time
from fxsparse.errors import CostError

ERT = """ERT:
  version: '0.4'
  tables:
  - name: system.chip.buffer[1..1]
    actions:
    - {name: read, arguments: {address_delta: 0, data_delta: 0}, energy: 0.5}
    - {name: read, arguments: {address_delta: 1, data_delta: 1}, energy: 6.25}
    - {name: write, arguments: {}, energy: 7.0}
  - name: system.dram[1..1]
    actions:
    - {name: read, arguments: {}, energy: 512.0}
  - name: system.chip.PE[0..7].mac
    actions:
    - {name: mac_random, arguments: null, energy: 2.2}
    - {name: mac_gated, arguments: null, energy: 0.1}
"""


@pytest.fixture
def ert(tmp_path: Path) -> Path:
    path = tmp_path / "chip.ERT.yaml"
    path.write_text(ERT)
    return path


def test_energy_is_the_sum_of_actions() -> None:
    table = EnergyTable(mac_pj=1, gated_mac_pj=0.1, register_pj=1, array_pj=2, buffer_pj=6, dram_pj=200)
    found = table.energy_pj(computed=10, gated=20, register=30, array=4, buffer=5, dram=1)
    assert found == pytest.approx(10 + 2 + 30 + 8 + 30 + 200)


def test_an_ert_file_becomes_a_table(ert: Path) -> None:
    table = EnergyTable.from_ert(ert, {"mac": "mac", "buffer": "system.chip.buffer[1..1]", "dram": "dram"})
    assert table == EnergyTable(mac_pj=2.2, gated_mac_pj=0.1, buffer_pj=6.25, dram_pj=512)


def test_the_dearest_entry_of_an_action_counts(ert: Path) -> None:
    assert read_ert(ert)["system.chip.buffer[1..1]"] == {"read": 6.25, "write": 7.0}


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"mac": "mac", "dram": "dram"}, "no component was named for 'buffer'"),
        ({"mac": "mac", "buffer": "bufer", "dram": "dram"}, "0 components are called 'bufer'.*did you mean 'buffer'"),
        ({"mac": "dram", "buffer": "buffer", "dram": "dram"}, "has the actions read; mac_pj needs one of compute"),
        ({"mac": "mac", "buffer": "buffer", "dram": "dram", "cache": "x"}, "level 'cache' is unknown"),
    ],
)
def test_a_wrong_mapping_is_refused(ert: Path, components: dict[str, str], message: str) -> None:
    with pytest.raises(CostError, match=message):
        EnergyTable.from_ert(ert, components)


@pytest.mark.parametrize(
    "text", ["", "ERT: 3", "ERT: {tables: [{name: x}]}", "a: [", "ERT: {tables: [{name: x, actions: [{name: y, energy: z}]}]}"]
)
def test_a_file_that_is_no_ert_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(CostError, match="is no energy reference table"):
        read_ert(path)
    with pytest.raises(CostError, match="is no energy reference table"):
        read_ert(tmp_path / "missing.yaml")


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), "1"])
def test_an_impossible_energy_is_refused(value: float) -> None:
    with pytest.raises(CostError, match=r"energy\.mac_pj is"):
        EnergyTable(mac_pj=value, buffer_pj=1, dram_pj=1)


@pytest.mark.parametrize(
    ("flops", "moved", "time_s", "bound"),
    [(2e12, 1e9, 2.0, "compute"), (1e12, 4e9, 4.0, "dram"), (0, 1e9, 1.0, "dram"), (1e12, 1e9, 1.0, "compute")],
)
def test_roofline_by_hand(flops: float, moved: float, time_s: float, bound: str) -> None:
    found = roofline_time(flops=flops, dram_bytes=moved, peak_flops=1e12, dram_bytes_per_s=1e9)
    assert (found.time_s, found.bound) == (pytest.approx(time_s), bound)


def test_efficiency_and_overhead_lengthen_the_time() -> None:
    found = roofline_time(flops=1e12, dram_bytes=0, peak_flops=1e12, dram_bytes_per_s=1e9, efficiency=0.5, overhead_s=3)
    assert found.time_s == pytest.approx(5.0)
    assert found.bound == "overhead"


@given(flops=st.floats(0, 1e15), more=st.floats(0, 1e15), moved=st.floats(0, 1e12), efficiency=st.floats(0.01, 1))
def test_more_work_never_takes_less(flops: float, more: float, moved: float, efficiency: float) -> None:
    rates = {"peak_flops": 1e12, "dram_bytes_per_s": 1e9, "efficiency": efficiency}
    less, longer = (roofline_time(flops=f, dram_bytes=moved, **rates) for f in (flops, flops + more))
    assert less.time_s <= longer.time_s


@pytest.mark.parametrize("name", ["peak_flops", "dram_bytes_per_s", "efficiency"])
def test_rates_must_be_positive(name: str) -> None:
    rates = {"peak_flops": 1e12, "dram_bytes_per_s": 1e9, "efficiency": 1.0} | {name: 0.0}
    with pytest.raises(CostError, match=rf"{name} is 0\.0; expected a finite number > 0"):
        roofline_time(flops=1, dram_bytes=1, **rates)
