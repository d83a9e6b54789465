"""Initial values for recurrent layers beside torch.nn's uniform ones, in place, as the functions of `torch.nn.init`.

They take FusedLSTM, FusedGRU and FusedRNN, torch.nn's own, and the cells of either.
"""

from __future__ import annotations

import torch
from torch import nn

_GATES = {"LSTM": 4, "GRU": 3}


def orthogonal_(module: nn.RNNBase | nn.RNNCellBase, gain: float = 1.0) -> nn.Module:
    """Makes each gate's block of every weight_hh an orthogonal matrix times `gain` (Saxe et al. 2014).

    With a projection, a block [H, R] has orthogonal columns. Draws from PyTorch's generator; returns `module`.

    Equivalent to:
        for block in module.weight_hh_l0.chunk(4): nn.init.orthogonal_(block, gain)
    """
    with torch.no_grad():
        for _, weight in _parameters(module, "weight_hh"):
            for block in weight.split(module.hidden_size):
                nn.init.orthogonal_(block, gain)
    return module


def chrono_(module: nn.RNNBase | nn.RNNCellBase, longest: float) -> nn.Module:
    """Sets biases so that gates remember for 1 to `longest` steps, as many units for short as for long times.

    Tallec & Ollivier 2018, "Can recurrent neural networks warp time?". LSTM: b_f = log(u) with u uniform in
    [1, longest - 1], and b_i = -b_f. GRU, whose update gate z keeps the old state: b_z = log(u). This is what bias_ih
    gets; bias_hh, and the other gates' biases, become zero.

    Args:
        longest: the longest dependency in the data, in steps, above 2.

    Returns:
        `module`.

    Raises:
        TypeError: a simple RNN, which has no gate that remembers.
        ValueError: a layer without biases, or longest <= 2.
    """
    gates = _GATES.get(_kind(module))
    if gates is None:
        raise TypeError(f"chrono_: Expected an LSTM or a GRU, got {type(module).__name__}, which has no gate to set")
    if not longest > 2:
        raise ValueError(f"chrono_: Expected longest > 2, got {longest}")
    if not module.bias:
        raise ValueError("chrono_: Expected a layer with biases, got bias=False")
    H = module.hidden_size
    with torch.no_grad():
        for name, bias in _parameters(module, "bias"):
            bias.zero_()
            if not name.startswith("bias_ih"):
                continue
            remembers = torch.empty_like(bias[:H]).uniform_(1, longest - 1).log_()
            bias[H : 2 * H] = remembers
            if gates == 4:
                bias[:H] = -remembers
    return module


def _parameters(module, kind: str):
    """Names and tensors of those of this kind, of all layers and directions."""
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        raise TypeError(f"Expected a recurrent layer or cell, got {type(module).__name__}")
    return [(name, tensor) for name, tensor in module.named_parameters(recurse=False) if name.startswith(kind)]


def _kind(module) -> str:
    """ "LSTM", "GRU" or another."""
    if isinstance(module, nn.RNNBase):
        return module.mode
    return {4: "LSTM", 3: "GRU"}.get(module.weight_ih.size(0) // module.hidden_size, "RNN")
