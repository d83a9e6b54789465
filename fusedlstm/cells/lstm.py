"""The LSTM: i, f, g, o gates, states h and c."""

import torch
from torch import nn

from fusedlstm.cells.cell import Cell


def step(from_input, from_hidden, states):
    """As torch.nn.LSTM: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000."""
    _, c = states
    i, f, g, o = (from_input + from_hidden).chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return [o * c.tanh(), c], torch.cat([i, f, g, o], -1)


def hidden(saved, states):
    """o * tanh(c)."""
    return saved.chunk(4, -1)[3] * states[1].tanh()


LSTM = Cell(
    name="lstm",
    gates=4,
    states=("h", "c"),
    saved=4,
    carried=1,
    step=step,
    is_apart=False,
    takes_h=False,
    hidden=hidden,
    layer=nn.LSTM,
    cell=nn.LSTMCell,
    run_layer=torch.lstm,
    run_step=None,
    promotes=(False, True),
    onnx=("LSTM", (0, 3, 1, 2), {}),
    cudnn=2,
)
