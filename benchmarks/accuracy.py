"""Error of a contender against the same program in float64, and what error is no longer rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedlstm.cells import RNN_RELU

from .cases import Case
from .contenders import build_torch
from .workload import INT8, Model, Workload

# Relative error of one rounding. tf32 products round their operands to 10 bits of mantissa.
_ROUNDING = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
}
_MEMORY = 32  # steps over which the forget gates of random weights let an error live
# Of int8: steps from one end of a range to the other where a contender has 7 bits (torch's activations; ONNX Runtime's
# weights without VNNI).
_INT8_STEPS = 127
# A slope that jumps: a sum within rounding of the corner gets a slope of one side or the other, and no precision makes
# the gradients of two programs agree in their largest difference.
_WITH_CORNERS = {RNN_RELU.name}


class Reference:
    """Results of torch.nn's own loop in float64, from the weights and inputs as rounded.

    `workload` must be without dropout: masks are drawn by each contender for itself.
    """

    def __init__(self, workload: Workload):
        exact = workload.exact()
        self._workload = workload
        self._results = _named_results(exact, build_torch(exact, native=True))
        self.limit = _limit(workload)
        self._norm = 2 if _has_corners(workload) or workload.precision == INT8 else math.inf

    def error_of(self, model: Model) -> float:
        """Largest error of any result, relative to the largest value of that result; for gradients of a cell with
        corners and for int8, the root mean square of the error relative to that of the result.

        Results that only one side names (a contender with its own weight layout) are left out;
        the output and the gradient of the input are always compared. inf for NaN or bad shapes.
        """
        results = _named_results(self._workload, model)
        return max(_error(results[name], exact, self._norm) for name, exact in self._results.items() if name in results)


def _named_results(workload: Workload, model: Model) -> dict[str, Tensor]:
    results = workload.program(model)(0)
    return dict(zip(workload.result_names(model), (value.detach() for value in results), strict=True))


def _error(result: Tensor, exact: Tensor, norm: float) -> float:
    if result.shape != exact.shape:
        return math.inf
    scale = torch.linalg.vector_norm(exact, norm).clamp_min(torch.finfo(torch.float64).tiny)
    error = (torch.linalg.vector_norm(result.double() - exact, norm) / scale).item()
    return error if math.isfinite(error) else math.inf


def _limit(workload: Workload) -> float:
    """An error above this is a mistake and not rounding.

    Roundings of independent sign add up as the square root of their number: one for each step (as
    many as the state remembers) and layer, and one for each term of the longest sum where sums are
    kept in the same precision as their operands. Shorter operands (16 bits, tf32) are summed in
    float32, whose roundings do not count beside theirs. Factor 4: the gain of backward, and errors
    that are not independent; a wrong gate, step or direction is beyond it by orders.

    In int8 it is the root mean square that is held. A quantized value is wrong by 1 / sqrt(12) of a step, relative to
    its kind's root mean square by the range of that kind; a sum of products is as wrong as one of them, however many
    there are; layers add theirs. Factor 2: what the recurrence adds. Sums that saturate are beyond it.

    With corners: as large a part of all slopes is wrong, each in the gradients of its layer and those before it, and
    the root mean square grows with the square root of their number. For sizes at which a single slope is not much.
    """
    case = workload.case
    if workload.precision == INT8:
        return 2 * math.hypot(*_int8_ranges(case)) / _INT8_STEPS * math.sqrt(case.num_layers / 12)
    roundings = min(case.T, _MEMORY) * case.num_layers
    if workload.precision in ("float32", "float64"):
        roundings += max(case.input_size, case.hidden_size)
        if workload.mode in ("train", "second-order"):
            roundings += case.T * case.B
    if workload.mode == "second-order":  # over the steps forward and back, and both ways again
        roundings *= 2
    limit = 4 * _ROUNDING[workload.precision] * math.sqrt(roundings)
    return math.sqrt(limit * case.num_layers) if _has_corners(workload) else limit


def _int8_ranges(case: Case) -> tuple[float, float]:
    """From the least to the largest, over the root mean square: of normal activations, for all of which torch has one
    range, and of uniform weights."""
    activations = case.T * case.B * max(case.input_size, case.hidden_size)
    return 2 * math.sqrt(2 * math.log(activations)), 2 * math.sqrt(3)


def _has_corners(workload: Workload) -> bool:
    return workload.cell.name in _WITH_CORNERS and workload.mode in ("train", "second-order")
