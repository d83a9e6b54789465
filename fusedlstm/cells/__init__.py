"""The cells: what a layer does in one time step, and everything else in which LSTM, GRU and RNN differ.

A cell has a file of its own here, and one in csrc/cells for the kernels. What runs a layer of any cell (functional,
reference, operators and their derivatives) asks for its description by name.
"""

from __future__ import annotations

from fusedlstm.cells.cell import Cell
from fusedlstm.cells.gru import GRU
from fusedlstm.cells.lstm import LSTM
from fusedlstm.cells.rnn import RNN_RELU, RNN_TANH

CELLS: dict[str, Cell] = {cell.name: cell for cell in (LSTM, GRU, RNN_TANH, RNN_RELU)}

__all__ = ["CELLS", "GRU", "LSTM", "RNN_RELU", "RNN_TANH", "Cell"]
