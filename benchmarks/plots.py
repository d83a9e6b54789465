"""Figures from rows. Each function draws one file and returns False where no row belongs in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display

import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import ScalarFormatter

from .results import Results, timed
from .rows import Row

_FUSED, _PEER, _FLOOR = "tab:blue", "tab:orange", "0.4"


def draw_all(results: Results, folder: Path, stem: str) -> dict[str, Path]:
    """Title -> file of every figure that has something to show."""
    figures = {"Every case": ("cases", _every_case), "Scaling": ("scaling", _scaling)}
    for mode in dict.fromkeys(row.mode for row in results.rows):
        figures[f"Time per step, {mode}"] = f"time-per-step-{mode}", partial(_time_per_step, mode=mode)
        figures[f"Ratio over hidden size and batch, {mode}"] = f"heat-map-{mode}", partial(_heat_map, mode=mode)
    drawn = {}
    for title, (name, draw) in figures.items():
        path = folder / f"{stem}-{name}.png"
        if draw(results, path):
            drawn[title] = path
    return drawn


def _every_case(results: Results, path: Path) -> bool:
    """Every row against torch.nn's layer, sorted by ratio: left the ratio with its quartiles (losses in red),
    right the times with the floor."""
    rows = sorted(timed(results.rows, results.baseline), key=lambda row: row.ratio)
    if not rows:
        return False
    lines = range(len(rows))
    figure, (ratios, times) = pyplot.subplots(
        1, 2, figsize=(11, 1.5 + 0.17 * len(rows)), sharey=True, layout="constrained"
    )
    median = np.array([row.ratio for row in rows])
    spread = [median - [row.ratio_low for row in rows], [row.ratio_high for row in rows] - median]
    colors = [_FUSED if ratio >= 1 else "tab:red" for ratio in median]
    ratios.barh(lines, median - 1, left=1, xerr=spread, color=colors, height=0.7, ecolor="0.2")
    labels = [f"{row.case}, {row.setting}, {row.precision}, {row.threads} thr" for row in rows]
    ratios.set_yticks(lines, labels, fontsize=6)
    ratios.set_ylim(-1, len(rows))
    ratios.axvline(1, color="black", linewidth=1)
    _log_axis(ratios.xaxis, ratios.set_xscale)
    ratios.set_xlabel(f"{_ratio(results)} (median, quartiles)")
    for name, label, color, marker in (
        ("fused_us", results.fused, _FUSED, "o"),
        ("peer_us", results.baseline, _PEER, "s"),
        ("floor_us", "floor", _FLOOR, "|"),
    ):
        times.plot([getattr(row, name) for row in rows], lines, marker, color=color, label=label, markersize=4)
    times.set_xscale("log")
    times.set_xlabel("time per call (us)")
    times.grid(axis="x", alpha=0.3)
    times.legend(fontsize=7, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    figure.suptitle(_where(results), fontsize=10)
    return _save(figure, path)


def _time_per_step(results: Results, path: Path, mode: str) -> bool:
    """Time per step against H, a panel for each B, from the grid rows, with the floor."""
    rows = _grid_rows(results, mode)
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
        axes.plot(hidden, [r.fused_us / r.T for r in line], "o-", color=_FUSED, label=results.fused)
        axes.plot(hidden, [r.peer_us / r.T for r in line], "s-", color=_PEER, label=results.baseline)
        axes.plot(hidden, [r.floor_us / r.T for r in line], ":", color=_FLOOR, label="floor")
        _log_axis(axes.xaxis, axes.set_xscale, hidden)
        axes.set_yscale("log")
        axes.set(xlabel="hidden size (= input size)", title=f"batch {batch}")
    panels[0][0].set_ylabel("time per step (us)")
    panels[0][0].legend(fontsize=8)
    figure.suptitle(_setting(results, rows[0]), fontsize=9)
    return _save(figure, path)


def _heat_map(results: Results, path: Path, mode: str) -> bool:
    """Ratio over the grid of H and B."""
    rows = _grid_rows(results, mode)
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
    axes.set(xlabel="batch", ylabel="hidden size", title=_ratio(results))
    figure.suptitle(_setting(results, rows[0]), fontsize=9)
    return _save(figure, path)


def _scaling(results: Results, path: Path) -> bool:
    """Time against T, B, H and threads, all else fixed; from the rows named scaling-*."""
    axis_names = {"T": "steps T", "B": "batch B", "H": "hidden size H", "threads": "threads"}
    lines = {
        letter: [row for row in timed(results.rows, results.baseline) if row.case.startswith(f"scaling-{letter}-")]
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
            axes.plot(sizes, [r.fused_us for r in line], "o" + style, color=_FUSED, label=f"{results.fused} {mode}")
            axes.plot(sizes, [r.peer_us for r in line], "s" + style, color=_PEER, label=f"{results.baseline} {mode}")
            axes.plot(sizes, [r.floor_us for r in line], ":", color=_FLOOR)
        _log_axis(axes.xaxis, axes.set_xscale, sizes)
        axes.set_yscale("log")
        axes.set(xlabel=axis_names[letter], ylabel="time per call (us)")
    panels[0][0].legend(fontsize=6)
    figure.suptitle(f"{_where(results)}; dotted: floor", fontsize=9)
    return _save(figure, path)


def _grid_rows(results: Results, mode: str) -> list[Row]:
    """Rows of the grid in the one setting that has most of them: a figure shows one."""
    settings: dict[tuple, list[Row]] = {}
    for row in timed(results.rows, results.baseline):
        if row.case.startswith("grid-") and row.mode == mode:
            settings.setdefault((row.precision, row.threads, row.cuda_graph), []).append(row)
    return max(settings.values(), key=len, default=[])


def _ratio(results: Results) -> str:
    return f"time of {results.baseline} / time of {results.fused}"


def _where(results: Results) -> str:
    return f"{results.machine['device']}, cell {results.cell}"


def _setting(results: Results, row: Row) -> str:
    return f"{_where(results)}, {row.mode}, {row.precision}, {row.threads} threads"


def _log_axis(axis, set_scale, ticks: Sequence[float] | None = None) -> None:
    set_scale("log", base=2)
    axis.set_major_formatter(ScalarFormatter())
    if ticks:
        axis.set_ticks(sorted(set(ticks)))


def _save(figure, path: Path) -> bool:
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
