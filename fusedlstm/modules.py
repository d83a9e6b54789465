"""The layers and cells of torch.nn with other kernels below: FusedLSTM, FusedGRU, FusedRNN, and a cell for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fusedlstm._checks import checked_number
from fusedlstm._module import FusedCell, FusedLayer, run_layers, run_step
from fusedlstm._variants import Option


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
        recurrent_dropout: probability p of dropout on h where it enters the product with weight_hh, in training (Gal &
            Ghahramani 2016): W_hh (m * h), m of zeros with probability p and of 1 / (1 - p). One mask a sequence, for
            all its steps; with `recurrent_dropout_per_step` one for each step (Semeniuta et al. 2016).
        zoneout: probability with which a unit keeps its old value in a step, of h and c alike, or (p_h, p_c)
            (Krueger et al. 2017): h = z * h_before + (1 - z) * h_new, z of ones with probability p in training, and p
            itself in evaluation; the same of c. h_new sees the new c, whether that is kept or not.
        layer_norm: norms inside the recurrence (Ba et al. 2016), over all gates, with `layer_norm_eps`:
            LN(W_ih x) * gain_ih + b_ih + LN(W_hh h) * gain_hh + b_hh are the gates' sums, and
            h = o * tanh(LN(c) * gain_c + bias_c). Adds gain_ih_l* and gain_hh_l* [4H], gain_c_l* and, with bias,
            bias_c_l* [H].
        peephole: i and f see c before the step, o sees it after it (Gers & Schmidhuber 2000): w_i * c_before is added
            to the sum of i, w_f * c_before to that of f, w_o * c to that of o. Adds weight_ch_l* [3H]: w_i, w_f, w_o.
            The last five options may be combined; none goes with proj_size, nor with return_cell_states and
            return_gates. Initial values: gains 1, bias_c 0, peepholes as the other weights.

    Raises:
        TypeError, ValueError: as nn.LSTM does; a probability outside of [0, 1), options that exclude each other.

    Equivalent to:
        nn.LSTM(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
                proj_size, device, dtype)
        # and with the last options, for each step
        x, s = LN(W_ih @ x) * gain_ih, LN(W_hh @ (mask * h)) * gain_hh          # layer_norm, recurrent_dropout
        i, f, g, o = (x + b_ih + s + b_hh).chunk(4)
        i, f = sigmoid(i + w_i * c), sigmoid(f + w_f * c)                       # peephole
        c_new = f * c + i * tanh(g)
        o = sigmoid(o + w_o * c_new)
        h_new = o * tanh(LN(c_new) * gain_c + bias_c)
        h, c = z_h * h + (1 - z_h) * h_new, z_c * c + (1 - z_c) * c_new         # zoneout
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
        recurrent_dropout: float = 0.0,
        recurrent_dropout_per_step: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        layer_norm_eps: float = 1e-5,
        peephole: bool = False,
    ) -> None:
        if (forget_bias := checked_number("forget_bias", forget_bias)) and not bias:
            raise ValueError(f"forget_bias: Expected 0 with bias=False, got {forget_bias}")
        if forget_bias:
            self._fused_forget_bias = forget_bias  # parameters are initialised by the next call
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype, weight_dropout=weight_dropout, recurrent_dropout=recurrent_dropout,
            recurrent_dropout_per_step=recurrent_dropout_per_step, zoneout=zoneout, layer_norm=layer_norm,
            layer_norm_eps=layer_norm_eps, peephole=peephole,
        )  # fmt: skip

    forget_bias = Option()
    _fused_forget_bias = 0.0

    def reset_parameters(self) -> None:
        """As nn.LSTM's, and `forget_bias` added."""
        super().reset_parameters()
        if self._fused_forget_bias:
            H = self.hidden_size
            for name in self._flat_weights_names:
                if name.startswith("bias_ih"):
                    with torch.no_grad():
                        getattr(self, name)[H : 2 * H] += self._fused_forget_bias

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

    As FusedLSTM is to nn.LSTM: `forward` adds `lengths`, `reset` and `return_gates`, the constructor `weight_dropout`,
    `recurrent_dropout`, `recurrent_dropout_per_step`, `zoneout`, and

    Args:
        layer_norm: the GRU of DreamerV3 (Hafner et al. 2023): one norm, over all gates and with `layer_norm_eps`, of
            the sum of both products, the reset gate before the tanh, and an update gate that opens late. Adds gain_l*
            [3H]; with bias=False and an eps of 1e-3 it is DreamerV3's but for the norm's offset.

    The states of all steps are the output.

    Equivalent to:
        nn.GRU(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device=device,
               dtype=dtype)
        # and with layer_norm, for each step
        r, z, n = (LN(W_ih @ x + W_hh @ h) * gain + b_ih + b_hh).chunk(3)
        z, n = sigmoid(z - 1), tanh(sigmoid(r) * n)
        h = z * n + (1 - z) * h
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

    As FusedLSTM is to nn.LSTM: `forward` adds `lengths` and `reset`, the constructor `weight_dropout`,
    `recurrent_dropout`, `recurrent_dropout_per_step` and `zoneout`. The states of all steps are the output.

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

    Args:
        recurrent_dropout, zoneout: as of `FusedLSTM`; in training each call draws its masks, as with
            `recurrent_dropout_per_step` there.
        layer_norm, layer_norm_eps, peephole: as of `FusedLSTM`. Parameters that they add are gain_ih, gain_hh, gain_c,
            bias_c and weight_ch.

    Raises:
        TypeError, ValueError: a probability outside of [0, 1), a value that is none of its option.

    Equivalent to:
        nn.LSTMCell(input_size, hidden_size, bias, device, dtype)
        # and with the options
        x, s = LN(W_ih @ x) * gain_ih, LN(W_hh @ (mask * h)) * gain_hh          # layer_norm, recurrent_dropout
        i, f, g, o = (x + b_ih + s + b_hh).chunk(4)
        i, f = sigmoid(i + w_i * c), sigmoid(f + w_f * c)                       # peephole
        c_new = f * c + i * tanh(g)
        o = sigmoid(o + w_o * c_new)
        h_new = o * tanh(LN(c_new) * gain_c + bias_c)
        h, c = z_h * h + (1 - z_h) * h_new, z_c * c + (1 - z_c) * c_new         # zoneout
    """

    _fused_cell = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        layer_norm_eps: float = 1e-5,
        peephole: bool = False,
    ) -> None:
        super().__init__(
            input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype,
            recurrent_dropout=recurrent_dropout, zoneout=zoneout, layer_norm=layer_norm,
            layer_norm_eps=layer_norm_eps, peephole=peephole,
        )  # fmt: skip

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Run one step; arguments, results and errors are those of `functional.lstm_cell`."""
        return run_step(self, input, hx)


