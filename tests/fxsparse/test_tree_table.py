"""Trees with columns as text: plain and as wide as needed, or coloured and as narrow as the terminal."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from fxsparse.module_tree import module_tree
from fxsparse.tree_table import Bar, Column, TreeTable

COLUMNS = (Column("name"), Column("kind", rank=2), Column("", rank=1), Column("share", "right"))


def table(names: list[str]) -> TreeTable:
    lines = module_tree(names, lambda name: name.rpartition(".")[0], lambda name: name, root="Net")
    return TreeTable(COLUMNS, [(line, ["conv", Bar(0.3), "25 %"]) for line in lines])


def printed(thing: TreeTable, width: int, encoding: str = "utf-8") -> str:
    raw = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=raw, width=width, force_terminal=True, color_system="standard", legacy_windows=False)
    console.print(thing)
    raw.flush()
    return raw.buffer.getvalue().decode(encoding)


def test_plain_text_is_indented_and_has_no_escapes() -> None:
    assert table(["a.x", "a.y", "b"]).text().splitlines() == [
        "name     kind              share",
        "Net      conv  ###.......   25 %",
        "  a      conv  ###.......   25 %",
        "    a.x  conv  ###.......   25 %",
        "    a.y  conv  ###.......   25 %",
        "  b      conv  ###.......   25 %",
    ]


@pytest.mark.parametrize("name", ["[bold]x[/bold]", ":smile:", "<script>", "模型", "x" * 300, "a\\[b"])
def test_names_are_never_markup_and_never_cut(name: str) -> None:
    assert name in table([name, "other"]).text()


def test_plain_text_is_the_same_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before = table(["a.x", "a.y"]).text()
    for name, value in (("COLUMNS", "20"), ("FORCE_COLOR", "1"), ("TERM", "dumb"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    assert table(["a.x", "a.y"]).text() == before


@pytest.mark.parametrize("width", [30, 40, 60, 200])
def test_a_terminal_is_never_exceeded_and_loses_columns_by_rank(width: int) -> None:
    lines = [Text.from_ansi(line).plain for line in printed(table(["block.conv1.weight", "block.conv2.weight"]), width).splitlines()]
    assert max(map(cell_len, lines)) <= width
    assert "share" in lines[0]
    assert ("kind" in lines[0]) == (width >= 60)


def test_a_terminal_without_unicode_gets_ascii() -> None:
    assert printed(table(["a.x", "a.y", "b"]), 80, "ascii").isascii()
    assert "├─" in printed(table(["a.x", "a.y", "b"]), 80)


@pytest.mark.parametrize(("fraction", "cells"), [(0.0, 0), (1e-9, 0), (0.5, 5), (0.999, 9), (1.0, 10), (1.5, 10), (-1.0, 0)])
def test_a_bar_shows_the_smallest_part_and_is_full_only_for_all(fraction: float, cells: int) -> None:
    text = Bar(fraction).text()
    assert text.count("#") == cells
    assert (":" in text) == (0 < fraction < 0.05)
    assert len(text) == 10
