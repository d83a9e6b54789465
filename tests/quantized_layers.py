"""What the tests of layers with int8 weights have in common."""

import copy

import family
import pytest
import torch
from family import LSTM, tensors_of
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from fusedlstm import quantize

MODELS = dict(family.MODELS)
MODELS["lstm-projection"] = LSTM, {"proj_size": 3}
MODELS["lstm-projections"] = LSTM, {"proj_size": 3, "num_layers": 2, "bidirectional": True, "bias": False}
models = pytest.mark.parametrize("member, options", MODELS.values(), ids=MODELS)
NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}


def quantized_of(member, *sizes, reduce_range=False, **options):
    """A fused layer, and the same with int8 weights."""
    layer = member.layer(*sizes, **options).eval()
    return layer, quantize(copy.deepcopy(layer), reduce_range=reduce_range)


def flat(results):
    """All tensors of a layer's results, a packed output's data first."""
    output, hx = results
    return [output.data if isinstance(output, PackedSequence) else output, *tensors_of(hx)]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def weights_of(module):
    """The tensors of a quantized module, [L] lists in the order of its operator."""
    state, L = list(module.state_dict().values()), getattr(module, "num_layers", 1)
    each = len(state) // L
    return [state[i * each : (i + 1) * each] for i in range(L)]


class Output(nn.Module):
    def forward(self, results):
        return results[0]
