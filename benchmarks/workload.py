"""A workload: one case in one mode, precision and device, with the data every contender shares.

What is timed is a `Program` made from a contender's forward function and its leaves; the mode says
what surrounds that function. The same code surrounds every contender.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

import fusedlstm
from fusedlstm.cells import LSTM, Cell
from tests.tf32 import tf32

from .cases import Case
from .timing import Program

MODES = ("inference", "train-forward", "train", "second-order", "decode")

INT8 = "int8"

# What tensors are stored in. tf32 is float32 storage with the tensor cores' shorter products, allowed on both sides;
# int8 is a float32 layer that contenders quantize for themselves.
PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    INT8: torch.float32,
}

_DECODE_STEPS = 16  # calls of one step each, the state carried from one to the next
_MAX_BATCHES = 8
_RESET_PROBABILITY = 1 / 32


@dataclass(frozen=True)
class Batch:
    """input [T, B, I]; initial states: h [layers * directions, B, R], those after it [..., H]; d_output [T, B, D * R];
    lengths int64 [B] or None; reset bool [T, B] or None."""

    input: Tensor
    states: tuple[Tensor, ...]
    d_output: Tensor
    lengths: Tensor | None
    reset: Tensor | None


# (output, last states ...) from a batch; output is padded with zeros where lengths say so.
Forward = Callable[[Batch], tuple[Tensor, ...]]


def fused_class(torch_class: type[nn.Module]) -> type[nn.Module]:
    """The class that stands for one of torch.nn."""
    return getattr(fusedlstm, f"Fused{torch_class.__name__}")


def hx_of(states: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """The states as torch.nn takes them: one by itself, several as a tuple."""
    return states[0] if len(states) == 1 else tuple(states)


def states_of(hx: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """And back."""
    return hx if isinstance(hx, tuple) else (hx,)


@dataclass(frozen=True)
class Model:
    """What a contender makes of a workload; leaves: the parameters, by torch.nn's names if equal. `stored_bytes`: of
    the weights as they are saved, None where it does not say."""

    forward: Forward
    leaves: dict[str, Tensor]
    stored_bytes: int | None = None


@dataclass(frozen=True)
class Workload:
    """One case as one mode runs it. `rounded_to`: the precision all values are rounded to before
    they are stored, where it is not the workload's own. `seed`: of the weights and the data."""

    case: Case
    mode: str
    precision: str
    device: torch.device
    cell: Cell = LSTM
    rounded_to: str | None = None
    seed: int = 0

    @classmethod
    def of(cls, case: Case, mode: str, precision: str, device: torch.device, cell: Cell = LSTM) -> Workload:
        if mode == "decode":
            case = replace(case, T=_DECODE_STEPS, variable="", resets=False, dropout=0.0)
        return cls(case, mode, precision, device, cell)

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
        """Parameters as torch.nn's layer draws and names them, rounded to the dtype, on the device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = self.cell.layer(**self.case.module_kwargs(self.cell), dtype=torch.float64)
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
        generator = torch.Generator().manual_seed(self.seed + 1)
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
        sizes = [case.output_size, *[case.hidden_size] * (len(self.cell.states) - 1)]
        return Batch(
            normal(case.T, case.B, case.input_size),
            tuple(normal(stacked, case.B, size) for size in sizes),
            normal(case.T, case.B, case.directions * case.output_size),
            lengths if lengths is None else lengths.to(self.device),
            reset,
        )

    @cached_property
    def onnx_model(self) -> bytes:
        """One call of the fused layer, a node for each layer of the stack, as `torch.onnx.export` writes it. Inputs:
        input, states, lengths where the case has them; outputs: output, last states."""
        first = self.batches[0]
        lengths = [] if first.lengths is None else [first.lengths]
        arguments = (first.input[: len(first.input) // self.calls], hx_of(first.states), *lengths)
        module = self.layer(fused_class(self.cell.layer))
        return torch.onnx.export(module, arguments, dynamo=True, verbose=False).model_proto.SerializeToString()

    def layer(self, layer_class: type[nn.Module]) -> nn.Module:
        """An instance of a class like nn.LSTM, holding the shared parameters."""
        return self._module(layer_class, self.case.module_kwargs(self.cell), self.state_dict)

    def one_step(self, cell_class: type[nn.Module]) -> nn.Module:
        """As `layer`, of a class like nn.LSTMCell, for a case of single steps."""
        kwargs = self.case.module_kwargs(self.cell)
        kwargs = {name: kwargs[name] for name in kwargs.keys() & inspect.signature(self.cell.cell).parameters.keys()}
        weights = {name.removesuffix("_l0"): value for name, value in self.state_dict.items()}
        return self._module(cell_class, kwargs, weights)

    def _module(self, module_class: type[nn.Module], kwargs: dict, weights: dict[str, Tensor]) -> nn.Module:
        module = module_class(**kwargs, device=self.device, dtype=self.dtype)
        module.load_state_dict(weights)
        return module.train(self.training)

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
        return training.get(self.mode, ["output", *(f"{state}_n" for state in self.cell.states)])

    def flops(self) -> float:
        """Of the matrix products, over all calls: 2 per multiply-add, backward twice the
        forward. The gradient of the input alone is one pass, as forward is; backward is twice both."""
        passes = {"train": 3, "second-order": 6}.get(self.mode, 1)
        return 2.0 * self.case.multiply_adds(self.cell) * self._valid_fraction() * passes

    def bytes_moved(self) -> float:
        """Compulsory traffic: everything read once and written once, whatever the algorithm.

        Weights, input, output and states; when training also what the cell saves and carries (activated gates and
        cell states of an LSTM), written forward and read backward, and the gradients.
        """
        case, item_bytes = self.case, self.dtype.itemsize
        matrix_bytes = 1 if self.precision == INT8 else item_bytes
        weights = sum(v.numel() * (matrix_bytes if v.dim() == 2 else item_bytes) for v in self.state_dict.values())
        rows = case.T * case.B * self._valid_fraction()
        outputs = rows * case.directions * case.output_size * item_bytes
        inputs = rows * case.input_size * item_bytes
        total = weights + inputs + outputs
        if self.training:
            cell_bytes = max(4, item_bytes)
            saved = case.hidden_size * (self.cell.saved * item_bytes + self.cell.carried * cell_bytes)
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
    outputs, states = [], batch.states
    with torch.inference_mode():
        for step in batch.input.split(1):
            output, *states = model.forward(replace(batch, input=step, states=tuple(states)))
            outputs.append(output)
    return torch.cat(outputs), *states


def _train(model: Model, batch: Batch):
    output, *_ = model.forward(batch)
    leaves = [batch.input, *model.leaves.values()]
    return output, *torch.autograd.grad(output, leaves, batch.d_output)


def _train_penalty(model: Model, batch: Batch):
    """The gradient of a gradient penalty: of the square of the input's gradient, by everything."""
    output, *_ = model.forward(batch)
    (gradient,) = torch.autograd.grad(output, batch.input, batch.d_output, create_graph=True)
    leaves = [batch.input, *model.leaves.values()]
    return gradient, *torch.autograd.grad(gradient.square().sum(), leaves)


def precision_switches(precision: str) -> AbstractContextManager[None]:
    """The same switches for every contender: TF32 with TF32, strict float32 with strict."""
    return tf32(lstm=precision == "tf32", matmul=precision == "tf32")
