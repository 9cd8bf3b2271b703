"""Rows of a table as a tree by module: what stands in one module stands together, and can be folded to one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True)
class Line(Generic[Row]):
    """One line: a row, or a module with everything in it.

    Attributes:
        label: the row's name or the module's path. depth: 0 for the root. rows: all rows below, the row itself if it is one.
        is_row: whether it stands for one row. folded: a module whose rows are not shown.
        last: for each level from 1 to ``depth``, whether its line is the last one in its module.
    """

    label: str
    depth: int
    rows: tuple[Row, ...]
    is_row: bool
    folded: bool = False
    last: tuple[bool, ...] = ()


@dataclass
class _Branch(Generic[Row]):
    path: str
    inner: dict[str, _Branch[Row]] = field(default_factory=dict)
    items: list[_Branch[Row] | tuple[str, Row]] = field(default_factory=list)


def module_tree(
    rows: Sequence[Row],
    module: Callable[[Row], str],
    name: Callable[[Row], str],
    *,
    root: str,
    depth: int | None = None,
    sort: Callable[[Row], float] | None = None,
    shown: Callable[[Row], bool] = lambda row: True,
) -> list[Line[Row]]:
    """The lines of a tree, the root first. A module with a single row or module in it is not a line of its own.

    Args:
        module: path of the module that a row belongs to. name: a row's label. root: the label of the whole.
        depth: modules at this depth are folded; None folds none.
        sort: within each module the largest sum stands first; None keeps the order of ``rows``.
        shown: rows of which it is false get no line, but belong to those of their modules.
    """
    whole: _Branch[Row] = _Branch("")
    for row in rows:
        branch = whole
        for part in filter(None, module(row).split(".")):
            if part not in branch.inner:
                made: _Branch[Row] = _Branch(f"{branch.path}.{part}".lstrip("."))
                branch.inner[part] = made
                branch.items.append(made)
            branch = branch.inner[part]
        branch.items.append((name(row), row))
    return _Walk(depth, sort, shown).lines(whole, root, 0, ())


@dataclass(frozen=True)
class _Walk(Generic[Row]):
    depth: int | None
    sort: Callable[[Row], float] | None
    shown: Callable[[Row], bool]

    def lines(self, branch: _Branch[Row], label: str, level: int, last: tuple[bool, ...]) -> list[Line[Row]]:
        folded = self.depth is not None and level >= self.depth
        found = [Line(label, level, tuple(_rows(branch)), False, folded, last)]
        if folded:
            return found
        items = [item for item in map(_compressed, branch.items) if any(map(self.shown, _rows(item)))]
        if self.sort is not None:
            sums = {id(item): sum(map(self.sort, _rows(item))) for item in items}
            items.sort(key=lambda item: -sums[id(item)])
        for index, item in enumerate(items):
            here = (*last, index == len(items) - 1)
            if isinstance(item, tuple):
                found.append(Line(item[0], level + 1, (item[1],), True, False, here))
            else:
                found += self.lines(item, item.path, level + 1, here)
        return found


def _compressed(item: _Branch[Row] | tuple[str, Row]) -> _Branch[Row] | tuple[str, Row]:
    while isinstance(item, _Branch) and len(item.items) == 1:
        item = item.items[0]
    return item


def _rows(item: _Branch[Row] | tuple[str, Row]) -> list[Row]:
    if isinstance(item, tuple):
        return [item[1]]
    return [row for inner in item.items for row in _rows(inner)]
