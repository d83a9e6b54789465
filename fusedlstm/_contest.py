"""Which of fusedlstm's kernels, or cuDNN, run a usual call of layers on a GPU: the fastest, as far as is known.

A call is a problem; all calls of one problem run alike. What is known of a problem comes from the first of these:

1. FUSEDLSTM_PLAN, which forces kernels.
2. A table of what was measured, see _plan_tables.py.
3. A measurement, where torch.backends.cudnn.benchmark asks for it, at the problem's first call. It is kept in a table.
4. The planner's model: cuDNN where the model may be so wrong that its best kernels are slower.

With torch.use_deterministic_algorithms(True) only the tables decide between the two, and nothing is measured.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import NamedTuple

import torch
from torch import Tensor

from fusedlstm import _checks, _cudnn, _library, _measure, _planner
from fusedlstm._layers import zero_states
from fusedlstm._planner import Planner, Problem, log
from fusedlstm._stack import run_stack
from fusedlstm.cells import CELLS


class Decision(NamedTuple):
    """What runs a problem."""

    by_cudnn: bool
    plans: tuple[str, ...]  # of each pass what the planner is asked for: "grid:16x8x1024"; "" for its own choice
    source: str  # of the decision for or against cuDNN: "measured", "a table" or "the model"

    def __str__(self) -> str:
        plans = " and ".join(plan or "the planner's choice" for plan in self.plans)
        return f"{'cuDNN' if self.by_cudnn else f'fusedlstm, {plans}'} ({self.source})"


# Of the last call of a layer on a GPU its device, problem and decision; None where there was no contest.
last: tuple[int, Problem, Decision] | None = None

_KEPT = 1024  # decisions; all are forgotten when there is one more
_decisions: dict[tuple, Decision] = {}
_one_decides = threading.Lock()


def run(x, hx, weights, sizes, batch_sizes, allow_tf32):
    """Output and last states of a call by cuDNN; None where fusedlstm's kernels are to run it.

    Args:
        hx: for each of the cell's states that of all layers, or [] for zeros.
    """
    global last
    last = None
    if x.numel() == 0 or type(x) is not Tensor or CELLS[sizes.cell].cudnn is None:
        return None
    is_recorded = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    is_training = is_recorded and any(tensor.requires_grad for tensor in (x, *hx, *weights))
    T, B = x.shape[:2] if batch_sizes is None else (len(batch_sizes), int(batch_sizes[0]))
    name, I, H, P, L, D, _ = sizes
    problem = Problem(
        name, T, B, I, H, P, L, D, x.dtype, allow_tf32, batch_sizes is not None, is_training
    )  # fmt: skip
    modes = (
        x.get_device(), torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    decision = _decisions.get((problem, modes))
    if decision is None or decision.by_cudnn:
        # Kernels check what they are given; cuDNN, and who measures, may read beyond it.
        _checks.check_tensors(x, hx or None, weights, sizes, B)
        hx = hx or zero_states(CELLS[name], x, sizes, B)
    call = x, hx, weights, sizes, batch_sizes, allow_tf32
    if decision is None:
        decision = _decide(problem, modes, call)
    if decision.by_cudnn and _is_forced():
        return None
    last = modes[0], problem, decision
    return _cudnn.run(*call, is_training) if decision.by_cudnn else None


def last_plan(device=None) -> str:
    """How the last call of a layer ran on a CUDA device: "cuDNN (measured)", or the plans of fusedlstm's kernels.

    Args:
        device: the current one unless given.

    Returns:
        Words for people; "" before the first call. With kernels a line for each pass, of the last that each ran, with
        what the model expects of the layers that were planned together.
    """
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cuda")
    if (reason := _library.why_no_kernels(device)) is not None:
        return f"PyTorch's own layers: {reason}"
    ordinal = _library.ordinal_of(device)
    if last is not None:
        used, _, decision = last
        if used == ordinal and decision.by_cudnn:
            return str(decision)
    return _planner.of_device(ordinal).last_plan()


def _is_forced() -> bool:
    return "FUSEDLSTM_PLAN" in os.environ


def _decide(problem: Problem, modes, call) -> Decision:
    ordinal, may_use_cudnn, is_benchmark, is_deterministic = modes
    own = _planner.of_device(ordinal)
    measures = is_benchmark and not is_deterministic
    may_measure = measures and not _is_forced() and own.may_measure()
    run = functools.partial(_contender, call)
    with _one_decides:
        plans = []
        for is_backward in problem.passes:
            measure = functools.partial(_measure.measure_kernels, problem, is_backward, own, run(is_backward))
            entry, _ = _entry(own, problem.name_of_pass(is_backward), measure if may_measure else None)
            plans.append(entry["plan"] if entry else "")
            if plans[-1]:
                own.prefer(problem, is_backward, plans[-1])
        measure = functools.partial(_measure.measure_call, problem, own, run(problem.is_training))
        entry, source = _entry(own, problem.name, measure if may_measure and may_use_cudnn else None)
    by_cudnn = entry["cudnn"] if entry else not is_deterministic and own.expects_cudnn(problem)
    decision = Decision(may_use_cudnn and by_cudnn, tuple(plans), source)
    log.info("%s: %s", problem.name, decision)
    if not measures or may_measure:  # else it is to be measured as soon as it can be
        if len(_decisions) >= _KEPT:
            _decisions.clear()
        _decisions[problem, modes] = decision
    return decision


def _entry(own: Planner, name: str, measure) -> tuple[dict | None, str]:
    """The entry of this name, and where it is from; measured if there is none and `measure` is not None."""
    if (entry := own.tables.find(name)) is not None:
        return entry, "a table"
    if measure is None:
        return None, "the model"
    entry = measure()
    own.tables.add(name, entry)
    return entry, "measured"


def _contender(call, is_training: bool):
    """run(by_cudnn=False): results of a call, and gradients if it is training, by one of the contenders."""
    x, hx, weights, sizes, batch_sizes, allow_tf32 = call

    def run(by_cudnn=False):
        tensors = [x, *hx, *weights]
        if is_training:
            tensors = [tensor.detach().requires_grad_() for tensor in tensors]
        states, others = tensors[1 : 1 + len(hx)], tensors[1 + len(hx) :]
        arguments = tensors[0], states, others, sizes, batch_sizes, allow_tf32
        with torch.set_grad_enabled(is_training):
            output, last = _cudnn.run(*arguments, is_training) if by_cudnn else run_stack(*arguments)
            if not is_training:
                return [output, *last]
            d_results = [torch.full_like(result, 2**-6) for result in (output, *last)]  # sums of many stay finite
            found = torch.autograd.grad([output, *last], tensors, d_results)
        return [output.detach(), *[state.detach() for state in last], *found]

    return run
