"""How far a right result may lie from the float64 reference, computed from the problem.

A result in dtype `stored` differs from the exact one by

* the sums of `terms` products in the accumulating dtype: rounding errors of either sign, so they
  grow as sqrt(terms) * u_acc (u: unit roundoff, half of eps);
* h, rounded to `stored` at every step, and again where a gradient is stored: u_stored each;
* the activations, which kernels on CUDA approximate;
* what earlier steps and lower layers pass on. With the usual weights (within 1/sqrt(H)) a step
  passes on less than it got, so that this saturates: `MEMORY` steps count at full weight.

`SAFETY` covers what the square root leaves to chance; the suite's worst case uses four fifths of the
whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY = 2
SAFETY = 2.5


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def activations(device_type: str, dtype: torch.dtype) -> float:
    """Error of a step's activations: on CUDA the one-instruction tanh for bfloat16, exp and division for the others.

    test_cuda_emulated.py has them as wrong as the hardware may be.
    """
    if device_type != "cuda" or dtype == torch.float64:
        return 0.0
    return 2**-11 if dtype == torch.bfloat16 else 2**-22


def tolerance(dtype: torch.dtype, terms: int, steps: int, layers: int = 1, device_type: str = "cpu") -> float:
    """Allowed error of values of magnitude one: outputs and states, or gradients over their maximum.

    Args:
        dtype: of the tensors; 16-bit types accumulate in float32.
        terms: products in the longest sum (forward: I + R; weight gradients: also T * B).
        steps, layers: of the problem.
        device_type: where it was computed.
    """
    accumulated = torch.promote_types(dtype, torch.float32)
    per_step = terms**0.5 * roundoff(accumulated) + roundoff(dtype) + activations(device_type, dtype)
    return SAFETY * min(steps, MEMORY) * layers * per_step


def between_calls(device: torch.device, dtype: torch.dtype) -> float:
    """Allowed difference of the same product in two calls, or in two members of an ensemble, of the largest element.

    None on the CPU. cuBLAS may choose a kernel by the addresses of the operands.
    """
    return 0.0 if device.type == "cpu" else 32 * torch.finfo(dtype).eps


def assert_near(actual: Tensor, expected: Tensor, allowed: float, what: str) -> float:
    """Fail with the worst element; returns the part of `allowed` that was used.

    The error is measured against the largest magnitude in `expected`, and one at least.
    """
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    nans = (actual.isnan() != expected.isnan()).nonzero()
    assert len(nans) == 0, f"{what}: NaN at {nans[0].tolist()} in only one of the two"
    if actual.numel() == 0:
        return 0.0
    error = (actual - expected).abs().nan_to_num()
    scale = max(1.0, expected.nan_to_num().abs().max().item())
    worst = error.argmax()
    used = error.flatten()[worst].item() / (scale * allowed)
    index = [int(i) for i in torch.unravel_index(worst, error.shape)]
    assert used <= 1, (
        f"{what}: {used:.1f} times the allowed error {scale * allowed:.2e} at {index}: "
        f"got {actual.flatten()[worst].item()!r}, expected {expected.flatten()[worst].item()!r}"
    )
    return used
