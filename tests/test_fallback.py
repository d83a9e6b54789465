"""Devices without kernels: PyTorch's own LSTM runs the layers, after one warning."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from cases import OPTIONS
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fusedlstm import FusedLSTM, _choice, _run, reference
from fusedlstm.cells import LSTM


@pytest.fixture
def without_kernels(monkeypatch):
    """The layers run as on a device without kernels, here on the CPU; returns which one ran."""
    used = []

    def layer(*arguments):
        used.append("torch")
        return _choice.TORCH_LAYERS["lstm"](*arguments)

    monkeypatch.setattr(_run, "is_plain", lambda *_: False)
    monkeypatch.setattr(_run, "choose", lambda *_: layer)
    return used


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case.name)
def test_layers_are_torch_s(case, without_kernels):
    plain, fused = nn.LSTM(**case.module_kwargs()), FusedLSTM(**case.module_kwargs())
    fused.load_state_dict(plain.state_dict())
    sequences = [torch.randn(n, case.input_size) for n in (5, 3, 1)]
    packed, dense = pack_sequence(sequences), torch.randn(case.T, case.B, case.input_size)
    torch.testing.assert_close(fused(dense), plain(dense), rtol=0, atol=1e-6)
    actual, expected = fused(packed), plain(packed)
    torch.testing.assert_close(actual[0].data, expected[0].data, rtol=0, atol=1e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=1e-6)
    assert len(without_kernels) == 2 * case.num_layers


def test_one_warning_names_the_cause():
    device = torch.device("mps")
    with pytest.warns(RuntimeWarning, match="PyTorch's own layers: .*not for mps"):
        assert _choice.lacks_kernels(device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _choice.lacks_kernels(device)
    x = SimpleNamespace(is_cpu=False, is_meta=False, device=device)
    assert _choice.choose(LSTM, x, [], 4, False, None, None, False) is _choice.TORCH_LAYERS["lstm"]
    wants_states = _choice.choose(LSTM, x, [], 4, True, None, None, False)
    assert wants_states.func is reference.layer
    assert not _choice.is_plain((x,))
    x.device = torch.device("cpu")
    assert _choice.is_plain((x,))
