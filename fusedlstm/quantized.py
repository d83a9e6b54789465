"""The layers and cells with int8 weights, for inference on the CPU. `fusedlstm.quantize` makes them."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import has_torch_function

from fusedlstm import _int8
from fusedlstm._layers import as_passed
from fusedlstm._private_torch import function_of
from fusedlstm._run import run
from fusedlstm._run_cell import run_quantized_cell
from fusedlstm._sizes import Sizes
from fusedlstm._usual import as_returned, run_usual, states_of_usual, time_major
from fusedlstm.cells import CELLS
from fusedlstm.modules import FusedGRU, FusedGRUCell, FusedLSTM, FusedLSTMCell, FusedRNN, FusedRNNCell
from fusedlstm.ops import OPERATORS

# torch.fx.symbolic_trace records calls of these as one node each.
torch.fx.wrap("run")
torch.fx.wrap("run_quantized_cell")


class Quantized(nn.Module):
    """What layers and cells with int8 weights have in common.

    The weights are buffers, as `fusedlstm._int8` describes them: what state_dict has is what the operators read. They
    are zeros in a new module.
    """

    options: tuple[str, ...]  # the attributes that say which layer this is, named as those of the fused one

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for option in self.options:
            setattr(self, option, getattr(layer, option))
        for name, shape, dtype in self.tensors():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))
        self._flat_weights_names = list(self._buffers)  # of nn.RNNBase too
        self._weights_among = operator.itemgetter(*self._buffers)  # made once, since every usual call asks

    @classmethod
    def like(cls, layer: nn.Module) -> Quantized:
        """A new module with the options of a fused layer or cell, or of torch.nn's."""
        new = cls.__new__(cls)
        Quantized.__init__(new, layer)
        return new

    def sizes(self) -> Sizes:
        """Those of the layers; of a cell, those of the layer that it is a step of."""
        raise NotImplementedError

    def tensors(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape and dtype of each weight, in the order of the operator."""
        raise NotImplementedError

    def _weights(self) -> list[Tensor]:
        """Read at each call, as those of the fused layers."""
        return [getattr(self, name) for name in self._flat_weights_names]

    def _apply(self, fn, recurse: bool = True):
        own = [self._buffers.get(name) for name in self._flat_weights_names]

        def with_its_dtype(tensor):
            """`half()` and the like are for the model around: the operators take these tensors and no others."""
            result = fn(tensor)
            is_cast = result.dtype is not tensor.dtype and any(tensor is weight for weight in own)
            return tensor.to(result.device) if is_cast else result

        return super()._apply(with_its_dtype, recurse)

    def _check_mode(self) -> None:
        if self.training:
            raise RuntimeError(
                f"{type(self).__name__} is for inference: expected evaluation mode, got training mode; call "
                "model.eval()"
            )

    def __prepare_scriptable__(self):
        raise NotImplementedError(
            f"torch.jit.script: Expected layers that TorchScript compiles, got {type(self).__name__}; take "
            "torch.jit.trace or torch.export, or script the model as it was before fusedlstm.quantize"
        )


class QuantizedLayer(Quantized):
    """A stack of layers."""

    options = (
        "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
        "proj_size",
    )  # fmt: skip

    def flatten_parameters(self) -> None:
        """Does nothing, as of the fused layers."""

    def extra_repr(self) -> str:
        return nn.RNNBase.extra_repr(self) + ", dtype=torch.int8"

    def sizes(self) -> Sizes:
        return Sizes(
            self.mode.lower(), self.input_size, self.hidden_size, self.proj_size, self.num_layers,
            2 if self.bidirectional else 1, self.bias,
        )  # fmt: skip

    def tensors(self) -> list:
        return _int8.tensors_of(self.sizes())


class QuantizedCell(Quantized):
    """One step of one layer."""

    options = ("input_size", "hidden_size", "bias")
    _cell: str  # its name, of fusedlstm.cells

    def extra_repr(self) -> str:
        return nn.RNNCellBase.extra_repr(self) + ", dtype=torch.int8"

    def sizes(self) -> Sizes:
        return Sizes(self._cell, self.input_size, self.hidden_size, 0, 1, 1, self.bias)

    def tensors(self) -> list:
        return _int8.tensors_of(self.sizes(), [""])


def _run_layers(module: QuantizedLayer, input, hx, *rows):
    """The layers of a module, on the arguments of its forward: lengths, reset and reset_state last."""
    if (results := run_usual(_run_usual_layers, module, input, hx, rows)) is not None:
        return results
    module._check_mode()
    sizes, packing = module.sizes(), None
    if isinstance(input, PackedSequence):
        # Tracers look into a call's arguments, and fail to rebuild this class from what they find.
        input, *packing = input
    return run(
        sizes.cell, input, hx, module._weights(), sizes, module.batch_first, module.dropout, False, *rows,
        packing=packing, is_int8=True,
    )  # fmt: skip


def _run_step(module: QuantizedCell, input, hx):
    """The step of a module."""
    if (last := run_usual(_run_usual_step, module, input, hx, ())) is not None:
        return last
    module._check_mode()
    return run_quantized_cell(input, hx, module._weights(), module.sizes())


# By the mode of a layer, and by the name of a cell: gates, and the operator.
_STACKS = {name.upper(): (cell.gates, function_of(OPERATORS[name].stack_quantized)) for name, cell in CELLS.items()}
_STEPS = {name: (cell.gates, function_of(OPERATORS[name].cell_quantized)) for name, cell in CELLS.items()}


def _run_usual_layers(module: QuantizedLayer, own, input, hx, rows):
    """What a module returns for a usual call, see `run_usual`; else None."""
    if own["training"]:
        return None
    states = states_of_usual(input, hx, rows, torch.is_grad_enabled())
    gates, run_stack = _STACKS[own["mode"]]
    if states is None or (weights := _fitting_weights(own, gates, input)) is None:
        return None
    h, c = states
    return as_returned(own, run_stack(time_major(own, input), h, c, weights, own["num_layers"]))


def _run_usual_step(module: QuantizedCell, own, input, hx, others):
    """The same of a cell."""
    if own["training"]:
        return None
    states = states_of_usual(input, hx, others, torch.is_grad_enabled(), dim=2)
    gates, run_step = _STEPS[module._cell]
    if states is None or (weights := _fitting_weights(own, gates, input)) is None:
        return None
    return as_passed(run_step(input, [state for state in states if state is not None], weights))


def _fitting_weights(own, gates, input) -> tuple[Tensor, ...] | None:
    """A module's weights, if they and the input have its sizes; else None. The operator takes any that fit together,
    and cannot tell inputs that go into as many groups of columns; there is none but on the CPU."""
    weights = own["_weights_among"](own["_buffers"])  # by whom a KeyError says that one is elsewhere
    if (
        input.shape[-1] != own["input_size"]
        or (scale := weights[2]) is None
        or scale.numel() != gates * own["hidden_size"]
        or has_torch_function(weights)
    ):
        return None
    return weights


class QuantizedLSTM(QuantizedLayer):
    """What `fusedlstm.quantize` makes of `FusedLSTM` and `nn.LSTM`: the same options and arguments, int8 weights.

    Input, states and results are float32. Gates and cell states of all steps are not to be had.

    Equivalent to:
        fusedlstm.quantize(FusedLSTM(input_size, hidden_size, ...).eval())
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
    ) -> None:
        options = num_layers, bias, batch_first, dropout, bidirectional, proj_size
        super().__init__(FusedLSTM(input_size, hidden_size, *options, device="meta"))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: tuple[Tensor, Tensor] | None = None,
        return_cell_states: bool | None = None,
        return_gates: bool | None = None,
    ):
        """Run the layers; arguments, results and errors are those of `fusedlstm.functional.lstm`."""
        if return_cell_states or return_gates:
            _refuse_kept(self, return_cell_states=return_cell_states, return_gates=return_gates)
        return _run_layers(self, input, hx, lengths, reset, reset_state)


