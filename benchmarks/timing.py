"""Interleaved timing of programs that compute the same thing.

A round runs every program once, in an order that turns from round to round, so that a clock that
drifts (thermal limits, a neighbour on the machine) hits all of them alike. The figure of merit is
the median over rounds of the ratio inside a round; its spread is the distance of the quartiles.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

Program = Callable[[int], object]  # argument: number of the call, picks one of the rotating inputs


@dataclass(frozen=True)
class Budget:
    """When to stop: enough precision, or enough time, but never before `min_rounds` rounds.

    Only where a single round takes longer than `patience` seconds, nothing is repeated.
    """

    seconds: float = 2.0
    min_rounds: int = 5
    max_rounds: int = 400
    precision: float = 0.004  # standard error of the median ratio, relative
    patience: float = 20.0


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of samples."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples) -> Summary:
        low, median, high = np.percentile(samples, (25, 50, 75))
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class _Watch:
    """How samples are taken. `seconds(program, calls)`: time of one of as many calls, at least one for each caller.

    A sample shorter than `sample_seconds` is mostly noise: of the clock and the interpreter, or, with several
    callers, of their start and end. Calls are repeated inside it.
    """

    seconds: Callable[[Program, int], float]
    callers: int = 1
    sample_seconds: float = 500e-6


def interleave(
    programs: Mapping[str, Program], device: torch.device, budget: Budget, callers: int = 1
) -> dict[str, np.ndarray]:
    """Seconds per call of each program, one sample per round.

    callers: Python threads that run the program at the same time (on a CPU). A call's time is then that of the wall
    clock over the calls of all of them: the inverse of calls per second.

    Every program is warmed up first (that call also sizes the sample). The first name is the one
    the others are compared with when deciding whether the samples are precise enough.
    """
    with _watch(device, callers) as watch:
        samples = _samples(programs, watch, budget)
    return {name: np.array(values) for name, values in samples.items()}


def _samples(programs: Mapping[str, Program], watch: _Watch, budget: Budget) -> dict[str, list[float]]:
    calls = {name: _calls_per_sample(run, watch) for name, run in programs.items()}
    samples: dict[str, list[float]] = {name: [] for name in programs}
    names = list(programs)
    start = time.perf_counter()
    for round_number in range(budget.max_rounds):
        order = names if round_number % 2 == 0 else names[::-1]
        for name in order:
            samples[name].append(watch.seconds(programs[name], calls[name]))
        if round_number == 0 and time.perf_counter() - start > budget.patience:
            break
        if round_number + 1 < budget.min_rounds:
            continue
        if time.perf_counter() - start > budget.seconds or _precise(samples, budget.precision):
            break
    return samples


def ratio(samples: Mapping[str, np.ndarray], numerator: str, denominator: str) -> Summary:
    """Median and quartiles of the ratio of two programs' times inside each round."""
    return Summary.of(samples[numerator] / samples[denominator])


def _precise(samples: dict[str, list[float]], precision: float) -> bool:
    first, *others = (np.array(values) for values in samples.values())
    for other in others or [first]:
        pairs = other / first if others else first
        low, median, high = np.percentile(pairs, (25, 50, 75))
        # For a normal distribution the standard error of the median is 0.93 (high - low) / sqrt(n).
        if 0.93 * (high - low) > precision * median * np.sqrt(len(pairs)):
            return False
    return True


def _calls_per_sample(program: Program, watch: _Watch) -> int:
    # First calls pay for lazy initialisation, compilation, algorithm choice; a cheap program gets
    # more of them, since its caches and branch predictors take more than one call to settle.
    for _ in range(2):
        seconds = watch.seconds(program, watch.callers)
    if seconds < watch.sample_seconds:
        seconds = watch.seconds(program, 10 * watch.callers)
    return max(watch.callers, min(1000, int(np.ceil(watch.sample_seconds / max(seconds, 1e-9)))))


@contextmanager
def _watch(device: torch.device, callers: int) -> Iterator[_Watch]:
    if callers == 1:
        yield _Watch(_cuda_seconds if device.type == "cuda" else _cpu_seconds)
        return
    # The threads stay for all samples, as those of a server do: OpenMP starts others for each.
    with ThreadPoolExecutor(callers) as pool:
        yield _Watch(lambda program, calls: _callers_seconds(pool, callers, program, calls), callers, 0.2)


def _callers_seconds(pool: ThreadPoolExecutor, callers: int, program: Program, calls: int) -> float:
    start = threading.Barrier(callers)  # each thread of the pool takes part
    numbers = iter(range(calls))

    def work(_: int) -> tuple[float, float]:
        start.wait()
        began = time.perf_counter()
        for call in numbers:  # whoever is free makes the next call
            program(call)
        return began, time.perf_counter()

    began, ended = zip(*pool.map(work, range(callers)))
    return (max(ended) - min(began)) / calls


def _cpu_seconds(program: Program, calls: int) -> float:
    start = time.perf_counter()
    for call in range(calls):
        program(call)
    return (time.perf_counter() - start) / calls


def _cuda_seconds(program: Program, calls: int) -> float:
    # Events on the stream see the time the device is busy or starved, not the final host wait.
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for call in range(calls):
        program(call)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / calls
