"""Interleaved timing of programs that compute the same thing.

A round runs every program once, in an order that turns from round to round, so that a clock that
drifts (thermal limits, a neighbour on the machine) hits all of them alike. The figure of merit is
the median over rounds of the ratio inside a round; its spread is the distance of the quartiles.

Threads of a pool go on spinning after a call, for 10 ms (OpenMP) to 60 ms (ONNX Runtime) where it was seen: on the CPUs
that the next program's threads ask for. With more threads than one, each program begins when those of the last one
sleep.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

Program = Callable[[int], object]  # argument: number of the call, picks one of the rotating inputs


@dataclass(frozen=True)
class Budget:
    """When to stop: enough precision, or enough time, but never before `min_rounds` rounds.

    Only where a single round takes longer than `patience` seconds, nothing is repeated; and after `longest` seconds,
    warm-up included, no other round is begun.
    """

    seconds: float = 2.0
    min_rounds: int = 5
    max_rounds: int = 400
    precision: float = 0.004  # standard error of the median ratio, relative
    patience: float = 20.0
    longest: float = math.inf


class OutOfTime(Exception):
    """Not even one round fits into `Budget.longest`."""


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
    callers, of their start and end. Calls are repeated inside it. `settle()` is called before each.
    """

    seconds: Callable[[Program, int], float]
    callers: int = 1
    sample_seconds: float = 500e-6
    settle: Callable[[], None] = lambda: None


def interleave(
    programs: Mapping[str, Program], device: torch.device, budget: Budget, callers: int = 1
) -> dict[str, np.ndarray]:
    """Seconds per call of each program, one sample per round.

    callers: Python threads that run the program at the same time (on a CPU). A call's time is then that of the wall
    clock over the calls of all of them: the inverse of calls per second.

    Every program is warmed up first (that call also sizes the sample). The first name is the one
    the others are compared with when deciding whether the samples are precise enough.

    Raises OutOfTime where the warm-up shows that a round takes longer than what is left of `budget.longest`.
    """
    with _watch(device, callers) as watch:
        samples = _samples(programs, watch, budget)
    return {name: np.array(values) for name, values in samples.items()}


def _samples(programs: Mapping[str, Program], watch: _Watch, budget: Budget) -> dict[str, list[float]]:
    began = time.perf_counter()
    seconds = {name: _warm_up(run, watch, budget.longest) for name, run in programs.items()}
    calls = {name: _calls_per_sample(once, watch) for name, once in seconds.items()}
    round_seconds = sum(seconds[name] * calls[name] for name in programs)
    start = time.perf_counter()
    left = budget.longest - (start - began)
    if round_seconds > left:
        slowest = max(seconds, key=seconds.get)
        raise OutOfTime(f"a round takes {round_seconds:.2g} s, most of it {slowest}, {max(left, 0):.2g} s were left")
    samples: dict[str, list[float]] = {name: [] for name in programs}
    names = list(programs)
    for round_number in range(budget.max_rounds):
        order = names if round_number % 2 == 0 else names[::-1]
        for name in order:
            watch.settle()
            samples[name].append(watch.seconds(programs[name], calls[name]))
        now, rounds = time.perf_counter(), round_number + 1
        mean = (now - start) / rounds
        if (rounds == 1 and mean > budget.patience) or now - began + mean > budget.longest:
            break
        if rounds < budget.min_rounds:
            continue
        if now - start > budget.seconds or _precise(samples, budget.precision):
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


def _warm_up(program: Program, watch: _Watch, longest: float) -> float:
    """Seconds of a call."""
    # First calls pay for lazy initialisation, compilation, algorithm choice; a cheap program gets
    # more of them, since its caches and branch predictors take more than one call to settle; one that
    # takes a good part of what there is gets no other.
    watch.settle()
    seconds = watch.seconds(program, watch.callers)
    if seconds < longest / 8:
        seconds = watch.seconds(program, watch.callers)
    if seconds < watch.sample_seconds:
        seconds = watch.seconds(program, 10 * watch.callers)
    return seconds


def _calls_per_sample(seconds: float, watch: _Watch) -> int:
    return max(watch.callers, min(1000, int(np.ceil(watch.sample_seconds / max(seconds, 1e-9)))))


@contextmanager
def _watch(device: torch.device, callers: int) -> Iterator[_Watch]:
    if device.type == "cuda":
        yield _Watch(_cuda_seconds)
    elif callers > 1:
        # The threads stay for all samples, as those of a server do: OpenMP starts others for each.
        with ThreadPoolExecutor(callers) as pool:
            seconds = partial(_callers_seconds, pool, callers)
            yield _Watch(seconds, callers, sample_seconds=0.2, settle=_until_pools_sleep)
    elif torch.get_num_threads() > 1:  # as long as the pause before it
        yield _Watch(_cpu_seconds, sample_seconds=0.02, settle=_until_pools_sleep)
    else:
        yield _Watch(_cpu_seconds)


def _until_pools_sleep(most: float = 0.2, look: float = 0.025) -> None:
    """Until this process does next to nothing for as long as a look, `most` seconds at most.

    What other threads use is counted by the kernel's timer, every 10 ms on the slowest: a look has two of its ticks.
    """
    deadline, used = time.perf_counter() + most, time.process_time()
    while time.perf_counter() < deadline:
        time.sleep(look)
        before, used = used, time.process_time()
        if used - before < look / 4:
            return


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
