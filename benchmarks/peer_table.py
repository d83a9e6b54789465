"""The table of README.md: cases by peers, threads and modes, ratios alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .cases import ACCEPTANCE, BENCHMARK, Case
from .contenders import FROZEN
from .results import Results, geometric_mean
from .rows import OK, SKIPPED, Row

MEAN = "geometric mean of the plain shapes"
_NOT_MEASURED = "\N{EN DASH}"
_MODES = {"inference": "inference", "train": "training step"}


def peer_table(results: Results) -> list[list[str]]:
    """Head and lines: float32 ratios of every case with a row in a mode of the table, the acceptance cases first;
    losses bold; then the geometric means over the acceptance cases that have the number. Of frozen weights, how much
    faster they make it. Lines of which nothing is known are not there, nor are columns of one case beside others of
    more: more threads than CPUs."""
    rows = [row for row in results.rows if row.setting in _MODES and row.precision == "float32"]
    cases = Counter(_column(row) for row in rows if row.status != SKIPPED)
    least = min(2, max(cases.values(), default=0))
    # A peer that computes nothing here has no column.
    timed = {_column(row) for row in _timed(rows) if cases[_column(row)] >= least}
    columns = [column for column in _columns(rows, results.baseline) if column in timed]
    found = {(row.case, *_column(row)): row for row in rows}
    lines = []
    for case in BENCHMARK:
        cells = [_cell(found.get((case.name, *column))) for column in columns]
        if any(cell != _NOT_MEASURED for cell in cells):
            lines.append([_label(case), *cells])
    if not lines:
        return []
    means = [_mean([found[key] for case in ACCEPTANCE if (key := (case.name, *column)) in found]) for column in columns]
    if any(mean != _NOT_MEASURED for mean in means):
        lines.append([f"**{MEAN}**", *means])
    return [["T, B, I, H", *_heads(columns)], *lines]


def _label(case: Case) -> str:
    """The sizes of a case, and whatever else is not plain."""
    parts = [str(size) for size in (case.T, case.B, case.input_size, case.hidden_size)]
    parts += [f"{case.num_layers} layers"] * (case.num_layers > 1) + ["bidirectional"] * case.bidirectional
    parts += ["resets"] * case.resets + [case.variable] * bool(case.variable)
    return ", ".join(parts + [f"projection {case.proj_size}"] * (case.proj_size > 0))


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.status == OK]


def _column(row: Row) -> tuple[str, int, str]:
    return row.mode, row.threads, row.peer


def _columns(rows: Sequence[Row], baseline: str) -> list[tuple[str, int, str]]:
    """Inference before training, few threads before many, the baseline before the other peers."""
    peers = [baseline, *dict.fromkeys(row.peer for row in rows if row.peer != baseline)]
    modes = list(_MODES)
    return sorted(set(map(_column, rows)), key=lambda c: (modes.index(c[0]), c[1], peers.index(c[2])))


def _heads(columns: Sequence[tuple[str, int, str]]) -> list[str]:
    """Of mode, threads and peer what is new in a column; no peer where there is but one."""
    single = len({peer for *_, peer in columns}) == 1
    heads, before = [], (None, None, None)
    for column in columns:
        mode, threads, peer = column
        words = [_MODES[mode], f"{threads} thread" + "s" * (threads > 1), peer]
        first = next(i for i in range(3) if column[i] != before[i])
        heads.append(", ".join(words[first : 2 if single else 3]))
        before = column
    return heads


def _cell(row: Row | None) -> str:
    if row is None or row.status == SKIPPED:
        return _NOT_MEASURED
    if row.status != OK:
        return row.status
    text = f"{_times_faster(row):.2f}"
    return f"**{text}**" if float(text) < 1 else text


def _times_faster(row: Row) -> float:
    """Than the peer; of frozen weights, than with the others."""
    return 1 / row.ratio if row.peer == FROZEN else row.ratio


def _mean(rows: Sequence[Row]) -> str:
    ratios = [_times_faster(row) for row in _timed(rows)]
    return f"**{geometric_mean(ratios):.2f}**" if ratios else _NOT_MEASURED
