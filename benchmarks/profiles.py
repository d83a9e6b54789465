"""Which jobs a run consists of."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from fusedlstm.cells import CELLS, LSTM

from .cases import ACCEPTANCE, BENCHMARK, BY_STEP, INT8_GRID, INT8_USERS, Case
from .contenders import FROZEN, INT8_PEERS, RUNTIMES, baseline_name, peers_of
from .machine import usable_cpus
from .rows import Job
from .timing import Budget
from .workload import INT8

_BY_NAME = {case.name: case for case in [*BENCHMARK, *INT8_GRID, *INT8_USERS]}
CASES = list(_BY_NAME.values())  # that can be named

# What nn.LSTM's users do in other ways, in the short run too.
_FEATURES = [_BY_NAME[name] for name in ("rl-b8-h128-resets", "text-packed", "text-lengths", "projection-128-32")]

# Cells are trained through their gradients too: meta-learning, gradient penalties.
_CELL_MODES = ("inference", "train", "second-order")
_FEW_CELLS = [_BY_NAME[name] for name in ("cell-h32-b1", "cell-h128-b16", "cell-h512-b4", "cell-h1024-b1")]

# Multiply-adds of a forward call, some ten seconds on two cores. What is larger is to be asked for by name.
_MOST_ON_A_CPU = 1e12

_MIDDLE = Case("scaling", 100, 16, 128, 128)
SCALING = [
    replace(_MIDDLE, name=f"scaling-{letter}-{size}", **sizes(size))
    for letter, values, sizes in (
        ("T", (1, 10, 100, 1000), lambda size: {"T": size}),
        ("B", (1, 4, 16, 64, 256), lambda size: {"B": size}),
        ("H", (32, 64, 128, 256, 512), lambda size: {"input_size": size, "hidden_size": size}),
    )
    for size in values
]


@dataclass(frozen=True)
class Selection:
    """What the command line asks for; None: the profile's own choice."""

    device: torch.device
    cases: Sequence[str] | None = None
    modes: Sequence[str] | None = None
    precisions: Sequence[str] | None = None
    threads: Sequence[int] | None = None
    peers: Sequence[str] | None = None
    cuda_graph: bool = False
    callers: Sequence[int] | None = None
    neighbours: Sequence[int] | None = None
    cell: str = LSTM.name

    def jobs(
        self,
        cases: Iterable[Case],
        modes: Sequence[str] = ("inference", "train"),
        precisions: Sequence[str] = ("float32",),
        threads: Sequence[int] = (),
        peers: Sequence[str] = (),
        callers: Sequence[int] = (1,),
        neighbours: Sequence[int] = (0,),
    ) -> list[Job]:
        """The product of the arguments, each replaced where the command line says so; of the cases those that the
        cell has; `peers`: torch.nn's layer by default."""
        modes = self.modes or modes
        precisions = self.precisions or precisions
        threads = self.threads or threads or (torch.get_num_threads(),)
        peers = tuple(self.peers or peers or [baseline_name(CELLS[self.cell])])
        graphs = (False, True) if self.cuda_graph else (False,)
        callers = self.callers or callers
        neighbours = self.neighbours or neighbours
        return [
            Job(case, mode, precision, self.device, count, peers, self.cell, *rest)
            for case, precision, mode, count, *rest in product(
                filter(self.has, cases), precisions, modes, threads, graphs, callers, neighbours
            )
        ]

    def has(self, case: Case) -> bool:
        """Whether the cell has the case: only the LSTM has projections."""
        return CELLS[self.cell].has_projection or not case.proj_size

    def named_cases(self) -> list[Case]:
        """Cases whose name fits one of the patterns (`grid-*`); raises if a pattern fits none that the cell has."""
        chosen = {}
        for pattern in self.cases or ():
            names = [name for name in fnmatch.filter(_BY_NAME, pattern) if self.has(_BY_NAME[name])]
            if not names:
                raise ValueError(
                    f"expected a case name or pattern, got {pattern!r}, which is none of {self.cell}; see --list"
                )
            chosen |= {name: _BY_NAME[name] for name in names}
        return list(chosen.values())


def _crowds(selection: Selection, servers: Sequence[str], threads: Sequence[int]) -> list[Job]:
    """CPUs that are fewer than those who want them: 8 callers of one module, more torch threads (`threads`) than CPUs,
    a busy process beside ours (for one thread and for one on each CPU, which should take twice as long at most)."""
    if selection.device.type != "cpu":
        return []
    cpus = usable_cpus()
    inference = ("inference",)
    jobs = selection.jobs([_BY_NAME[name] for name in servers], inference, threads=(cpus,), callers=(8,))
    jobs += selection.jobs([_BY_NAME["stream-128"]], inference, threads=threads)
    return jobs + selection.jobs([_BY_NAME["stream-500"]], inference, threads=sorted({1, cpus}), neighbours=(1,))


