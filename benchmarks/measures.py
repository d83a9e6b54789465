"""What is measured once in a run, beside the rows: start-up, call overhead, growth of memory."""

from __future__ import annotations

import math

import torch

from fusedlstm.cells import Cell

from .cases import Case
from .contenders import CONTENDERS, baseline_name, fused_name
from .machine import import_seconds
from .memory import peak_mib
from .timing import Budget, Program, Summary, interleave
from .workload import Workload


def _sides(cell: Cell) -> tuple[str, str]:
    return fused_name(cell), baseline_name(cell)


def _programs(workload: Workload) -> dict[str, Program]:
    contenders = CONTENDERS[workload.cell.name]
    return {name: workload.program(contenders[name].build(workload)) for name in _sides(workload.cell)}


def start_up_seconds(repeats: int = 3) -> float:
    """Time of `import fusedlstm` after torch: the best of several fresh interpreters."""
    return min(import_seconds("fusedlstm") for _ in range(repeats))


def call_overhead_us(device: torch.device, cell: Cell, budget: Budget) -> dict[str, float]:
    """Time of a call with almost nothing to compute (T=1, B=1, I=H=8, inference)."""
    workload = Workload.of(Case("call", 1, 1, 8, 8), "inference", "float32", device, cell)
    samples = interleave(_programs(workload), device, budget)
    return {name: Summary.of(values).median * 1e6 for name, values in samples.items()}


def memory_growth_mib(device: torch.device, cell: Cell, steps=(64, 128, 256, 512)) -> dict[str, dict]:
    """Peak memory of a training step (B=16, I=H=128) at several lengths."""
    growth = {}
    for T in steps:
        workload = Workload.of(Case("growth", T, 16, 128, 128), "train", "float32", device, cell)
        growth[f"T={T}"] = {name: peak_mib(program, device) for name, program in _programs(workload).items()}
    return growth


def digit_rows(device: torch.device, cell: Cell, epochs: int, seconds: float = math.inf) -> dict[str, object]:
    """One real program trained with both from the same seed (see examples/digit_rows.py). As many epochs as fit into
    the seconds, judged by the first; one at least."""
    from examples import digit_rows as example
    from examples.side_by_side import LAYERS, loss_difference, run_each

    layers, sides = LAYERS[cell.name], _sides(cell)
    # Lazy initialisation belongs to no side.
    first = run_each(layers, lambda layer: example.train(layer, 1, str(device)))
    # In turns, the better time of each: a neighbour on the machine disturbs one of them at most.
    turns = 2
    epoch_seconds = sum(first[name].seconds for name in sides)
    epochs = max(1, int(min(epochs, seconds / (turns * epoch_seconds))))
    runs = [run_each(layers, lambda layer: example.train(layer, epochs, str(device))) for _ in range(turns)]
    results = runs[0]
    return {
        "epochs": epochs,
        "losses": [list(pair) for pair in zip(*(results[n].losses for n in sides), strict=True)],
        "largest loss difference": loss_difference(results),
        "test accuracy": {name: results[name].score for name in sides},
        "training seconds": {name: min(run[name].seconds for run in runs) for name in sides},
    }
