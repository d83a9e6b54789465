"""A drop-in replacement for torch.nn.LSTM with fused CUDA and CPU kernels."""

from fusedlstm import _flops as _flops  # gives the operators their FLOPs
from fusedlstm import _vmap as _vmap  # gives the operators their rules
from fusedlstm import functional
from fusedlstm._version import __version__
from fusedlstm.convert import convert, revert
from fusedlstm.modules import FusedLSTM, FusedLSTMCell

__all__ = ["FusedLSTM", "FusedLSTMCell", "__version__", "convert", "functional", "revert"]
