"""Speed of FusedLSTM, FusedGRU and FusedRNN against torch.nn's layers and others: `python -m benchmarks --help`."""

import os

# PyTorch's profiler, which the suite asks for peak memory, otherwise writes into the progress bar.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