def quick(selection: Selection) -> tuple[list[Job], Budget]:
    """Seconds: does the suite run on this machine?"""
    cases = [_BY_NAME[name] for name in ("decode-32", "scalar-series", "digit-rows")]
    jobs = selection.jobs(cases) + selection.jobs(_FEW_CELLS[:2], _CELL_MODES)
    jobs += _crowds(selection, ["server-128"], (2 * usable_cpus(),))
    return _once(jobs), Budget(0.1, 5, 10)


def main(selection: Selection) -> tuple[list[Job], Budget]:
    """The short grid, in which what comes last may be left out: first the acceptance cases, small before large ones."""
    counts = sorted({1, torch.get_num_threads()})
    cases = sorted(ACCEPTANCE, key=lambda case: case.multiply_adds(CELLS[selection.cell]))
    jobs = []
    for case, mode in product(cases, selection.modes or ("inference", "train")):
        peers = _deployed(selection) if mode == "inference" else ()
        jobs += replace(selection, modes=(mode,)).jobs([case], threads=counts, peers=peers)
    jobs += selection.jobs(_FEATURES)
    jobs += selection.jobs(_FEW_CELLS, _CELL_MODES, threads=(1,))
    cpus = usable_cpus()
    jobs += _crowds(selection, ["server-128", "server-256"], (2 * cpus, 4 * cpus))
    return _once(jobs), Budget(0.6)


def _deployed(selection: Selection) -> tuple[str, ...]:
    """The peers of inference: torch.nn's layer and, on a CPU, the runtimes, and ours frozen."""
    on_cpu = (*RUNTIMES, FROZEN) if selection.device.type == "cpu" else ()
    return (baseline_name(CELLS[selection.cell]), *on_cpu)


def full(selection: Selection) -> tuple[list[Job], Budget]:
    """Every case, precision, mode and peer, and the growth with each size."""
    gpu = selection.device.type == "cuda"
    every_thread = torch.get_num_threads()
    counts = sorted({1, every_thread})
    low = ("float32", "tf32", "float16", "bfloat16") if gpu else ("float32",)
    cell = CELLS[selection.cell]
    others = [case for case in BENCHMARK if case not in ACCEPTANCE + BY_STEP]
    if not gpu:
        others = [case for case in others if case.multiply_adds(cell) <= _MOST_ON_A_CPU]
    decoders = [case for case in ACCEPTANCE + others if case.T == 1 or case.name.startswith("rl-")]
    jobs = selection.jobs(ACCEPTANCE, precisions=low, threads=counts)
    jobs += selection.jobs(others, precisions=low)
    jobs += selection.jobs(ACCEPTANCE, ("train-forward",), low)
    jobs += selection.jobs(decoders, ("decode",), low)
    if not gpu:
        jobs += selection.jobs(ACCEPTANCE, precisions=("bfloat16", "float16", "float64"))
        jobs += selection.jobs(others, ("inference",), peers=RUNTIMES)
    jobs += selection.jobs(ACCEPTANCE, peers=peers_of(cell)[1:])
    jobs += selection.jobs(BY_STEP, precisions=low if gpu else ("float32", "float64"), threads=counts)
    jobs += selection.jobs(BY_STEP, ("second-order",), threads=counts)
    cpus = usable_cpus()
    jobs += _crowds(selection, ["server-128", "server-256"], (cpus + 1, 2 * cpus, 4 * cpus, 16 * cpus))
    jobs += selection.jobs(SCALING)
    scaled = [replace(_MIDDLE, name=f"scaling-threads-{count}") for count in counts]
    for case, count in zip(scaled, counts, strict=True):
        jobs += replace(selection, threads=(count,)).jobs([case])
    return _once(jobs), Budget(2.0)


def quantized(selection: Selection) -> tuple[list[Job], Budget]:
    """Int8 inference in one thread and in all: cases of its own, small before large ones, or those that are named."""
    cases = selection.named_cases() or sorted(
        INT8_GRID + INT8_USERS, key=lambda case: case.multiply_adds(CELLS[selection.cell])
    )
    counts = sorted({1, torch.get_num_threads()})
    jobs = []
    for case in cases:
        jobs += selection.jobs([case], ("inference",), (INT8,), counts, INT8_PEERS)
    return _once(jobs), Budget(0.6)


def _once(jobs: list[Job]) -> list[Job]:
    """What the command line names in place of several choices makes jobs alike."""
    return list(dict.fromkeys(jobs))


def custom(selection: Selection) -> tuple[list[Job], Budget]:
    """Only what was named."""
    return selection.jobs(selection.named_cases()), Budget(2.0)


PROFILES = {"quick": quick, "main": main, "full": full, "quantized": quantized, "custom": custom}
