"""Tables for the terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .contenders import FROZEN
from .results import Results, geometric_mean, timed
from .rows import LEFT_OUT, OK, SKIPPED, Row
from .workload import INT8

_WIDE = 170  # columns of the widest table here, about


def print_wide(console: Console, table: Table) -> None:
    """A table wider than a file or a narrow window keeps its columns: lines are not folded."""
    wide = console if console.width >= _WIDE else Console(width=_WIDE, file=console.file)
    wide.print(table, crop=False, soft_wrap=True)


def rows_table(results: Results) -> Table:
    """One line a row; losses in red, wins in green, and what was not timed with its reason."""
    fused = results.fused
    title = f"{fused} (cell {results.cell}) against its peers (ratio: the peer's time over {fused}'s)"
    table = Table(title=title)
    for name in ("case", "T B I H", "mode", "precision", "thr", "peer"):
        table.add_column(name, no_wrap=True)
    numbers = (fused, "peer", "ratio", "+-", "GFLOP/s", "% mm", "% floor", "error", "peer's")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in results.rows:
        if row.status not in (SKIPPED, LEFT_OUT):
            table.add_row(*_head(row), *_numbers(row))
    return table


def _head(row: Row) -> list[str]:
    return [row.case, sizes(row), row.setting, row.precision, str(row.threads), row.peer]


def sizes(row: Row) -> str:
    """T B I H, and what is not plain."""
    text = f"{row.T} {row.B} {row.I} {row.H}"
    text += f" x{row.layers}" * (row.layers > 1) + " bi" * (row.directions > 1)
    return text + f" proj {row.proj_size}" * (row.proj_size > 0)


def _numbers(row: Row) -> list[str]:
    if row.fused_us is None:
        return [f"[bold red]{row.status}[/]: {escape(row.note)}"]
    errors = [_error(row.fused_error), _error(row.peer_error)]
    rates = [f"{row.fused_gflops:.0f}", f"{row.percent_of_mm:.0f}", f"{row.percent_of_floor:.0f}"]
    if row.status != OK:
        return [duration(row.fused_us), row.status, "-", "-", *rates, *errors]
    color = "green" if row.ratio_low > 1 else "red" if row.ratio_high < 1 else "yellow"
    spread = 50 * (row.ratio_high - row.ratio_low) / row.ratio
    times = [duration(row.fused_us), duration(row.peer_us)]
    return [*times, f"[{color}]{row.ratio:.2f}[/]", f"{spread:.0f} %", *rates, *errors]


def summary_table(rows: Sequence[Row]) -> Table:
    """Geometric mean, worst and best ratio for each peer, mode, precision and thread count."""
    table = Table(title="Summary")
    for name in ("peer", "mode", "precision", "threads"):
        table.add_column(name)
    for name in ("cases", "geometric mean", "worst", "best", "slower than peer"):
        table.add_column(name, justify="right")
    for group, line in summary(rows).items():
        table.add_row(*map(str, group), *line)
    return table


def summary(rows: Sequence[Row]) -> dict[tuple, list[str]]:
    """The lines of the summary, by (peer, mode, precision, threads)."""
    groups = defaultdict(list)
    for peer in dict.fromkeys(row.peer for row in rows):
        for row in timed(rows, peer):
            groups[peer, row.setting, row.precision, row.threads].append(row.ratio)
    return {
        group: [
            str(len(ratios)),
            f"{geometric_mean(ratios):.2f}x",
            f"{min(ratios):.2f}x",
            f"{max(ratios):.2f}x",
            str(sum(ratio < 1 for ratio in ratios)),
        ]
        for group, ratios in groups.items()
    }


def losses(rows: Sequence[Row]) -> list[str]:
    """A line for each row whose ratio to another's is below the mark of 1, the lowest first. Ours frozen is another of
    int8 alone."""
    peers = (row for row in rows if row.status == OK and (row.peer != FROZEN or row.precision == INT8))
    slower = sorted((row for row in peers if row.ratio < 1), key=lambda row: row.ratio)
    return [
        f"{row.ratio:.2f}x {row.peer}: {row.case}, {row.setting}, {row.precision}, {row.threads} threads"
        for row in slower
    ]


def not_timed(rows: Sequence[Row]) -> dict[tuple[str, str, str], int]:
    """How many rows were not timed against their peer, by (status, peer, reason); those left out are named by
    `left_out`."""
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    for row in rows:
        if row.status not in (OK, LEFT_OUT):
            counts[row.status, row.peer, row.note] += 1
    return counts


def left_out(rows: Sequence[Row]) -> list[str]:
    """Every row that there was no time for: a line for each peer, setting and reason with the names of its cases."""
    cases: dict[tuple, list[str]] = defaultdict(list)
    for row in rows:
        if row.status == LEFT_OUT:
            cases[row.peer, row.setting, row.precision, row.threads, row.note].append(row.case)
    return [
        f"{peer}, {setting}, {precision}, {threads} threads: {', '.join(names)} ({note})"
        for (peer, setting, precision, threads, note), names in cases.items()
    ]


def duration(microseconds: float) -> str:
    """With a unit that leaves one to three digits before the point."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds:.3g} us"


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.0e}"
