"""The GRU: r, z, n gates, state h. PyTorch's: the reset gate acts after the product, and on n's second bias."""

import torch
from torch import nn

from fusedlstm.cells.cell import Cell


def step(from_input, from_hidden, states):
    """As torch.nn.GRU: Cho et al. 2014, with the reset gate after the product as in cuDNN."""
    (h,) = states
    (x_r, x_z, x_n), (h_r, h_z, h_n) = from_input.chunk(3, -1), from_hidden.chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return [n + z * (h - n)], torch.cat([r, z, n, h_n], -1)


GRU = Cell(
    name="gru",
    gates=3,
    states=("h",),
    saved=4,
    carried=0,
    step=step,
    is_apart=True,
    takes_h=True,
    hidden=None,
    layer=nn.GRU,
    cell=nn.GRUCell,
    run_layer=torch.gru,
    run_step=None,
    promotes=(True, True),
    onnx=("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    cudnn=3,
)
