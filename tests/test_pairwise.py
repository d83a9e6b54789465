"""pairwise.py: which rows a test gets."""

from itertools import combinations, product

import pytest
from pairwise import pairwise, rows_of


def pairs(rows):
    return {pair for row in rows for pair in combinations(enumerate(row), 2)}


@pytest.mark.parametrize("sizes", [(2, 2), (3, 2, 4), (2, 2, 2, 2, 2), (5, 4, 3, 3)], ids=str)
def test_every_two_values_meet_in_few_rows(sizes):
    values = [list(range(size)) for size in sizes]
    rows = rows_of(values)
    assert pairs(rows) == pairs(product(*values)) and rows == rows_of(values)
    least = max(m * n for m, n in combinations(sizes, 2))
    assert least <= len(rows) <= 1.5 * least + 1 and len(set(rows)) == len(rows)


def test_what_may_not_be_is_no_row():
    values = [[1, 2, 3], [1, 2, 3], [1, 2]]
    allowed = [row for row in product(*values) if row[0] != row[1]]
    rows = rows_of(values, lambda a, b, _: a != b)
    assert set(rows) <= set(allowed) and pairs(rows) == pairs(allowed)


def test_names():
    mark = pairwise(cell=["lstm"], size={"small": 1, "large": 2}, run=[("a", 3)])
    names, rows = mark.args
    assert names == ["cell", "size", "run"] and rows == [("lstm", "small", ("a", 3)), ("lstm", "large", ("a", 3))]
    assert mark.kwargs["ids"](("a", 3)) == "a-3"
