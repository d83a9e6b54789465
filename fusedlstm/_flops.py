"""FLOPs of the layer operators, for torch.utils.flop_counter.FlopCounterMode: those of nn.LSTM's matrix products.

Two for each multiply-add, as for PyTorch's own operators; padded steps and steps before a reset count as all others.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from importlib.abc import MetaPathFinder

from fusedlstm import ops

_COUNTER = "torch.utils.flop_counter"


def _forward(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, *others, out_val=None) -> int:
    """Every weight of a member is multiplied with each of its rows."""
    rows = math.prod(input.shape[:-1])
    return 2 * rows * sum(map(_size, (*weight_ih, *weight_hh, *weight_hr)))


def _backward(
    d_output, d_h_n, d_c_n, d_cell_states, input, h_0, c_0,
    weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, batch_sizes, *others, out_val=None,
) -> int:  # fmt: skip
    """One product for the gradients that are asked for, and one for those that the step before needs."""
    needs_input, needs_h_0, _, needs_ih, needs_hh, _, _, needs_hr, *_ = others[-1]
    rows = math.prod(input.shape[:-1])
    total = rows * (needs_input + needs_ih) * sum(map(_size, weight_ih))
    total += rows * (1 + needs_hr) * sum(map(_size, weight_hr))
    for direction, weight in enumerate(weight_hh):
        # Of the first step that runs, the gradient for h goes to h_0.
        first = 0 if needs_h_0 else _first_rows(h_0, batch_sizes, direction)
        total += (rows * needs_hh + max(rows - first, 0)) * _size(weight)
    return 2 * total


def _size(weight) -> int:
    """Of one member's weight."""
    return weight.shape[-2] * weight.shape[-1]


def _first_rows(h_0, batch_sizes, direction) -> int:
    """Rows, of all members, of the first step that runs in this direction."""
    *members, _, B, _ = h_0.shape
    return math.prod(members) * (int(batch_sizes[-1]) if direction == 1 and batch_sizes is not None else B)


def _register(counter) -> None:
    formulas = {ops.lstm_layer: _forward, ops.lstm_layer_inference: _forward, ops.lstm_layer_backward: _backward}
    for operator, formula in formulas.items():
        if operator.overloadpacket not in counter.flop_registry:  # the package may be imported again
            counter.register_flop_formula(operator.overloadpacket, get_raw=True)(formula)


class _RegisterAfterImport(MetaPathFinder):
    """Registers the formulas when the counter is imported: that takes long, with Triton in it, and few need it."""

    def find_spec(self, name, path, target=None):
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _register(module)

        spec.loader.exec_module = exec_module
        return spec


if _COUNTER in sys.modules:
    _register(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _RegisterAfterImport())
