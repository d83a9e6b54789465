"""FLOPs of the layer operators, for torch.utils.flop_counter.FlopCounterMode: those of nn.LSTM's matrix products.

Two for each multiply-add, as for PyTorch's own operators; padded steps and steps before a reset count as all others.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
from importlib.abc import MetaPathFinder

from fusedlstm import _int8
from fusedlstm._arguments import (
    BackwardArguments,
    Differentiable,
    Incoming,
    LayerArguments,
    by_kind,
    list_sizes,
    one_step,
)
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS, REGISTERED
from fusedlstm.reference_varied import RecurrenceArguments

_COUNTER = "torch.utils.flop_counter"


def _forward(*arguments, out_val=None) -> int:
    """Every weight of a member is multiplied with each of its rows."""
    layer = LayerArguments(*arguments)
    rows = math.prod(layer.input.shape[:-1])
    return 2 * rows * sum(map(_size, (*layer.weight_ih, *layer.weight_hh, *layer.weight_hr)))


def _backward(*arguments, out_val=None) -> int:
    """One product for the gradients that are asked for, and one for those that the step before needs."""
    given = BackwardArguments.of(arguments)
    layer, needs = given.layer, Differentiable(*given.needs)
    rows = math.prod(layer.input.shape[:-1])
    total = rows * (needs.input + needs.weight_ih) * sum(map(_size, layer.weight_ih))
    total += rows * (1 + needs.weight_hr) * sum(map(_size, layer.weight_hr))
    for direction, weight in enumerate(layer.weight_hh):
        # Of the first step that runs, the gradient for h goes to the initial state.
        first = 0 if needs.initial else _first_rows(layer.initial[0], layer.batch_sizes, direction)
        total += (rows * needs.weight_hh + max(rows - first, 0)) * _size(weight)
    return 2 * total


def _cell_forward(*step, out_val=None) -> int:
    return _forward(*one_step(*step))


def _cell_backward(d_last, *step_and_kept, out_val=None) -> int:
    """The same of one step."""
    *step, _, needs = step_and_kept
    layer = one_step(*step)
    needs = by_kind(needs, list_sizes(layer))
    needs = [any(need) if isinstance(need, list) else need for need in needs]
    return _backward(*BackwardArguments(Incoming(None, [], None), layer, None, None, None, needs).in_a_row())


def _cell_second_order(
    d_last, input, states, weights, allow_tf32, kept, cotangents, needs, leaves_sums, out_val=None
) -> int:
    """Of each weight a product for what moves, itself or its rows; up to two for each gradient that is asked for."""
    first = len(states)
    arrives = any(d is not None for d in d_last)
    total = 0
    for part in (0, 1):  # of the input, of h
        moves, moves_weight = (cotangents[place] is not None for place in (part, 1 + first + part))
        asks, asks_weight = (arrives * needs[first + place] for place in (part, 1 + first + part))
        count = (
            moves + moves_weight + asks * (moves_weight + (not leaves_sums)) + asks_weight * (moves + (not leaves_sums))
        )
        total += count * _size(weights[part])
    return 2 * len(input) * total


def _cell_sums_backward(d_last, d_sums, input, states, weights, allow_tf32, kept, needs, out_val=None) -> int:
    """A product for each gradient that is asked for."""
    counts = (needs[part] + needs[1 + len(states) + part] for part in (0, 1))
    return 2 * len(input) * sum(count * _size(weight) for count, weight in zip(counts, weights))


def _quantized(cell, input, initial, weights, *rows_and_states, out_val=None) -> int:
    """Those of the float layer: the zeros around packed weights are not counted."""
    D, H, P = _int8.sizes_of_layer(weights, cell)
    rows = math.prod(input.shape[:-1])
    return 2 * rows * D * (cell.gates * H * (input.size(-1) + (P or H)) + P * H)


def _recurrence(*arguments, out_val=None) -> int:
    a = RecurrenceArguments(*arguments)
    return 2 * math.prod(a.input.shape[:-1]) * (_size(a.weight_ih) + _size(a.weight_hh))


def _recurrence_backward(d_output, d_last, *arguments, out_val=None) -> int:
    """One product for the gradients that are asked for, and one for those that the step before needs."""
    *arguments, _, needs = arguments
    a, (input, weight_ih, weight_hh) = RecurrenceArguments(*arguments), needs
    products = (input + weight_ih) * _size(a.weight_ih) + (1 + weight_hh) * _size(a.weight_hh)
    return 2 * math.prod(a.input.shape[:-1]) * products


def _size(weight) -> int:
    """Of one member's weight."""
    return weight.shape[-2] * weight.shape[-1]


def _first_rows(h_0, batch_sizes, direction) -> int:
    """Rows, of all members, of the first step that runs in this direction."""
    *members, _, B, _ = h_0.shape
    return math.prod(members) * (int(batch_sizes[-1]) if direction == 1 and batch_sizes is not None else B)


# In the order of Operators.
_FORMULAS = (
    _forward, _forward, _backward, _cell_forward, _cell_forward, _cell_backward, _cell_second_order, _cell_sums_backward
)  # fmt: skip


def _register(counter) -> None:
    formulas = {
        operator: formula for operators in OPERATORS.values() for operator, formula in zip(operators, _FORMULAS)
    }
    for name, operators in OPERATORS.items():
        formulas[operators.quantized] = functools.partial(_quantized, CELLS[name])
        formulas[getattr(REGISTERED, f"{name}_recurrence").default] = _recurrence
        formulas[getattr(REGISTERED, f"{name}_recurrence_backward").default] = _recurrence_backward
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
