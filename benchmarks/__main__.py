"""Train a real program with torch.nn's layer and with the fused one, then time both over a grid of shapes.

Without options: the short run, which leaves out what four minutes are too short for. Tables appear here; CSV, JSON,
figures and a Markdown report go to benchmarks/results/<machine>/.
"""

from __future__ import annotations

import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fusedlstm.cells import CELLS, LSTM

from . import int8_peers, load, machine, measures, options, report
from .contenders import ONNXRUNTIME_INT8
from .int8_table import for_terminal, int8_table
from .limit import Limit
from .profiles import CASES, PROFILES, Selection
from .results import FOLDER, OTHER_WORK, Results
from .rows import FAILED, LEFT_OUT, PEER_FAILED, PEER_WRONG, WRONG, Job, Row
from .suite import reason, run_jobs
from .table import left_out, losses, not_timed, print_wide, rows_table, summary_table
from .timing import Budget

# Relative differences of loss and accuracy up to which two trainings are called the same. Rounding
# moves a weight by 1e-7; training amplifies it over hundreds of updates.
_SAME_LOSS, _SAME_ACCURACY = 0.02, 0.015


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if a result of the fused layer was wrong or a run failed."""
    parser = options.parser(__doc__)
    arguments = parser.parse_args(argv)
    console = Console()
    if arguments.list:
        had = filter(Selection(arguments.device, cell=arguments.cell).has, CASES)
        console.print(*(f"{case.name}: {case}" for case in had), sep="\n", highlight=False)
        return 0
    # Said by PyTorch whenever oneDNN is switched off for a peer, on machines without Intel GPUs.
    warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
    # And at each export for the runtimes of ONNX: of itself, and of torchvision where there is none.
    warnings.filterwarnings("ignore", message=".*treespec", category=FutureWarning)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    device = arguments.device
    options.check(parser, arguments)
    selection = Selection(
        device,
        arguments.cases,
        arguments.mode,
        arguments.dtype,
        arguments.threads,
        arguments.peers,
        arguments.cuda_graph,
        arguments.callers,
        arguments.neighbours,
        arguments.cell,
    )
    profile = "quantized" if arguments.quantized else arguments.profile or ("custom" if arguments.cases else "main")
    rows_alone = profile in ("custom", "quantized")
    try:
        jobs, budget = PROFILES[profile](selection)
    except ValueError as error:
        parser.error(f"argument --cases: {error}")
    folder = arguments.out or FOLDER / _folder_name(device, arguments.cell)
    try:  # now, not when there are results to lose
        _make_writable(folder)
    except OSError as error:
        parser.error(f"argument --out: expected a folder to write to, got {folder}: {error.strerror}")
    default_limit = options.MAIN_LIMIT if profile in ("main", "quantized") else 0
    limit = Limit(default_limit if arguments.limit is None else arguments.limit)
    results = Results(machine.describe(device), cell=arguments.cell)
    if ONNXRUNTIME_INT8 in {name for job in jobs for name in job.peers}:
        results.machine[ONNXRUNTIME_INT8] = int8_peers.setting()
    console.rule(f"[bold]{escape(results.machine['device'])}, torch {torch.__version__}")
    _note_other_work(console, results)
    good = True
    try:
        if not rows_alone:
            good &= _train_digits(console, results, device, limit, epochs=2 if profile == "quick" else 20)
        _time_jobs(console, results, jobs, budget, limit)
        if not rows_alone:
            good &= _measure_others(console, results, device, limit)
    except KeyboardInterrupt:  # what is measured is kept
        results.machine["stopped"] = f"after {len(results.rows)} of {_count(jobs)} measurements"
        console.print(f"[yellow]stopped {results.machine['stopped']}[/]")
        if not (results.rows or results.measures):  # the files of an earlier run are worth more
            return 0
    if during := [row.other_work for row in results.rows if row.other_work is not None]:
        results.machine["other work meanwhile"] = load.said_meanwhile(during)
        console.print(f"other work meanwhile: {results.machine['other work meanwhile']}", highlight=False)
    results.measures["measured limits"] = _ceilings(device, results.rows)
    _show(console, results)
    path = report.write(results, folder / _file_name(profile, arguments.dtype))
    console.print(f"CSV, JSON, figures and report: {path.with_suffix('')}*", highlight=False, markup=False)
    broken = any(row.status in (WRONG, FAILED) for row in results.rows)
    return 0 if good and not broken else 1


def _folder_name(device: torch.device, cell: str) -> str:
    """Of the machine's results; cells beside the LSTM have folders of their own."""
    return machine.folder_name(device) + f"-{cell}" * (cell != LSTM.name)


def _file_name(profile: str, dtypes) -> str:
    """Of a run's results: those of chosen dtypes do not take the place of the profile's own."""
    return "-".join([profile, *(dtypes or ())])


