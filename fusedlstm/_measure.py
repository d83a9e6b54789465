"""A contest between the kernels of a problem and cuDNN: runs each, compares their values, and tells the fastest."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

# (run, how often) -> microseconds of one of so many runs in a row
Clock = Callable[[Callable[[], object], int], float]

ROUNDS = 5  # each contender is timed so often, in turns; odd, for a median
ROUND_MICROSECONDS = 2000
MOST_RUNS = 50  # of one round
LEAD = 0.98  # a contender beats those before it only with less than this part of their time: ties are stable

# How far results may be from those of STREAM, relative, by the norm: errors of long recurrences, not of one step.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
TF32_TOLERANCE = 3e-2


def measure_kernels(problem, is_backward: bool, planner, run) -> dict:
    """The entry of one pass in a table: {"plan": as the planner is asked for it, "microseconds": of each by name}.

    Args:
        run: run() returns the results of a call by kernels, and its gradients if it is of the backward pass.
    """
    plans = [plan["request"] for plan in planner.contenders(problem, is_backward)["plans"]]
    plans.sort(key=lambda plan: plan != "stream")  # first, since the others are compared with it

    def contender(plan):
        return lambda: planner.prefer(problem, is_backward, plan), run

    contenders = {plan: contender(plan) for plan in plans}
    times = _times(problem.name_of_pass(is_backward), contenders, _tolerance(problem), planner.clock())
    return {"plan": _fastest(times), "microseconds": times}


def measure_call(problem, planner, run) -> dict:
    """The entry of a whole call: {"cudnn": whether that is faster than our kernels, "microseconds": of both}.

    Args:
        run: run(by_cudnn) returns the results of the call, and its gradients if it is training.
    """
    contenders = {name: (lambda: None, lambda by=name == "cudnn": run(by)) for name in ("fusedlstm", "cudnn")}
    times = _times(problem.name, contenders, _tolerance(problem), planner.clock())
    return {"cudnn": _fastest(times) == "cudnn", "microseconds": times}


def _fastest(times: dict[str, float]) -> str:
    """The name with the least time, the first of those that are as good as equal."""
    best, *others = times
    for name in others:
        if times[name] < LEAD * times[best]:
            best = name
    return best


def _tolerance(problem) -> float:
    return TF32_TOLERANCE if problem.dtype is torch.float32 and problem.allow_tf32 else TOLERANCE[problem.dtype]


def _times(problem: str, contenders, tolerance: float, clock: Clock) -> dict[str, float]:
    """Microseconds of each contender, the median of several rounds in turns.

    One that fails, or whose results are not the first one's, is left out with a warning.

    Args:
        contenders: by name, what is to be called before a contender runs, and the contender.

    Raises:
        RuntimeError: none of them runs; it is the first one's error.
    """
    contenders, errors, expected = dict(contenders), [], None

    def leave_out(name, reason):
        del contenders[name]
        warnings.warn(f"fusedlstm leaves {name} out for {problem}: {reason}", RuntimeWarning, stacklevel=3)

    def attempt(name, action):
        """What it returns; None where the contender fails."""
        prepare, run = contenders[name]
        try:
            prepare()
            return action(run)
        except RuntimeError as error:  # out of memory too
            errors.append(error)
            leave_out(name, str(error).split("\n")[0])

    for name in list(contenders):
        if (results := attempt(name, lambda run: run())) is None:
            continue
        expected = results if expected is None else expected
        distance = max(map(_distance, results, expected))
        if not distance <= tolerance:
            leave_out(name, f"expected the others' values within {tolerance}, got a distance of {distance:.3g}")
    once = {name: attempt(name, lambda run: clock(run, 1)) for name in list(contenders)}
    rounds = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name in list(contenders):
            runs = min(MOST_RUNS, max(1, int(ROUND_MICROSECONDS / max(once[name], 1))))
            rounds[name].append(attempt(name, lambda run, runs=runs: clock(run, runs)))
    if not contenders:
        raise errors[0]
    return {name: round(sorted(rounds[name])[ROUNDS // 2], 2) for name in contenders}


def _distance(result, expected) -> float:
    """Relative, by the norm, where what is expected is finite."""
    finite = expected.isfinite()
    result, expected = result.double()[finite], expected.double()[finite]
    if expected.numel() == 0:
        return 0.0
    return float((result - expected).norm() / expected.norm().clamp_min(1e-30))


def cuda_clock(run, times: int) -> float:
    """On the current stream of the current CUDA device, the host's time included where the GPU waits for it."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / times
