"""Jobs, what is to be measured, and rows, what came of it: the lines of the result file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusedlstm.cells import LSTM

from .cases import Case

OK, SKIPPED = "ok", "skipped"
LEFT_OUT = "left out"  # for want of time
WRONG, FAILED = "wrong", "failed"  # our result; we raised, or float64 to compare us with
PEER_WRONG, PEER_FAILED = "peer wrong", "peer failed"


@dataclass(frozen=True)
class Job:
    """One case in one setting, the fused layer against the peers. `cell`: of fusedlstm.cells, by its name."""

    case: Case
    mode: str
    precision: str
    device: torch.device
    threads: int
    peers: tuple[str, ...]
    cell: str = LSTM.name
    cuda_graph: bool = False
    callers: int = 1  # Python threads that call the module at the same time
    neighbours: int = 0  # other processes that keep CPUs busy meanwhile


@dataclass(kw_only=True)
class Row:
    """A line of the result file. Times in microseconds a call (with several callers: of the wall clock, over the
    calls of all), *_low and *_high are quartiles; rates in 1e9 FLOP/s of the matrix products; percentages of
    the fused layer's own rate or time."""

    case: str
    cell: str = LSTM.name  # in files of before there were others
    T: int
    B: int
    I: int
    H: int
    layers: int
    directions: int
    proj_size: int
    feature: str
    mode: str
    precision: str
    device: str
    threads: int
    cuda_graph: bool
    peer: str
    callers: int = 1
    neighbours: int = 0
    status: str = OK
    note: str = ""
    fused_us: float | None = None
    fused_us_low: float | None = None
    fused_us_high: float | None = None
    peer_us: float | None = None
    peer_us_low: float | None = None
    peer_us_high: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    rounds: int | None = None
    fused_gflops: float | None = None
    peer_gflops: float | None = None
    percent_of_mm: float | None = None
    floor_us: float | None = None
    percent_of_floor: float | None = None
    fused_error: float | None = None
    peer_error: float | None = None
    error_limit: float | None = None
    fused_peak_mib: float | None = None
    peer_peak_mib: float | None = None
    fused_bytes: int | None = None  # of the stored weights
    peer_bytes: int | None = None
    plan: str = ""
    other_work: float | None = None  # cores that other processes kept busy meanwhile

    @property
    def setting(self) -> str:
        """The mode, and what else tells apart rows that a summary may not mix: `inference callers 8`."""
        words = [
            self.mode,
            "graph" * self.cuda_graph,
            "cell" * (self.feature == "cell"),
            f"callers {self.callers}" * (self.callers > 1),
            f"neighbours {self.neighbours}" * (self.neighbours > 0),
        ]
        return " ".join(filter(None, words))
