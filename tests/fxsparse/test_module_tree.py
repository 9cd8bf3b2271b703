"""Rows as a tree by module: what is folded, summed and sorted, and that no row is lost."""

from hypothesis import given
from hypothesis import strategies as st

from fxsparse.module_tree import Line, module_tree

ROWS = [("stem", 1), ("body.0.conv1", 2), ("body.0.conv2", 3), ("body.1.conv", 4), ("head.fc", 5)]


def tree(rows: list[tuple[str, int]], **more: object) -> list[Line[tuple[str, int]]]:
    return module_tree(rows, lambda row: row[0], lambda row: f"{row[0]}.weight", root="Net", **more)  # type: ignore[arg-type]


def shown(lines: list[Line[tuple[str, int]]]) -> list[tuple[int, str]]:
    return [(line.depth, line.label) for line in lines]


def test_rows_stand_in_their_modules_and_lone_modules_make_no_line() -> None:
    assert shown(tree(ROWS)) == [
        (0, "Net"),
        (1, "stem.weight"),
        (1, "body"),
        (2, "body.0"),
        (3, "body.0.conv1.weight"),
        (3, "body.0.conv2.weight"),
        (2, "body.1.conv.weight"),
        (1, "head.fc.weight"),
    ]


def test_a_depth_folds_to_one_line_that_stands_for_all_of_its_rows() -> None:
    lines = tree(ROWS, depth=1)
    assert shown(lines) == [(0, "Net"), (1, "stem.weight"), (1, "body"), (1, "head.fc.weight")]
    assert [line.folded for line in lines] == [False, False, True, False]
    assert sum(row[1] for row in lines[2].rows) == 9
    assert shown(tree(ROWS, depth=0)) == [(0, "Net")]


def test_sorting_puts_the_largest_sum_first_within_each_module() -> None:
    labels = [label for _, label in shown(tree(ROWS, sort=lambda row: row[1]))]
    assert labels == [
        "Net",
        "body",
        "body.0",
        "body.0.conv2.weight",
        "body.0.conv1.weight",
        "body.1.conv.weight",
        "head.fc.weight",
        "stem.weight",
    ]


def test_rows_that_are_not_shown_belong_to_their_modules() -> None:
    lines = tree(ROWS, shown=lambda row: row[1] in (2, 5))
    assert [label for _, label in shown(lines)] == ["Net", "body", "body.0", "body.0.conv1.weight", "head.fc.weight"]
    assert len(lines[0].rows) == 5
    assert len(lines[1].rows) == 3


def test_guides_end_at_the_last_line_of_a_module() -> None:
    lines = {line.label: line.last for line in tree(ROWS)}
    assert lines["Net"] == ()
    assert lines["body.0.conv2.weight"] == (False, False, True)
    assert lines["body.1.conv.weight"] == (False, True)
    assert lines["head.fc.weight"] == (True,)


PATHS = st.lists(st.lists(st.sampled_from("abc"), max_size=4).map(".".join), max_size=12)


@given(PATHS, st.none() | st.integers(0, 4))
def test_every_row_is_below_the_root_and_in_one_line_or_one_fold(paths: list[str], depth: int | None) -> None:
    lines = tree([(path, index) for index, path in enumerate(paths)], depth=depth)
    assert sorted(row[1] for row in lines[0].rows) == list(range(len(paths)))
    ends = [row[1] for line in lines if line.is_row or line.folded for row in line.rows]
    assert sorted(ends) == list(range(len(paths)))
    if depth is not None:
        assert max(line.depth for line in lines) <= depth
