"""Accelerator files: the shipped ones are complete and sourced, and every mistake in one is named with its remedy."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fxsparse.cost_model import Accelerator, accelerators
from fxsparse.cost_model.accelerator import FOLDER
from fxsparse.errors import CostError

GOOD: dict[str, Any] = {
    "name": "mine",
    "array": {"dataflow": "ws", "rows": 8, "columns": 4, "clock_hz": 1e9},
    "memory": {"dram_bytes_per_s": 1e10, "buffer_bytes": 65536},
    "energy": {"mac_pj": 1.0, "buffer_pj": 6.0, "dram_pj": 200.0},
}
NAMES = ("a100-80g", "cpu", "eyeriss", "h100-sxm", "h200", "nvdla-full", "scnn", "swat-array", "tpu-v1")


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one entry replaced, or removed when the value is None."""
    values = copy.deepcopy(GOOD)
    *outer, last = path.split(".")
    place = values
    for key in outer:
        place = place.setdefault(key, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return values


def test_the_promised_accelerators_ship() -> None:
    assert accelerators() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_a_shipped_file_has_a_source(name: str) -> None:
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    sources = values["sources"]
    for section in ("array", "memory", "sparsity", "energy", "roofline"):
        for key in values.get(section, {}):
            assert section in sources or f"{section}.{key}" in sources, f"{name}: {section}.{key} has no source"
    assert values["name"] == name


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_accelerator_survives_saving_and_pickling(name: str, tmp_path: Path) -> None:
    machine = Accelerator.load(name)
    machine.save(tmp_path / "copy.yaml")
    assert Accelerator.load(tmp_path / "copy.yaml") == machine
    assert Accelerator.load(str(tmp_path / "copy.yaml")) == machine
    assert pickle.loads(pickle.dumps(machine)) == machine
    assert copy.deepcopy(machine) == machine
    assert hash(machine) == hash(Accelerator.load(name))


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("tpu-v1", {"dataflow": "ws", "rows": 256, "columns": 256, "clock_hz": 700e6, "multipliers": 65536}),
        ("eyeriss", {"dataflow": "rs", "rows": 12, "columns": 14, "multipliers": 168}),
        ("scnn", {"dataflow": "cartesian", "rows": 8, "columns": 8, "multipliers": 1024}),
        ("nvdla-full", {"dataflow": "channel", "rows": 64, "columns": 32, "multipliers": 2048}),
        ("swat-array", {"dataflow": "skip"}),
    ],
)
def test_shipped_arrays(name: str, facts: dict[str, Any]) -> None:
    array = Accelerator.load(name).array
    assert {key: getattr(array, key) for key in facts} == facts


@pytest.mark.parametrize(
    ("name", "peak", "bandwidth"), [("a100-80g", 312e12, 2039e9), ("h100-sxm", 989.4e12, 3350e9), ("h200", 989.4e12, 4800e9)]
)
def test_shipped_gpus(name: str, peak: float, bandwidth: float) -> None:
    machine = Accelerator.load(name)
    assert machine.roofline is not None
    assert machine.roofline.peak_flops["bfloat16"] == peak
    assert machine.memory.dram_bytes_per_s == bandwidth
    assert 1 < (machine.sparsity.pattern_speedup or 0) < 2


def test_the_swat_array_says_whose_parameters_it_has() -> None:
    assert "compared with the poster's, not fitted" in Accelerator.load("swat-array").description.replace("\n", " ")


def test_eyeriss_keeps_the_published_ratios() -> None:
    energy = Accelerator.load("eyeriss").energy
    assert energy is not None
    found = (energy.dram_pj, energy.buffer_pj, energy.array_pj, energy.register_pj)
    assert tuple(value / energy.mac_pj for value in found) == (200, 6, 2, 1)


