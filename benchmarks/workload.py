"""A workload: one case in one mode, precision and device, with the data every contender shares.

What is timed is a `Program` made from a contender's forward function and its leaves; the mode says
what surrounds that function. The same code surrounds every contender.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from tests.cases import Case
from tests.tf32 import tf32

from .timing import Program

MODES = ("inference", "train-forward", "train", "second-order", "decode")

# tf32 is float32 storage with the tensor cores' shorter products, allowed on both sides.
PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

_DECODE_STEPS = 16  # calls of one step each, the state carried from one to the next
_MAX_BATCHES = 8
_RESET_PROBABILITY = 1 / 32


@dataclass(frozen=True)
class Batch:
    """input [T, B, I]; h_0 [layers * directions, B, R]; c_0 [..., H]; d_output [T, B, D * R];
    lengths int64 [B] or None; reset bool [T, B] or None."""

    input: Tensor
    h_0: Tensor
    c_0: Tensor
    d_output: Tensor
    lengths: Tensor | None
    reset: Tensor | None


# (output, h_n, c_n) from a batch; output is padded with zeros where lengths say so.
Forward = Callable[[Batch], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Model:
    """What a contender makes of a workload; leaves: the parameters, by nn.LSTM's names if equal."""

    forward: Forward
    leaves: dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """One case as one mode runs it. `rounded_to`: the precision all values are rounded to before
    they are stored, where it is not the workload's own."""

    case: Case
    mode: str
    precision: str
    device: torch.device
    rounded_to: str | None = None

    @classmethod
    def of(cls, case: Case, mode: str, precision: str, device: torch.device) -> Workload:
        if mode == "decode":
            case = replace(case, T=_DECODE_STEPS, variable="", resets=False, dropout=0.0)
        return cls(case, mode, precision, device)

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    def exact(self) -> Workload:
        """The same numbers, computed in float64."""
        return replace(self, precision="float64", rounded_to=self.rounded_to or self.precision)

    def without_dropout(self) -> Workload:
        """Itself if it has none."""
        if not self.case.dropout:
            return self
        return replace(self, case=replace(self.case, dropout=0.0))

    @property
    def calls(self) -> int:
        """Calls of the layer stack in one run of a program."""
        return _DECODE_STEPS if self.mode == "decode" else 1

    @property
    def training(self) -> bool:
        return self.mode not in ("inference", "decode")

    @cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """Parameters as nn.LSTM draws and names them, rounded to the dtype, on the device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = nn.LSTM(**self.case.module_kwargs(), dtype=torch.float64)
        return {name: self._stored(value) for name, value in module.state_dict().items()}

    def _stored(self, value: Tensor) -> Tensor:
        rounded = value.to(PRECISIONS[self.rounded_to or self.precision])
        return rounded.to(self.device, self.dtype)

    @cached_property
    def batches(self) -> list[Batch]:
        """Random batches; several on a GPU, so that none is found in the L2 cache of the call
        before."""
        count = 1
        if self.device.type == "cuda":
            l2_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size
            batch_bytes = self.case.T * self.case.B * self.case.input_size * self.dtype.itemsize
            count = max(1, min(_MAX_BATCHES, -(-2 * l2_bytes // batch_bytes)))
        generator = torch.Generator().manual_seed(1)
        return [self._draw_batch(generator) for _ in range(count)]

    def _draw_batch(self, generator: torch.Generator) -> Batch:
        case = self.case

        def normal(*shape: int) -> Tensor:
            return self._stored(torch.randn(shape, generator=generator))

        stacked = case.num_layers * case.directions
        lengths = reset = None
        if case.variable:
            lengths = torch.randint(1, case.T + 1, (case.B,), generator=generator)
            lengths[0] = case.T  # a batch is as long as its longest sequence
        if case.resets:
            reset = torch.rand(case.T, case.B, generator=generator) < _RESET_PROBABILITY
            reset = reset.to(self.device)
        return Batch(
            normal(case.T, case.B, case.input_size),
            normal(stacked, case.B, case.output_size),
            normal(stacked, case.B, case.hidden_size),
            normal(case.T, case.B, case.directions * case.output_size),
            lengths if lengths is None else lengths.to(self.device),
            reset,
        )

    def module(self, lstm_class: type[nn.Module]) -> nn.Module:
        """An instance holding the shared parameters."""
        kwargs = self.case.module_kwargs()
        module = lstm_class(**kwargs, device=self.device, dtype=self.dtype)
        module.load_state_dict(self.state_dict)
        return module.train(self.training)

    def cell(self, cell_class: type[nn.Module]) -> nn.Module:
        """As `module`, of a class like nn.LSTMCell, for a case of a cell."""
        case = self.case
        options = dict(bias=case.bias, device=self.device, dtype=self.dtype)
        cell = cell_class(case.input_size, case.hidden_size, **options)
        cell.load_state_dict({name.removesuffix("_l0"): value for name, value in self.state_dict.items()})
        return cell.train(self.training)

    def program(self, model: Model) -> Program:
        """The mode around the forward function."""
        batches = self.batches
        runs = {
            "inference": _infer,
            "decode": _decode,
            "train-forward": lambda model, batch: model.forward(batch),
            "train": _train,
            "second-order": _train_penalty,
        }
        run = runs[self.mode]
        if self.training:
            batches = [replace(b, input=b.input.detach().requires_grad_()) for b in batches]
        return lambda call: run(model, batches[call % len(batches)])

    def result_names(self, model: Model) -> list[str]:
        """Names of what a program returns."""
        gradients = ["input", *model.leaves]
        training = {"train": ["output", *gradients], "second-order": ["gradient", *gradients]}
        return training.get(self.mode, ["output", "h_n", "c_n"])

    def flops(self) -> float:
        """Of the matrix products, over all calls: 2 per multiply-add, backward twice the
        forward. The gradient of the input alone is one pass, as forward is; backward is twice both."""
        passes = {"train": 3, "second-order": 6}.get(self.mode, 1)
        return 2.0 * self.case.multiply_adds() * self._valid_fraction() * passes

    def bytes_moved(self) -> float:
        """Compulsory traffic: everything read once and written once, whatever the algorithm.

        Weights, input, output and states; when training also the activated gates and cell states,
        written forward and read backward, and the gradients.
        """
        case, item_bytes = self.case, self.dtype.itemsize
        weights = sum(value.numel() for value in self.state_dict.values()) * item_bytes
        rows = case.T * case.B * self._valid_fraction()
        outputs = rows * case.directions * case.output_size * item_bytes
        inputs = rows * case.input_size * item_bytes
        total = weights + inputs + outputs
        if self.training:
            cell_bytes = max(4, item_bytes)
            saved = 4 * case.hidden_size * item_bytes + case.hidden_size * cell_bytes
            saved *= rows * case.directions * case.num_layers
            total += saved
            if self.mode in ("train", "second-order"):
                total += saved + 2 * weights + 2 * inputs + 2 * outputs
        return total

    def _valid_fraction(self) -> float:
        lengths = self.batches[0].lengths
        return 1.0 if lengths is None else lengths.sum().item() / (self.case.T * self.case.B)


def _infer(model: Model, batch: Batch):
    with torch.inference_mode():
        return model.forward(batch)


def _decode(model: Model, batch: Batch):
    outputs = []
    with torch.inference_mode():
        state = batch
        for step in batch.input.split(1):
            output, h_n, c_n = model.forward(replace(state, input=step))
            state = replace(state, h_0=h_n, c_0=c_n)
            outputs.append(output)
    return torch.cat(outputs), h_n, c_n


def _train(model: Model, batch: Batch):
    output, _, _ = model.forward(batch)
    leaves = [batch.input, *model.leaves.values()]
    return output, *torch.autograd.grad(output, leaves, batch.d_output)


def _train_penalty(model: Model, batch: Batch):
    """The gradient of a gradient penalty: of the square of the input's gradient, by everything."""
    output, _, _ = model.forward(batch)
    (gradient,) = torch.autograd.grad(output, batch.input, batch.d_output, create_graph=True)
    leaves = [batch.input, *model.leaves.values()]
    return gradient, *torch.autograd.grad(gradient.square().sum(), leaves)


def precision_switches(precision: str) -> AbstractContextManager[None]:
    """The same switches for every contender: TF32 with TF32, strict float32 with strict."""
    return tf32(lstm=precision == "tf32", matmul=precision == "tf32")
