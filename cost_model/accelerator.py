"""Accelerators as frozen data, read from YAML files whose every mistake is named together with its remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from fxsparse.errors import CostError

from .energy import EnergyTable
from .formats import FORMATS, Format, make_format
from .roofline import OPERATOR_CLASSES
from .validate import closest

FOLDER = Path(__file__).resolve().parent / "accelerators"
DATAFLOWS = ("os", "ws", "is", "rs", "channel", "skip", "cartesian")
OPERANDS = ("weight", "activation", "gradient", "output")

Check = Callable[[Any], bool]


def _checked(check: Check, expected: str, **more: Any) -> Any:
    return field(metadata={"check": check, "expected": expected}, **more)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _count(**more: Any) -> Any:
    return _checked(_is_count, "an integer >= 1", **more)


def _positive(**more: Any) -> Any:
    return _checked(lambda value: value is None or (_is_number(value) and value > 0), "a number > 0", **more)


def _flag(**more: Any) -> Any:
    return _checked(lambda value: isinstance(value, bool), "true or false", **more)


def _one_of(names: tuple[str, ...], **more: Any) -> Any:
    return _checked(lambda value: value in names, f"one of {', '.join(names)}", **more)


def _operands(**more: Any) -> Any:
    return _checked(lambda value: set(value) <= set(OPERANDS), f"a list out of {', '.join(OPERANDS)}", default=(), **more)


def _rates(most: float | None = None, names: tuple[str, ...] | None = None, **more: Any) -> Any:
    def check(value: Any) -> bool:
        return isinstance(value, Mapping) and all(
            isinstance(name, str) and (names is None or name in names) and _is_number(rate) and rate > 0 and (most is None or rate <= most)
            for name, rate in value.items()
        )

    limits = "numbers > 0" if most is None else f"numbers > 0 and <= {most:g}"
    return _checked(check, f"a mapping from {'dtype names' if names is None else ', '.join(names)} to {limits}", **more)


@dataclass(frozen=True, kw_only=True)
class Array:
    """The multipliers: rows x columns processing elements, each with `lanes_activation` x `lanes_weight` multipliers.

    chunk: candidate MACs of an element between two meetings (dataflow "skip"). most_speedup: what skipping gains at best.
    overlap: fill and drain of systolic folds hide behind the neighbours'.
    """

    dataflow: str = _one_of(DATAFLOWS)
    rows: int = _count()
    columns: int = _count()
    clock_hz: float = _positive()
    lanes_activation: int = _count(default=1)
    lanes_weight: int = _count(default=1)
    weight_group: int = _count(default=8)
    chunk: int = _count(default=64)
    most_speedup: float | None = _positive(default=None)
    overlap: bool = _flag(default=False)

    @property
    def multipliers(self) -> int:
        """All multipliers."""
        return self.rows * self.columns * self.lanes_activation * self.lanes_weight


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The on-chip buffer and the memory behind it. unfold: convolutions fetch their input unfolded, repeats included."""

    dram_bytes_per_s: float = _positive()
    buffer_bytes: int = _count(default=1 << 20)
    double_buffered: bool = _flag(default=True)
    buffer_bytes_per_cycle: float | None = _positive(default=None)
    dram_bytes: float | None = _positive(default=None)
    operand_bits: int = _count(default=16)
    accumulator_bits: int = _count(default=32)
    unfold: bool = _flag(default=False)

    @property
    def usable_buffer_bits(self) -> float:
        """Bits that a tiling may fill: half of a double-buffered buffer."""
        return self.buffer_bytes * 8 / (2 if self.double_buffered else 1)