def _make_writable(folder: Path) -> None:
    """Makes the folder where there is none; raises OSError where it cannot hold files."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _keep(console: Console, results: Results, name: str, measure: Callable[[], object]) -> bool:
    """Stores what `measure` returns, or why it failed: the run goes on. Returns whether it worked."""
    try:
        results.measures[name] = measure()
    except Exception as failure:
        results.measures[name] = reason(FAILED, failure)
        console.print(f"[red]{name}[/]: {escape(results.measures[name])}", highlight=False)
        return False
    return True


def _note_other_work(console: Console, results: Results) -> None:
    cores = load.cores_busy_now()
    results.machine[OTHER_WORK] = load.said_before(cores)
    color = "yellow" if cores is not None and cores >= load.BUSY else "dim"
    console.print(f"[{color}]{results.machine[OTHER_WORK]}[/]", highlight=False)


def _train_digits(console: Console, results: Results, device: torch.device, limit: Limit, epochs: int) -> bool:
    """Trains the digit classifier with both, in fewer epochs where a quarter of the time is too short for all; prints
    the losses side by side and returns the verdict."""
    cell, seconds = CELLS[results.cell], limit.left() / 4
    with console.status("training the row-by-row digit classifier with both"):
        if not _keep(console, results, "digit rows", lambda: measures.digit_rows(device, cell, epochs, seconds)):
            return False
    digits = results.measures["digit rows"]
    epochs = len(digits["losses"])
    table = Table(title="Handwritten digits read row by row: training loss, equal seeds")
    for name in ("epoch", results.fused, results.baseline, "difference"):
        table.add_column(name, justify="right")
    shown = sorted({0, 1, 2, *range(4, epochs, 5), epochs - 1} & set(range(epochs)))
    for epoch in shown:
        fused, torch_loss = digits["losses"][epoch]
        cells = (f"{fused:.6f}", f"{torch_loss:.6f}", f"{fused - torch_loss:+.1e}")
        table.add_row(str(epoch + 1), *cells)
    for name, form in (("test accuracy", ".4f"), ("training seconds", ".2f")):
        table.add_row(name, *(format(value, form) for value in digits[name].values()), "")
    console.print(table)
    accuracy = list(digits["test accuracy"].values())
    same = (
        digits["largest loss difference"] <= _SAME_LOSS * digits["losses"][0][1]
        and abs(accuracy[0] - accuracy[1]) <= _SAME_ACCURACY
    )
    console.print("[green]Losses and accuracy agree.[/]" if same else "[red]They do not agree.[/]")
    return same


def _time_jobs(console: Console, results: Results, jobs: list[Job], budget: Budget, limit: Limit) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    total = _count(jobs)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)

        def on_row(row: Row) -> None:
            results.rows.append(row)
            name = f"{row.case} {row.setting} {row.precision} {row.threads} thr"
            ratio = f"{row.ratio:.2f}x" if row.ratio else row.status
            if (row.other_work or 0) >= load.BUSY:
                ratio += f" beside {row.other_work:.1f} busy cores"
            progress.update(task, advance=1, description=f"{name} {ratio}"[:48].ljust(48))
            if not console.is_terminal and row.status != LEFT_OUT:  # there is no bar to see
                console.print(f"{len(results.rows)} of {total}: {name} {ratio}", highlight=False)

        run_jobs(jobs, budget, on_row, limit)


def _count(jobs: list[Job]) -> int:
    """How many rows the jobs give."""
    return sum(len(job.peers) for job in jobs)


def _show(console: Console, results: Results) -> None:
    rows = results.rows
    table = int8_table(results)
    print_wide(console, for_terminal(table) if table else rows_table(results))
    print_wide(console, summary_table(rows))
    for line in losses(rows):
        console.print(f"[yellow]below 1[/] {line}", highlight=False)
    for line in left_out(rows):
        console.print(f"[yellow]{LEFT_OUT}[/] {escape(line)}", highlight=False)
    for (status, peer, note), count in not_timed(rows).items():
        color = "red" if status in (WRONG, FAILED, PEER_WRONG, PEER_FAILED) else "dim"
        console.print(f"[{color}]{status}[/] {peer}: {escape(note)} ({count} rows)", highlight=False)


def _ceilings(device: torch.device, rows: list[Row]) -> dict[str, str]:
    """What floors and percentages of the timed rows relate to, measured when they were."""
    timed = [row for row in rows if row.fused_us is not None]
    settings = dict.fromkeys((row.precision, min(row.threads * row.callers, machine.usable_cpus())) for row in timed)
    limits = {}
    for precision, threads in settings:
        found = machine.ceilings(device, precision, threads)
        limits[f"{precision}, {threads} threads"] = (
            f"torch.mm {found.mm_flops / 1e9:.0f} GFLOP/s, "
            + f"fastest product {found.peak_flops / 1e9:.0f} GFLOP/s, " * (found.peak_flops < math.inf)
            + f"copy {found.bandwidth / 1e9:.0f} GB/s read and written"
        )
    return limits


def _measure_others(console: Console, results: Results, device: torch.device, limit: Limit) -> bool:
    """Returns whether all that there was time for could be measured."""
    cell = CELLS[results.cell]
    others = {
        "import after torch, seconds": measures.start_up_seconds,
        "call at T=1 B=1 I=H=8, us": lambda: measures.call_overhead_us(device, cell, Budget(1.0)),
        "training peak memory at B=16 I=H=128, MiB": lambda: measures.memory_growth_mib(device, cell),
    }
    good = True
    with console.status("start-up, call overhead, growth of memory"):
        for name, measure in others.items():
            if limit.left() <= 0:
                results.measures[name] = f"{LEFT_OUT}: {limit.reason}"
                console.print(f"[yellow]{LEFT_OUT}[/] {name} ({limit.reason})", highlight=False)
            elif _keep(console, results, name, measure):
                console.print(f"{name}: {_text(results.measures[name])}", highlight=False)
            else:
                good = False
    return good


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