class FusedGRUCell(FusedCell):
    """One step of one GRU layer: drop-in for `torch.nn.GRUCell`.

    Args:
        recurrent_dropout, zoneout: as of `FusedLSTMCell`.
        layer_norm, layer_norm_eps: as of `FusedGRU`; adds the parameter gain.

    Equivalent to:
        nn.GRUCell(input_size, hidden_size, bias, device, dtype)
        # and with layer_norm
        r, z, n = (LN(W_ih @ x + W_hh @ h) * gain + b_ih + b_hh).chunk(3)
        z, n = sigmoid(z - 1), tanh(sigmoid(r) * n)
        h = z * n + (1 - z) * h
    """

    _fused_cell = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        layer_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(
            input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype,
            recurrent_dropout=recurrent_dropout, zoneout=zoneout, layer_norm=layer_norm,
            layer_norm_eps=layer_norm_eps,
        )  # fmt: skip

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step; arguments, results and errors are those of `functional.gru_cell`."""
        return run_step(self, input, hx)


class FusedRNNCell(FusedCell):
    """One step of one simple recurrent layer: drop-in for `torch.nn.RNNCell`.

    Args:
        recurrent_dropout, zoneout: as of `FusedLSTMCell`.

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
        *,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
    ) -> None:
        self.nonlinearity = nonlinearity
        super().__init__(
            input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype,
            recurrent_dropout=recurrent_dropout, zoneout=zoneout,
        )  # fmt: skip

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step; arguments, results and errors are those of `functional.rnn_cell`."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return run_step(self, input, hx)


def _refuse_projection(kwargs) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