class QuantizedGRU(QuantizedLayer):
    """What `fusedlstm.quantize` makes of `FusedGRU` and `nn.GRU`: to them what QuantizedLSTM is to FusedLSTM."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(FusedGRU(*args, **kwargs, device="meta"))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
        return_gates: bool | None = None,
    ):
        """Run the layers; arguments, results and errors are those of `fusedlstm.functional.gru`."""
        if return_gates:
            _refuse_kept(self, return_gates=return_gates)
        return _run_layers(self, input, hx, lengths, reset, reset_state)


class QuantizedRNN(QuantizedLayer):
    """What `fusedlstm.quantize` makes of `FusedRNN` and `nn.RNN`: to them what QuantizedLSTM is to FusedLSTM."""

    options = (*QuantizedLayer.options, "nonlinearity")

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(FusedRNN(*args, **kwargs, device="meta"))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ):
        """Run the layers; arguments, results and errors are those of `fusedlstm.functional.rnn`."""
        return _run_layers(self, input, hx, lengths, reset, reset_state)


class QuantizedLSTMCell(QuantizedCell):
    """One step of one LSTM layer with int8 weights."""

    _cell = "lstm"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(FusedLSTMCell(input_size, hidden_size, bias, device="meta"))

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Run one step; arguments, results and errors are those of `functional.lstm_cell`."""
        return _run_step(self, input, hx)


class QuantizedGRUCell(QuantizedCell):
    """One step of one GRU layer with int8 weights."""

    _cell = "gru"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(FusedGRUCell(input_size, hidden_size, bias, device="meta"))

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step; arguments, results and errors are those of `functional.gru_cell`."""
        return _run_step(self, input, hx)


class QuantizedRNNCell(QuantizedCell):
    """One step of one simple recurrent layer with int8 weights."""

    options = (*QuantizedCell.options, "nonlinearity")

    @property
    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh") -> None:
        super().__init__(FusedRNNCell(input_size, hidden_size, bias, nonlinearity, device="meta"))

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step; arguments, results and errors are those of `functional.rnn_cell`."""
        return _run_step(self, input, hx)


def _refuse_kept(module, **asked) -> None:
    for argument, is_asked in asked.items():
        if is_asked:
            raise NotImplementedError(
                f"{type(module).__name__} keeps nothing of its steps beside the output: expected no {argument}, got "
                f"{argument}={is_asked}; call the model as it was before fusedlstm.quantize"
            )
