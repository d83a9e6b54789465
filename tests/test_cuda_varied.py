"""The CUDA kernels of recurrences with variants, on the emulated GPU: results and gradients against the reference."""

import emulated_varied
import pytest
import torch
from recurrences import cases, check

from fusedlstm import _recurrence


@pytest.fixture
def emulated(monkeypatch):
    """Operators that run the CUDA kernels."""
    monkeypatch.setattr(_recurrence, "_OPERATORS", emulated_varied.operators())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@cases
def test_values_and_gradients(cell, name, dtype, emulated):
    """More units than a warp has threads, fewer, and one."""
    for sizes in [(5, 3, 37), (4, 2, 7), (2, 2, 1)]:
        check(emulated_varied.run, cell, name, *sizes, dtype)
