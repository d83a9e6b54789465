"""FusedLSTM and FusedLSTMCell: torch.nn.LSTM and torch.nn.LSTMCell with other kernels below."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fusedlstm import _checks
from fusedlstm._recognized import Recognized, refuse_gradients_by_hooks, warn_of_quantization
from fusedlstm._run import run, run_cell

# torch.fx.symbolic_trace records calls of these as one node each, as it does for nn.LSTM.
torch.fx.wrap("run")
torch.fx.wrap("run_cell")


class FusedLSTM(nn.RNNBase):
    """A stack of LSTM layers: drop-in for `torch.nn.LSTM`, and four things more.

    Constructor, parameters, state_dict, initial values, inputs and results are those of
    `torch.nn.LSTM`; see there. `forward` adds `lengths`, `reset`, `return_cell_states` and
    `return_gates`. It derives from nn.RNNBase and not from nn.LSTM, since torch.compile refuses
    every instance of nn.LSTM in a full graph.

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
    ) -> None:
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype,
        )  # fmt: skip

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
        directions = 2 if self.bidirectional else 1
        sizes = _checks.Sizes(
            "lstm", self.input_size, self.hidden_size, self.proj_size, self.num_layers, directions, self.bias
        )  # fmt: skip
        weights = _parameters(self, self._flat_weights_names)
        packing = None
        if isinstance(input, PackedSequence):
            # Tracers look into a call's arguments, and fail to rebuild this class from what they find.
            input, *packing = input
        return run(
            "lstm", input, hx, weights, sizes, self.batch_first, self.dropout, self.training,
            lengths, reset, reset_state, return_cell_states, return_gates, packing=packing,
        )  # fmt: skip

    def flatten_parameters(self) -> None:
        """Does nothing: parameters are separate tensors, and are used as they are."""

    # nn.RNNBase keeps a list of its weights, and weak references to them, beside the parameters.
    # Both go stale, and break deepcopy and swap_tensors; here the list is made when asked for, and what is written
    # to it is written to the attributes of these names.

    @property
    def _flat_weights(self) -> _FlatWeights:
        weights = _FlatWeights([getattr(self, name, None) for name in self._flat_weights_names])
        weights.module = self
        return weights

    @_flat_weights.setter
    def _flat_weights(self, tensors) -> None:
        names = self._flat_weights_names
        if len(tensors) != len(names):
            raise ValueError(f"Expected {len(names)} tensors in _flat_weights, one for each name, got {len(tensors)}")
        for name, tensor in zip(names, tensors):
            if tensor is getattr(self, name, None):
                continue
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) and name in self._parameters:
                raise TypeError(
                    f"Expected a Parameter for {name} in _flat_weights, got {type(tensor).__name__}; for a tensor "
                    f"computed anew for each call: del module.{name}, then module.{name} = tensor"
                )
            setattr(self, name, tensor)

    def _init_flat_weights(self) -> None:
        pass

    def _update_flat_weights(self) -> None:
        pass

    def __setattr__(self, name: str, value) -> None:
        if isinstance(value, nn.Module) and name == "_flat_weights":
            value = [*value]  # nn.Module would keep an nn.ParameterList as a child, which the property hides
        nn.Module.__setattr__(self, name, value)

    __setstate__ = nn.Module.__setstate__
    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel

    def __getstate__(self):
        return self.__dict__.copy()

    def __prepare_scriptable__(self) -> nn.LSTM:
        """What torch.jit.script takes in place of this module."""
        return _scriptable(self)

    qconfig = Recognized(warn_of_quantization)
    ft_compute_sample_grad = Recognized(refuse_gradients_by_hooks)

    # Not used here, but by programs that extend nn.LSTM.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden


class _FlatWeights(tuple):
    """The weights of `module` as they are now, None where one is missing. An item is set in the module, not in here."""

    module: FusedLSTM

    def __setitem__(self, index, value) -> None:
        weights = list(self.module._flat_weights)
        weights[index] = value
        self.module._flat_weights = weights


class FusedLSTMCell(nn.RNNCellBase):
    """One step of one LSTM layer: drop-in for `torch.nn.LSTMCell`.

    Equivalent to:
        nn.LSTMCell(input_size, hidden_size, bias, device, dtype)
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Run one step; arguments, results and errors are those of `functional.lstm_cell`."""
        return run_cell("lstm", input, hx, *_parameters(self, ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))

    def __prepare_scriptable__(self) -> nn.LSTMCell:
        """What torch.jit.script takes in place of this module."""
        return _scriptable(self)

    qconfig = Recognized(warn_of_quantization)
    ft_compute_sample_grad = Recognized(refuse_gradients_by_hooks)


def _parameters(module: nn.Module, names) -> list[Tensor]:
    """The module's tensors of these names, read at each call.

    A list kept across calls would miss parametrizations, functional_call and deleted parameters.
    Most are where nn.Module keeps parameters, which its __getattr__ looks up slowly.
    """
    own = module._parameters
    return [own[name] if name in own else getattr(module, name) for name in names]


def _scriptable(module: nn.Module) -> nn.Module:
    """The module as PyTorch's own, with the same parameters: TorchScript compiles nothing else."""
    from fusedlstm.convert import plain_type, revert

    if isinstance(found := plain_type(module), str):
        raise NotImplementedError(
            f"torch.jit.script: Expected a layer that fusedlstm.revert takes, got {type(module).__name__}: {found}"
        )
    plain = revert(module)
    warnings.warn(
        f"torch.jit.script takes {type(plain).__name__} for {type(module).__name__}, and leaves it in the model that "
        "holds the layer: fusedlstm.convert(model) afterwards, if the model is still in use",
        stacklevel=2,
    )
    return plain
