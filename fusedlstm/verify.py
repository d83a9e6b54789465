"""`python -m fusedlstm verify`: each fused layer against torch.nn's on this machine's devices, one line a check."""

import copy
import itertools
import os
import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fusedlstm
from fusedlstm import _library


class Precision(NamedTuple):
    """What a layer computes in. Of float32 on CUDA, TF32 is a precision of its own: where it is allowed, as it is by
    default, cuDNN uses it in some shapes, and fusedlstm in others."""

    name: str
    dtype: torch.dtype

    @property
    def is_tf32(self) -> bool:
        return self.name == "tf32"

    @property
    def eps(self) -> float:
        """The distance from 1 to the next number of what products take."""
        return 2.0**-10 if self.is_tf32 else torch.finfo(self.dtype).eps


PRECISIONS = (
    Precision("float32", torch.float32),
    Precision("tf32", torch.float32),
    Precision("float64", torch.float64),
    Precision("bfloat16", torch.bfloat16),
    Precision("float16", torch.float16),
)


def precisions(device: torch.device) -> list[Precision]:
    """Those that a device has."""
    return [precision for precision in PRECISIONS if device.type == "cuda" or not precision.is_tf32]


@dataclass(frozen=True)
class Check:
    """One call in training: T steps, B sequences, and the arguments of the module."""

    name: str
    T: int
    B: int
    module: dict = field(default_factory=dict)
    packed: bool = False
    layer: str = "LSTM"  # the class of torch.nn


CHECKS = (
    Check("one step of one sequence", 1, 1, {"input_size": 32, "hidden_size": 32}),
    Check("sizes that fill no tile", 7, 3, {"input_size": 5, "hidden_size": 33}),
    Check("no bias", 12, 4, {"input_size": 16, "hidden_size": 24, "bias": False}),
    Check("batch first, 2 layers", 20, 16, {"input_size": 64, "hidden_size": 64, "num_layers": 2, "batch_first": True}),
    Check("bidirectional", 20, 8, {"input_size": 40, "hidden_size": 48, "bidirectional": True}),
    Check("projection", 15, 8, {"input_size": 32, "hidden_size": 64, "proj_size": 16}),
    Check("packed, bidirectional", 25, 6, {"input_size": 32, "hidden_size": 64, "bidirectional": True}, packed=True),
    Check("long", 200, 4, {"input_size": 16, "hidden_size": 64}),
    Check("large", 10, 32, {"input_size": 128, "hidden_size": 256}),
    Check("GRU, bidirectional", 20, 8, {"input_size": 40, "hidden_size": 48, "bidirectional": True}, layer="GRU"),
    Check("GRU, packed", 25, 6, {"input_size": 32, "hidden_size": 64}, packed=True, layer="GRU"),
    Check("RNN, 2 layers", 12, 8, {"input_size": 33, "hidden_size": 40, "num_layers": 2}, layer="RNN"),
    Check("RNN, relu", 6, 4, {"input_size": 16, "hidden_size": 24, "nonlinearity": "relu"}, layer="RNN"),
)


class Result(NamedTuple):
    """Largest errors against float64 over all outputs and gradients, each divided by its tensor's magnitude."""

    error: float
    peer_error: float  # of torch.nn's layer in the same dtype
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # false for NaN too


def main() -> int:
    """Prints one line a check; returns 0 when all pass, else 1."""
    os.environ.setdefault("FUSEDLSTM_PLAN", "")  # it is about fusedlstm's kernels: no cuDNN
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    total = failures = 0
    for device in devices:
        reason = _library.why_no_kernels(device)
        print(f"{device}: {f'PyTorch kernels ({reason})' if reason else 'fused kernels'}")
        for check, precision in itertools.product(CHECKS, precisions(device)):
            result = compare(check, precision, device)
            total, failures = total + 1, failures + (not result.passed)
            print(
                f"  {'ok   ' if result.passed else 'WRONG'} {check.name:<24} {precision.name:<9} "
                f"error {result.error:.1e}, nn.{check.layer} {result.peer_error:.1e}, allowed {result.allowed:.1e}"
            )
    print(f"{total - failures} of {total} checks passed")
    return int(failures > 0)


def compare(check: Check, precision: Precision, device: torch.device) -> Result:
    """Runs one check with a fused layer and with torch.nn's, and both against the latter in float64 on the CPU."""
    torch.manual_seed(0)
    dtype = precision.dtype
    peer = getattr(nn, check.layer)(**check.module, device=device, dtype=dtype)
    fused = getattr(fusedlstm, f"Fused{check.layer}")(**check.module, device=device, dtype=dtype)
    fused.load_state_dict(peer.state_dict())
    exact = copy.deepcopy(peer).to("cpu", torch.float64)

    shape = (check.B, check.T) if peer.batch_first else (check.T, check.B)
    input = torch.randn(*shape, peer.input_size, device=device, dtype=dtype)
    wanted = _results(exact, input.to("cpu", torch.float64), check.packed)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=precision.is_tf32):
        error, peer_error = (_error(_results(module, input, check.packed), wanted) for module in (fused, peer))
    return Result(error, peer_error, allowed=2 * peer_error + _rounding(check, precision))


def _rounding(check: Check, precision: Precision) -> float:
    """What is granted where torch.nn happens to be exact (in float64 it is the reference itself).

    Two roundings of a stored value, or one of each operand of a product, and those of the longest sum, a weight
    gradient's over all rows, in the accumulator's type: they grow with the square root of the number of terms.
    """
    accumulator = torch.float64 if precision.dtype == torch.float64 else torch.float32
    terms = check.T * check.B + check.module["input_size"] + check.module["hidden_size"]
    return 2 * precision.eps + 2 * torch.finfo(accumulator).eps * terms**0.5


def _results(module: nn.Module, input: Tensor, packed: bool) -> list[Tensor]:
    """Output, last states and the gradients of input and parameters, for one random but repeatable loss."""
    input = input.clone().requires_grad_()
    sequence = input
    if packed:
        lengths = torch.arange(input.size(1), 0, -1) * input.size(0) // input.size(1)
        sequence = nn.utils.rnn.pack_padded_sequence(input, lengths)
    output, last = module(sequence)
    outputs = [output.data if packed else output, *(last if isinstance(last, tuple) else [last])]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randint(-2, 3, o.shape, generator=generator).to(o) for o in outputs]
    gradients = torch.autograd.grad(outputs, [input, *module.parameters()], weights)
    return [*outputs, *gradients]


def _error(results: list[Tensor], wanted: list[Tensor]) -> float:
    errors = []
    for result, exact in zip(results, wanted, strict=True):
        magnitude = exact.abs().max()
        error = (result.detach().to("cpu", torch.float64) - exact).abs().max()
        errors.append(error / magnitude if magnitude > 0 else error)
    return torch.stack(errors).max().item()  # NaN if any is
