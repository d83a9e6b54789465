"""The simple recurrent cell, with tanh or with relu: one gate, state h."""

import torch
from torch import Tensor, nn

from fusedlstm.cells.cell import Cell


def _step(activation):
    def step(from_input, from_hidden, states):
        """As torch.nn.RNN: Elman 1990. Nothing is saved: the derivative is computed from h."""
        h = activation(from_input + from_hidden)
        return [h], h[..., :0]

    return step


def _rnn(name, activation, onnx_activation, run_layer, run_step, cudnn) -> Cell:
    return Cell(
        name=name,
        gates=1,
        states=("h",),
        saved=0,
        carried=0,
        step=_step(activation),
        is_apart=False,
        takes_h=False,
        hidden=None,
        layer=nn.RNN,
        cell=nn.RNNCell,
        run_layer=run_layer,
        run_step=run_step,
        promotes=(False, False),
        onnx=("RNN", (0,), {"activations": [onnx_activation]}),
        cudnn=cudnn,
    )


RNN_TANH = _rnn("rnn_tanh", Tensor.tanh, "Tanh", torch.rnn_tanh, torch.rnn_tanh_cell, 1)
RNN_RELU = _rnn("rnn_relu", Tensor.relu, "Relu", torch.rnn_relu, torch.rnn_relu_cell, 0)
