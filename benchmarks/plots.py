"""Figures from rows. Each function draws one file and returns False where no row belongs in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display

import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import ScalarFormatter

from .results import Results, timed
from .suite import Row

_FUSED, _PEER, _FLOOR = "tab:blue", "tab:orange", "0.4"


def draw_all(results: Results, folder: Path, stem: str) -> dict[str, Path]:
    """Title -> file of every figure that has something to show."""
    figures = {
        "Ratio of every case": ("ratio", _ratio_bars),
        "Time per step": ("time-per-step", _time_per_step),
        "Ratio over hidden size and batch": ("heat-map", _heat_map),
        "Scaling": ("scaling", _scaling),
    }
    drawn = {}
    for title, (name, draw) in figures.items():
        path = folder / f"{stem}-{name}.png"
        if draw(results, path):
            drawn[title] = path
    return drawn


def _ratio_bars(results: Results, path: Path) -> bool:
    """Every ratio against nn.LSTM with its quartiles, sorted; losses below the line are red."""
    rows = sorted(timed(results.rows), key=lambda row: row.ratio)
    if not rows:
        return False
    height = 1.2 + 0.18 * len(rows)
    figure, axes = pyplot.subplots(figsize=(8, height), layout="constrained")
    ratios = np.array([row.ratio for row in rows])
    spread = [ratios - [row.ratio_low for row in rows], [row.ratio_high for row in rows] - ratios]
    colors = [_FUSED if ratio >= 1 else "tab:red" for ratio in ratios]
    axes.barh(range(len(rows)), ratios, xerr=spread, color=colors, height=0.7, ecolor="0.2")
    labels = [f"{row.case}, {row.mode}, {row.precision}, {row.threads} thr" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=6)
    axes.set_ylim(-1, len(rows))
    axes.axvline(1, color="black", linewidth=1)
    _log_axis(axes.xaxis, axes.set_xscale)
    axes.set_xlabel("time of nn.LSTM / time of FusedLSTM (median and quartiles of pairs)")
    axes.set_title(results.machine["device"])
    return _save(figure, path)


def _time_per_step(results: Results, path: Path) -> bool:
    """Time per step against H, a panel for each B, from the grid rows, with the floor."""
    rows = [row for row in timed(results.rows) if row.case.startswith("grid-")]
    rows = _of_largest_group(rows, lambda row: (row.mode, row.precision, row.threads))
    batches = sorted({row.B for row in rows})
    if not batches:
        return False
    figure, panels = pyplot.subplots(
        1,
        len(batches),
        figsize=(3 * len(batches) + 1, 3.5),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, batch in zip(panels[0], batches, strict=True):
        line = sorted((row for row in rows if batch == row.B), key=lambda row: row.H)
        hidden = [row.H for row in line]
        axes.plot(hidden, [r.fused_us / r.T for r in line], "o-", color=_FUSED, label="FusedLSTM")
        axes.plot(hidden, [r.peer_us / r.T for r in line], "s-", color=_PEER, label="nn.LSTM")
        axes.plot(hidden, [r.floor_us / r.T for r in line], ":", color=_FLOOR, label="floor")
        _log_axis(axes.xaxis, axes.set_xscale, hidden)
        axes.set_yscale("log")
        axes.set(xlabel="hidden size (= input size)", title=f"batch {batch}")
    panels[0][0].set_ylabel("time per step (us)")
    panels[0][0].legend(fontsize=8)
    figure.suptitle(_setting(results, rows[0]), fontsize=9)
    return _save(figure, path)


def _heat_map(results: Results, path: Path) -> bool:
    """Ratio over the grid of H and B."""
    rows = [row for row in timed(results.rows) if row.case.startswith("grid-")]
    rows = _of_largest_group(rows, lambda row: (row.mode, row.precision, row.threads))
    if len(rows) < 4:
        return False
    hidden, batches = sorted({row.H for row in rows}), sorted({row.B for row in rows})
    cells = np.full((len(hidden), len(batches)), np.nan)
    for row in rows:
        cells[hidden.index(row.H), batches.index(row.B)] = row.ratio
    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    bound = max(1.5, np.nanmax(np.abs(np.log(cells))))
    axes.imshow(np.log(cells), cmap="RdYlGn", vmin=-bound, vmax=bound, aspect="auto")
    for (i, j), ratio in np.ndenumerate(cells):
        axes.text(j, i, f"{ratio:.2f}", ha="center", va="center")
    axes.set_xticks(range(len(batches)), batches)
    axes.set_yticks(range(len(hidden)), hidden)
    axes.set(xlabel="batch", ylabel="hidden size", title="time of nn.LSTM / time of FusedLSTM")
    figure.suptitle(_setting(results, rows[0]), fontsize=9)
    return _save(figure, path)


def _scaling(results: Results, path: Path) -> bool:
    """Time against T, B, H and threads, all else fixed; from the rows named scaling-*."""
    axis_names = {"T": "steps T", "B": "batch B", "H": "hidden size H", "threads": "threads"}
    lines = {
        letter: [row for row in timed(results.rows) if row.case.startswith(f"scaling-{letter}-")]
        for letter in axis_names
    }
    lines = {letter: rows for letter, rows in lines.items() if len(rows) > 1}
    if not lines:
        return False
    figure, panels = pyplot.subplots(
        1, len(lines), figsize=(3.4 * len(lines), 3.4), squeeze=False, layout="constrained"
    )
    for axes, (letter, rows) in zip(panels[0], lines.items(), strict=True):
        for mode, style in (("inference", "-"), ("train", "--")):
            line = sorted((r for r in rows if r.mode == mode), key=lambda r: getattr(r, letter))
            sizes = [getattr(row, letter) for row in line]
            axes.plot(sizes, [r.fused_us for r in line], "o" + style, color=_FUSED, label=f"FusedLSTM {mode}")
            axes.plot(sizes, [r.peer_us for r in line], "s" + style, color=_PEER, label=f"nn.LSTM {mode}")
            axes.plot(sizes, [r.floor_us for r in line], ":", color=_FLOOR)
        _log_axis(axes.xaxis, axes.set_xscale, sizes)
        axes.set_yscale("log")
        axes.set(xlabel=axis_names[letter], ylabel="time per call (us)")
    panels[0][0].legend(fontsize=6)
    figure.suptitle(f"{results.machine['device']}; dotted: floor", fontsize=9)
    return _save(figure, path)


def _of_largest_group(rows: Sequence[Row], group) -> list[Row]:
    """A figure shows one setting: the one with most rows."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(group(row), []).append(row)
    return max(groups.values(), key=len, default=[])


def _setting(results: Results, row: Row) -> str:
    return f"{results.machine['device']}, {row.mode}, {row.precision}, {row.threads} threads"


def _log_axis(axis, set_scale, ticks: Sequence[float] | None = None) -> None:
    set_scale("log", base=2)
    axis.set_major_formatter(ScalarFormatter())
    if ticks:
        axis.set_ticks(sorted(set(ticks)))


def _save(figure, path: Path) -> bool:
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
