"""Interleaved timing of programs that compute the same thing.

A round runs every program once, in an order that turns from round to round, so that a clock that
drifts (thermal limits, a neighbour on the machine) hits all of them alike. The figure of merit is
the median over rounds of the ratio inside a round; its spread is the distance of the quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

Program = Callable[[int], object]  # argument: number of the call, picks one of the rotating inputs

# A sample shorter than this is mostly clock and interpreter noise: calls are repeated inside it.
_SAMPLE_SECONDS = 500e-6


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


def interleave(programs: Mapping[str, Program], device: torch.device, budget: Budget) -> dict[str, np.ndarray]:
    """Seconds per call of each program, one sample per round.

    Every program is warmed up first (that call also sizes the sample). The first name is the one
    the others are compared with when deciding whether the samples are precise enough.
    """
    seconds_of_calls = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    calls = {name: _calls_per_sample(run, seconds_of_calls) for name, run in programs.items()}
    samples: dict[str, list[float]] = {name: [] for name in programs}
    names = list(programs)
    start = time.perf_counter()
    for round_number in range(budget.max_rounds):
        order = names if round_number % 2 == 0 else names[::-1]
        for name in order:
            samples[name].append(seconds_of_calls(programs[name], calls[name]))
        if round_number == 0 and time.perf_counter() - start > budget.patience:
            break
        if round_number + 1 < budget.min_rounds:
            continue
        if time.perf_counter() - start > budget.seconds or _precise(samples, budget.precision):
            break
    return {name: np.array(values) for name, values in samples.items()}


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


def _calls_per_sample(program: Program, seconds_of_calls) -> int:
    # First calls pay for lazy initialisation, compilation, algorithm choice; a cheap program gets
    # more of them, since its caches and branch predictors take more than one call to settle.
    for _ in range(2):
        seconds = seconds_of_calls(program, 1)
    if seconds < _SAMPLE_SECONDS:
        seconds = seconds_of_calls(program, 10)
    return max(1, min(1000, int(np.ceil(_SAMPLE_SECONDS / max(seconds, 1e-9)))))


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
