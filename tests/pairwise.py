"""Parametrization by every two values of different parameters, in place of every combination of all."""

from itertools import combinations, product

import pytest


def pairwise(only=lambda *row: True, **values):
    """A mark that parametrizes a test by few rows in which any two values of two parameters meet at least once.

    A fault that three values bring about only together may pass. So what selects code together is one parameter (a cell
    and an arithmetic that a kernel is compiled for), and those that meet in pairs are independent of each other.

    Args:
        only: says of a combination, in the order of `values`, whether it may be a row.
        values: of each parameter, by its name; of a dict, the keys. The same values give the same rows.
    """
    return pytest.mark.parametrize(list(values), rows_of([list(each) for each in values.values()], only), ids=_name)


def rows_of(values, only=lambda *row: True):
    """Greedily: each row has as many pairs that no row before has as a row can."""
    candidates = [row for row in product(*map(_numbered, values)) if only(*(value for _, value in row))]
    pairs = [{*combinations(((p, number) for p, (number, _) in enumerate(row)), 2)} for row in candidates]
    missing, rows = set().union(*pairs), []
    while missing:
        best = max(range(len(candidates)), key=lambda k: len(pairs[k] & missing))  # the first of equals
        missing -= pairs[best]
        rows.append(tuple(value for _, value in candidates[best]))
    return rows


def _numbered(values):
    return list(enumerate(values))


def _name(value):
    """As in the name of a test: what has a name by that, a pair by its parts."""
    if hasattr(value, "name"):
        return value.name
    return "-".join(map(_name, value)) if isinstance(value, tuple) else str(value)
