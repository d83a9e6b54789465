"""A drop-in replacement for torch.nn.LSTM with fused CUDA and CPU kernels."""

from fusedlstm import _library
from fusedlstm._version import __version__

_library.load()

from fusedlstm import functional  # noqa: E402  (needs the operators that load() brings)
from fusedlstm.convert import convert, revert  # noqa: E402
from fusedlstm.modules import FusedLSTM, FusedLSTMCell  # noqa: E402

__all__ = ["FusedLSTM", "FusedLSTMCell", "__version__", "convert", "functional", "revert"]
