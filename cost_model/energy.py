"""Energy of an action, and of a count of actions; tables can be read from Accelergy ERT files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from fxsparse.errors import CostError

from .validate import closest

# Field of the table -> the ERT actions that may supply it, in order of preference.
_ERT_ACTIONS = {
    "mac_pj": ("compute", "mac_random", "mac", "multiply", "mult_random"),
    "gated_mac_pj": ("mac_gated", "gated_compute", "mult_gated", "gated"),
    "register_pj": ("read", "access"),
    "array_pj": ("transfer_random", "transfer", "read"),
    "buffer_pj": ("read", "access", "random_read"),
    "dram_pj": ("read", "access"),
}


@dataclass(frozen=True, kw_only=True)
class EnergyTable:
    """Energy in pJ of one MAC, of one gated MAC, and of moving one word through each level (register, array, buffer, DRAM)."""

    mac_pj: float
    gated_mac_pj: float = 0.0
    register_pj: float = 0.0
    array_pj: float = 0.0
    buffer_pj: float
    dram_pj: float

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise CostError(f"energy.{entry.name} is {value!r}; expected a finite number of pJ >= 0")

    def energy_pj(self, *, computed: float, gated: float, register: float, array: float, buffer: float, dram: float) -> float:
        """Sum of action counts times energies; MACs by what became of them (skipped ones are free), the rest in words."""
        return (
            computed * self.mac_pj
            + gated * self.gated_mac_pj
            + register * self.register_pj
            + array * self.array_pj
            + buffer * self.buffer_pj
            + dram * self.dram_pj
        )

    @classmethod
    def from_ert(cls, path: str | Path, components: Mapping[str, str]) -> EnergyTable:
        """The table of an Accelergy energy reference table (ERT) file.

        components: for each level ("mac", "register", "array", "buffer", "dram") the component's name as in the file, or its last
        part without the index ("buffer" for "system.chip.buffer[0..3]"). Levels left out cost 0; mac, buffer and dram are required.
        An action listed with several arguments counts with its dearest entry.
        Raises: CostError naming the file and the components or actions it has.
        """
        tables = read_ert(path)
        values: dict[str, float] = {}
        for level in components:
            if level not in ("mac", "register", "array", "buffer", "dram"):
                raise CostError(f"{path}: level {level!r} is unknown; expected mac, register, array, buffer or dram")
        for level, field_names in (
            ("mac", ("mac_pj", "gated_mac_pj")),
            *((x, (f"{x}_pj",)) for x in ("register", "array", "buffer", "dram")),
        ):
            if level not in components:
                if level in ("mac", "buffer", "dram"):
                    raise CostError(f"{path}: no component was named for {level!r}; the file has {', '.join(tables)}")
                continue
            name = _find_component(path, components[level], tables)
            for field_name in field_names:
                usable = [action for action in _ERT_ACTIONS[field_name] if action in tables[name]]
                if usable:
                    values[field_name] = tables[name][usable[0]]
                elif field_name != "gated_mac_pj":
                    raise CostError(
                        f"{path}: component {name!r} has the actions {', '.join(tables[name])}; "
                        f"{field_name} needs one of {', '.join(_ERT_ACTIONS[field_name])}"
                    )
        return cls(**values)


def read_ert(path: str | Path) -> dict[str, dict[str, float]]:
    """Energy in pJ by component and action of an ERT file; of several entries for one action the largest.

    Raises: CostError when the file is not such a table.
    """
    try:
        content: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        tables = content["ERT"]["tables"]
        found: dict[str, dict[str, float]] = {}
        for table in tables:
            actions: dict[str, float] = {}
            for action in table["actions"]:
                name = str(action["name"])
                actions[name] = max(float(action["energy"]), actions.get(name, 0.0))
            found[str(table["name"])] = actions
        return found
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CostError(f"{path} is no energy reference table (ERT: tables: name, actions: name, energy): {error!r}") from None


def _find_component(path: str | Path, wanted: str, tables: Mapping[str, object]) -> str:
    short = {name: re.sub(r"\[.*?\]$", "", name).split(".")[-1] for name in tables}
    matches = [name for name in tables if wanted in (name, short[name])]
    if len(matches) != 1:
        raise CostError(
            f"{path}: {len(matches)} components are called {wanted!r}; expected one of {', '.join(tables)}{closest(wanted, short.values())}"
        )
    return matches[0]
