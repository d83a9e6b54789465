"""The layers and cells of torch.nn with other kernels below: FusedLSTM, FusedGRU, FusedRNN, and a cell for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fusedlstm._module import FusedCell, FusedLayer, run_layers, run_step


class FusedLSTM(FusedLayer):
    """A stack of LSTM layers: drop-in for `torch.nn.LSTM`, and some things more.

    Constructor, parameters, state_dict, initial values, inputs and results are those of
    `torch.nn.LSTM`; see there. `forward` adds `lengths`, `reset`, `return_cell_states` and
    `return_gates`. It derives from nn.RNNBase and not from nn.LSTM, since torch.compile refuses
    every instance of nn.LSTM in a full graph.

    Args:
        weight_dropout: probability p of DropConnect on the recurrent weights (Merity et al. 2018, AWD-LSTM): in
            training, each call runs with m * weight_hh / (1 - p) in the place of every weight_hh, m of zeros with
            probability p and of ones, one mask for the whole sequence and batch. The parameters stay as they are.
        forget_bias: added to the forget gate's part of every bias_ih when parameters are initialised (Gers et al. 2000;
            1 is usual: Jozefowicz et al. 2015). 0: nn.LSTM's initial values.

    Equivalent to:
        nn.LSTM(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
                proj_size, device, dtype)
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
        device=None,
        dtype=None,
        *,
        weight_dropout: float = 0.0,
        forget_bias: float = 0.0,
    ) -> None:
        if forget_bias and not bias:
            raise ValueError(f"forget_bias: Expected 0 with bias=False, got {forget_bias}")
        if forget_bias:
            self.forget_bias = forget_bias  # parameters are initialised by the next call
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype, weight_dropout=weight_dropout,
        )  # fmt: skip

    forget_bias: float = 0.0

    def reset_parameters(self) -> None:
        """As nn.LSTM's, and `forget_bias` added."""
        super().reset_parameters()
        if self.forget_bias:
            H = self.hidden_size
            for name in self._flat_weights_names:
                if name.startswith("bias_ih"):
                    with torch.no_grad():
                        getattr(self, name)[H : 2 * H] += self.forget_bias

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
        # torch.onnx.export(dynamo=False) passes the defaults too, by position, and makes tensors of all but None.
        return run_layers(self, input, hx, lengths, reset, reset_state, return_cell_states, return_gates)

    # Not used here, but by programs that extend nn.LSTM.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden


class FusedGRU(FusedLayer):
    """A stack of GRU layers: drop-in for `torch.nn.GRU`.

    As FusedLSTM is to nn.LSTM: `forward` adds `lengths`, `reset` and `return_gates`, the constructor `weight_dropout`.
    The states of all steps are the output.

    Equivalent to:
        nn.GRU(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device=device,
               dtype=dtype)
    """

    def __init__(self, *args, **kwargs) -> None:
        _refuse_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)

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
        return run_layers(self, input, hx, lengths, reset, reset_state, None, return_gates)


class FusedRNN(FusedLayer):
    """A stack of simple recurrent layers: drop-in for `torch.nn.RNN`.

    As FusedLSTM is to nn.LSTM: `forward` adds `lengths` and `reset`, the constructor `weight_dropout`. The states of
    all steps are the output.

    Equivalent to:
        nn.RNN(input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional,
               device=device, dtype=dtype)
    """

    def __init__(self, *args, **kwargs) -> None:
        _refuse_projection(kwargs)
        if len(args) > 3:
            self.nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ):
        """Run the layers; arguments, results and errors are those of `fusedlstm.functional.rnn`."""
        return run_layers(self, input, hx, lengths, reset, reset_state)


class FusedLSTMCell(FusedCell):
    """One step of one LSTM layer: drop-in for `torch.nn.LSTMCell`.

    Equivalent to:
        nn.LSTMCell(input_size, hidden_size, bias, device, dtype)
    """

    _fused_cell = "lstm"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Run one step; arguments, results and errors are those of `functional.lstm_cell`."""
        return run_step(self, input, hx)


class FusedGRUCell(FusedCell):
    """One step of one GRU layer: drop-in for `torch.nn.GRUCell`.

    Equivalent to:
        nn.GRUCell(input_size, hidden_size, bias, device, dtype)
    """

    _fused_cell = "gru"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step; arguments, results and errors are those of `functional.gru_cell`."""
        return run_step(self, input, hx)


class FusedRNNCell(FusedCell):
    """One step of one simple recurrent layer: drop-in for `torch.nn.RNNCell`.

    Equivalent to:
        nn.RNNCell(input_size, hidden_size, bias, nonlinearity, device, dtype)
    """

    nonlinearity: str

    @property
    def _fused_cell(self) -> str:
        return f"rnn_{self.nonlinearity}"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step; arguments, results and errors are those of `functional.rnn_cell`."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return run_step(self, input, hx)


def _refuse_projection(kwargs) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