@dataclass(frozen=True, kw_only=True)
class SparseSupport:
    """What the machine gains from zeros. kept, group: the N:M weight pattern it takes, with its measured speed-up of a product."""

    skip: tuple[str, ...] = _operands()
    gate: tuple[str, ...] = _operands()
    format: str = _one_of(tuple(FORMATS), default="dense")
    run_bits: int = _count(default=4)
    kept: int | None = _checked(lambda value: value is None or _is_count(value), "an integer >= 1", default=None)
    group: int | None = _checked(lambda value: value is None or _is_count(value), "an integer >= 1", default=None)
    pattern_speedup: float | None = _positive(default=None)

    def storage(self) -> Format:
        """The representation of sparse operands in memory."""
        if self.format == "rle":
            return make_format("rle", run_bits=self.run_bits)
        if self.format == "nm":
            return make_format("nm", kept=self.kept or 2, group=self.group or 4)
        return make_format(self.format)


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A CPU or GPU: peak rates by dtype, an efficiency (at most 1) by operator class, overhead of a launch, board power.

    new_bytes_per_s: the rate at which the system hands out new pages, which a tensor of `new_from_bytes` or more is made of each time;
    None where memory is kept for the next tensor. calibrated: the figures were measured on the machine at hand.
    """

    peak_flops: Mapping[str, float] = _rates()
    efficiency: Mapping[str, float] = _rates(most=1.0, names=OPERATOR_CLASSES, default_factory=dict)
    overhead_s: float = _checked(lambda value: _is_number(value) and value >= 0, "a number >= 0", default=0.0)
    power_w: float | None = _positive(default=None)
    new_bytes_per_s: float | None = _positive(default=None)
    new_from_bytes: int = _count(default=1 << 25)
    calibrated: bool = _flag(default=False)


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One machine: either an `array` with an energy table, or a `roofline`; `sources` says where each parameter comes from."""

    name: str
    description: str = ""
    memory: Memory
    array: Array | None = None
    energy: EnergyTable | None = None
    sparsity: SparseSupport = SparseSupport()
    roofline: Roofline | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"accelerator {self.name!r}"
        if (self.array is None) == (self.roofline is None):
            got = "neither" if self.array is None else "both"
            raise CostError(
                f"{where} has {got} of 'array' and 'roofline'; expected exactly one: describe it by its multipliers or its rates"
            )
        for name in _SECTIONS:
            section = getattr(self, name)
            if section is not None and not isinstance(section, EnergyTable):
                _check_values(f"{where}: {name}", section)

    def __hash__(self) -> int:
        return hash((self.name, self.memory, self.array))

    @property
    def systolic(self) -> bool:
        """True for an array whose cycles follow the systolic formulas."""
        return self.array is not None and self.array.dataflow in ("os", "ws", "is")

    @classmethod
    def load(cls, name_or_path: str | Path) -> Accelerator:
        """The accelerator of a shipped name (see `accelerators`) or of a YAML file.

        Raises: CostError naming the file, the key, what was got and expected, and the closest name or key.
        """
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            shipped = accelerators()
            if str(name_or_path) not in shipped:
                raise CostError(
                    f"accelerator {str(name_or_path)!r} is unknown; expected one of {', '.join(shipped)} or the path of a .yaml file"
                    f"{closest(str(name_or_path), shipped)}"
                )
            path = FOLDER / f"{name_or_path}.yaml"
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            near = closest(path.name, [other.name for other in path.parent.glob("*.y*ml")])
            raise CostError(
                f"accelerator file {path} cannot be read: {error.strerror}; give the path of a YAML file or a shipped name{near}"
            ) from None
        return _parsed(text, str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "accelerator") -> Accelerator:
        """The accelerator described by nested dictionaries, as in a YAML file. Raises: CostError as `load` does."""
        if not isinstance(values, Mapping):
            raise CostError(f"{where}: got {type(values).__name__}; expected a mapping with the keys {', '.join(_KEYS)}")
        _refuse_unknown(where, "", values, _KEYS)
        for key in ("name", "memory"):
            if key not in values:
                raise CostError(f"{where}: {key} is missing; expected {_expected_top(key)}; add it")
        if not isinstance(values["name"], str):
            raise CostError(f"{where}: name is {values['name']!r}; expected a text")
        sections = {key: _section(where, key, kind, values[key]) for key, kind in _SECTIONS.items() if values.get(key) is not None}
        sources = values.get("sources") or {}
        if not isinstance(sources, Mapping):
            raise CostError(f"{where}: sources is {sources!r}; expected a mapping from 'section.key' to a text")
        known = {f"{key}.{entry.name}" for key, kind in _SECTIONS.items() for entry in fields(kind)} | set(_SECTIONS)
        for key in sources:
            if key not in known:
                raise CostError(f"{where}: sources.{key} names no parameter; expected a section or 'section.key'{closest(key, known)}")
        try:
            return cls(name=values["name"], description=str(values.get("description", "")), sources=dict(sources), **sections)
        except CostError as error:
            raise CostError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries that `from_dict` turns back; sections that are absent are left out."""
        plain: dict[str, Any] = _plain({key: value for key, value in asdict(self).items() if value is not None})
        return plain

    def save(self, path: str | Path) -> None:
        """Writes the accelerator as a YAML file that `load` reads."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


_SECTIONS: dict[str, Any] = {"array": Array, "memory": Memory, "sparsity": SparseSupport, "energy": EnergyTable, "roofline": Roofline}
_KEYS = ("name", "description", *_SECTIONS, "sources")


def accelerators() -> tuple[str, ...]:
    """Names of the shipped accelerators, sorted; each is a file beside this module."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@lru_cache(maxsize=64)
def _parsed(text: str, where: str) -> Accelerator:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CostError(f"{where} is not valid YAML: {error}") from None
    return Accelerator.from_dict(values, where=where)


def _section(where: str, key: str, kind: Any, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise CostError(f"{where}: {key} is {values!r}; expected a mapping with the keys {', '.join(f.name for f in fields(kind))}")
    declared = {entry.name: entry for entry in fields(kind)}
    _refuse_unknown(where, f"{key}.", values, tuple(declared))
    for name, entry in declared.items():
        if name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            expected = entry.metadata.get("expected", "a number of pJ >= 0")
            raise CostError(f"{where}: {key}.{name} is missing; expected {expected}; add it")
    made = {name: tuple(value) if isinstance(value, list) else _number(declared[name], value) for name, value in values.items()}
    for name, value in made.items():
        _check_one(f"{where}: {key}.{name}", declared[name], value)
    try:
        return kind(**made)
    except CostError as error:
        raise CostError(f"{where}: {error}") from None


def _number(entry: Any, value: Any) -> Any:
    """YAML 1.1 reads 1e9 as a text; turns such a text into the number that was meant."""
    if isinstance(value, str) and "number" in entry.metadata.get("expected", "number"):
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, Mapping):
        return {name: _number(entry, inner) for name, inner in value.items()}
    return value


def _check_values(where: str, section: Any) -> None:
    for entry in fields(section):
        _check_one(f"{where}.{entry.name}", entry, getattr(section, entry.name))


def _check_one(where: str, entry: Any, value: Any) -> None:
    check = entry.metadata.get("check")
    try:
        good = check is None or check(value)
    except TypeError:
        good = False
    if not good:
        hint = closest(value, entry.metadata["expected"].replace(",", "").split()) if isinstance(value, str) else ""
        raise CostError(f"{where} is {value!r}; expected {entry.metadata['expected']}{hint or '; correct the value'}")


def _refuse_unknown(where: str, prefix: str, values: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in values:
        if key not in known:
            remedy = closest(key, known) or f"; remove it or use one of {', '.join(known)}"
            raise CostError(f"{where}: {prefix}{key} is no known key{remedy}")


def _expected_top(key: str) -> str:
    return "a text" if key == "name" else "a mapping with at least dram_bytes_per_s"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    return value
