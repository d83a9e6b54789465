"""Drop-in replacements for torch.nn.LSTM, GRU, RNN and their cells with fused CUDA and CPU kernels."""

from fusedlstm import _torch_version as _torch_version  # isort: split

from fusedlstm import _flops as _flops  # gives the operators their FLOPs
from fusedlstm import _vmap as _vmap  # gives the operators their rules
from fusedlstm import functional, init
from fusedlstm._contest import last_plan
from fusedlstm._version import __version__
from fusedlstm.convert import convert, revert
from fusedlstm.freeze import freeze, unfreeze
from fusedlstm.modules import FusedGRU, FusedGRUCell, FusedLSTM, FusedLSTMCell, FusedRNN, FusedRNNCell
from fusedlstm.quantize import dequantize, quantize

__all__ = [
    "FusedGRU",
    "FusedGRUCell",
    "FusedLSTM",
    "FusedLSTMCell",
    "FusedRNN",
    "FusedRNNCell",
    "__version__",
    "convert",
    "dequantize",
    "freeze",
    "functional",
    "init",
    "last_plan",
    "quantize",
    "revert",
    "unfreeze",
]
