"""Error of a contender against the same program in float64, and what error is no longer rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .contenders import build_torch
from .workload import Model, Workload

# Relative error of one rounding. tf32 products round their operands to 10 bits of mantissa.
_ROUNDING = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
}
_MEMORY = 32  # steps over which the forget gates of random weights let an error live


class Reference:
    """Results of nn.LSTM's own loop in float64, from the weights and inputs as rounded.

    `workload` must be without dropout: masks are drawn by each contender for itself.
    """

    def __init__(self, workload: Workload):
        exact = workload.exact()
        self._workload = workload
        self._results = _named_results(exact, build_torch(exact, native=True))
        self.limit = _limit(workload)

    def error_of(self, model: Model) -> float:
        """Largest error of any result, relative to the largest value of that result.

        Results that only one side names (a contender with its own weight layout) are left out;
        the output and the gradient of the input are always compared. inf for NaN or bad shapes.
        """
        results = _named_results(self._workload, model)
        return max(_error(results[name], exact) for name, exact in self._results.items() if name in results)


def _named_results(workload: Workload, model: Model) -> dict[str, Tensor]:
    results = workload.program(model)(0)
    return dict(zip(workload.result_names(model), (value.detach() for value in results), strict=True))


def _error(result: Tensor, exact: Tensor) -> float:
    if result.shape != exact.shape:
        return math.inf
    scale = exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = ((result.double() - exact).abs().max() / scale).item()
    return error if math.isfinite(error) else math.inf


def _limit(workload: Workload) -> float:
    """An error above this is a mistake and not rounding.

    Roundings of independent sign add up as the square root of their number: one for each step (as
    many as the state remembers) and layer, and one for each term of the longest sum where sums are
    kept in the same precision as their operands. Shorter operands (16 bits, tf32) are summed in
    float32, whose roundings do not count beside theirs. Factor 4: the gain of backward, and errors
    that are not independent; a wrong gate, step or direction is beyond it by orders.
    """
    case = workload.case
    roundings = min(case.T, _MEMORY) * case.num_layers
    if workload.precision in ("float32", "float64"):
        roundings += max(case.input_size, case.hidden_size)
        if workload.mode in ("train", "second-order"):
            roundings += case.T * case.B
    if workload.mode == "second-order":  # over the steps forward and back, and both ways again
        roundings *= 2
    return 4 * _ROUNDING[workload.precision] * math.sqrt(roundings)
