"""A drop-in replacement for torch.nn.LSTM with fused CUDA and CPU kernels."""

from fusedlstm import _library
from fusedlstm._version import __version__

_library.load()

__all__ = ["__version__"]