def test_a_minimal_description_is_enough() -> None:
    machine = Accelerator.from_dict(GOOD)
    assert machine.memory.usable_buffer_bits == 65536 * 8 / 2
    assert machine.systolic


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("array.row", 8, r"mine\.yaml: array\.row is no known key; did you mean 'rows'"),
        ("arrray", {}, r"arrray is no known key; did you mean 'array'"),
        ("array.rows", None, r"mine\.yaml: array\.rows is missing; expected an integer >= 1; add it"),
        ("memory", None, r"memory is missing; expected a mapping with at least dram_bytes_per_s"),
        ("name", None, r"name is missing; expected a text"),
        ("name", 3, r"name is 3; expected a text"),
        ("array.rows", -8, r"array\.rows is -8; expected an integer >= 1; correct the value"),
        ("array.rows", 2.5, r"array\.rows is 2\.5; expected an integer"),
        ("array.rows", True, r"array\.rows is True; expected an integer"),
        ("memory.dram_bytes_per_s", 0, r"memory\.dram_bytes_per_s is 0; expected a number > 0"),
        ("memory.dram_bytes_per_s", -1e9, r"memory\.dram_bytes_per_s is -1000000000\.0; expected a number > 0"),
        ("memory.dram_bytes_per_s", "fast", r"memory\.dram_bytes_per_s is 'fast'; expected a number > 0"),
        ("memory.double_buffered", "yes", r"memory\.double_buffered is 'yes'; expected true or false"),
        ("array.dataflow", "wss", r"array\.dataflow is 'wss'; expected one of os, ws, .*did you mean 'ws'"),
        ("sparsity.skip", ["weights"], r"sparsity\.skip is \('weights',\); expected a list out of weight, activation"),
        ("sparsity.format", "csc", r"sparsity\.format is 'csc'; expected one of dense.*did you mean 'csr'"),
        ("energy.mac_pj", -1, r"energy\.mac_pj is -1; expected a finite number of pJ >= 0"),
        ("energy.buffer_pj", None, r"energy\.buffer_pj is missing"),
        ("array", [1], r"array is \[1\]; expected a mapping with the keys dataflow, rows"),
        ("array", None, r"has neither of 'array' and 'roofline'; expected exactly one"),
        ("roofline", {"peak_flops": {"float32": 1e12}}, r"has both of 'array' and 'roofline'"),
        ("sources", {"array.rowz": "x"}, r"sources\.array\.rowz names no parameter.*did you mean 'array.rows'"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(CostError, match=message) as caught:
        Accelerator.load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("roofline", "message"),
    [
        ({"peak_flops": {"float32": 0}}, r"peak_flops is .*expected a mapping from dtype names to numbers > 0"),
        ({"peak_flops": {"float32": 1e12}, "efficiency": {"gemm": 1.2}}, r"efficiency is .*numbers > 0 and <= 1"),
        ({"peak_flops": {"float32": 1e12}, "efficiency": {"gem": 0.9}}, r"efficiency is .*gemm, attention"),
        ({"peak_flops": {"float32": 1e12}, "overhead_s": -1}, r"overhead_s is -1; expected a number >= 0"),
        ({"peak_flops": {"float32": 1e12}, "new_bytes_per_s": 0}, r"new_bytes_per_s is 0; expected a number > 0"),
        ({"peak_flops": {"float32": 1e12}, "new_from_bytes": -1}, r"new_from_bytes is -1"),
        ({}, r"roofline\.peak_flops is missing"),
    ],
)
def test_a_wrong_roofline_is_named(roofline: dict[str, Any], message: str) -> None:
    with pytest.raises(CostError, match=message):
        Accelerator.from_dict({"name": "x", "memory": GOOD["memory"], "roofline": roofline})


def test_numbers_that_yaml_reads_as_texts_are_understood(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nmemory: {dram_bytes_per_s: 1e9}\nroofline: {peak_flops: {float32: 2e12}}\n")
    machine = Accelerator.load(file)
    assert machine.memory.dram_bytes_per_s == 1e9
    assert machine.roofline is not None
    assert machine.roofline.peak_flops["float32"] == 2e12


def test_an_unknown_name_is_refused_with_the_closest() -> None:
    with pytest.raises(CostError, match=r"accelerator 'eyeris' is unknown.*did you mean 'eyeriss'"):
        Accelerator.load("eyeris")


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not valid YAML"), ("- 1\n", "got list; expected a mapping"), ("", "got NoneType")]
)
def test_a_file_that_is_no_description_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(CostError, match=message):
        Accelerator.load(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CostError, match=r"none\.yaml cannot be read"):
        Accelerator.load(tmp_path / "none.yaml")


def test_values_given_in_python_are_checked_too() -> None:
    machine = Accelerator.load("tpu-v1")
    assert machine.array is not None
    with pytest.raises(CostError, match=r"accelerator 'tpu-v1': array\.rows is 0"):
        replace(machine, array=replace(machine.array, rows=0))
