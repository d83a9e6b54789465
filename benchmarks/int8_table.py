"""The table of int8 inference: a line for each case and number of threads, every contender's speed and error in it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .contenders import FROZEN, INT8_PEERS
from .results import Results, geometric_mean
from .rows import OK, Row
from .table import duration, sizes
from .workload import INT8

MEAN = "geometric mean"
_NOT_MEASURED = "\N{EN DASH}"


def int8_table(results: Results) -> list[list[str]]:
    """Head and lines: our time, each peer's time over ours (losses bold), the error of each in percent, our stored
    bytes in percent of float32's; then the geometric means, a line for each number of threads. A peer that computes
    nothing here has no column. [] where nothing is of int8."""
    rows = [row for row in results.rows if row.precision == INT8]
    peers = [name for name in INT8_PEERS if any(row.peer == name and row.ratio for row in rows)]
    lines = {}
    for row in rows:
        lines.setdefault((sizes(row), row.threads), {})[row.peer] = row
    measured = {key: line for key, line in lines.items() if any(row.fused_us for row in line.values())}
    if not measured:
        return []
    ours = results.fused
    head = ["T B I H", "thr", ours, *peers, *(f"error {name}" for name in (ours, *peers)), "bytes"]
    means = [_means(rows, threads, peers) for threads in sorted({threads for _, threads in measured})]
    return [head, *(_line(*key, line, peers) for key, line in measured.items()), *means]


def _line(shape: str, threads: int, line: dict[str, Row], peers: Sequence[str]) -> list[str]:
    first = next(row for row in line.values() if row.fused_us)
    found = [line.get(name) for name in peers]
    errors = [first.fused_error, *(row.peer_error if row else None for row in found)]
    times = [duration(first.fused_us), *map(_ratio, found)]
    return [shape, str(threads), *times, *map(_percent, errors), _size(line.get(FROZEN))]


def _ratio(row: Row | None) -> str:
    if row is None or row.status != OK:
        return row.status if row else _NOT_MEASURED
    text = f"{row.ratio:.2f}"
    return f"**{text}**" if float(text) < 1 else text


def _percent(error: float | None) -> str:
    """Two digits; frozen float32 has some 1e-5 %."""
    return _NOT_MEASURED if error is None else f"{100 * error:.2g}"


def _size(row: Row | None) -> str:
    """Of the int8 weights, in percent of the float32 ones."""
    return f"{100 * row.fused_bytes / row.peer_bytes:.0f}" if row and row.peer_bytes else _NOT_MEASURED


def _means(rows: Sequence[Row], threads: int, peers: Sequence[str]) -> list[str]:
    ratios = [
        [row.ratio for row in rows if (row.threads, row.peer, row.status) == (threads, name, OK)] for name in peers
    ]
    means = [f"**{geometric_mean(values):.2f}**" if values else _NOT_MEASURED for values in ratios]
    return [f"**{MEAN}**", str(threads), "", *means, *[""] * (len(peers) + 2)]


def for_terminal(table: Sequence[Sequence[str]]) -> Table:
    """Narrow: a line for each word of a name."""
    head, *lines = table
    shown = Table(
        title=f"int8 inference: time of {head[2]}, of the others over it; errors in %; bytes in % of float32's",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in head:
        is_sizes = name == head[0]
        words = name if is_sizes else name.replace(" ", "\n").replace("_int8", "\n_int8")
        shown.add_column(words, justify="left" if is_sizes else "right", no_wrap=True)
    for line in lines:
        shown.add_row(*(f"[bold]{cell[2:-2]}[/]" if cell.startswith("**") else cell for cell in line))
    return shown
