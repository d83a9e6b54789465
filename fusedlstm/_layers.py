"""A stack of layers: their weights and states of each, and the loop over them."""

from __future__ import annotations

import torch

from fusedlstm._choice import choose_plain
from fusedlstm.cells import CELLS


def run_stack(operator, x, states, layers, rows, options, dropout, wanted):
    """All layers: output of the last; of all, layer by layer, the last states and the results at places `wanted`.

    layers: of each its weights as the operator takes them.
    options: what that takes last.
    """
    initial, reset_state = states
    L, last, kept = len(layers), [], []
    for layer in range(L):
        result = operator(x, initial[layer], *layers[layer], *rows, reset_state[layer], *options)
        x = result[0]
        last.append(result[1])
        if wanted:
            kept.append([result[place] for place in wanted])
        if dropout != 0 and layer < L - 1:
            x = torch.dropout(x, dropout, True)
    if L == 1:
        return x, last[0], *(kept[0] if kept else ())
    return x, list(map(torch.cat, zip(*last))), *map(torch.cat, zip(*kept))


def states_of_layers(cell, x, hx, reset_state, sizes, B):
    """The initial states and the reset states of each layer; the first are zeros where there is no hx."""
    _, _, H, P, L, D, _ = sizes

    def of_layers(states):
        return [states] if L == 1 else list(map(list, zip(*(state.chunk(L) for state in states))))

    if hx is None:
        zeros = x.new_zeros(D, B, H)
        initial = [[x.new_zeros(D, B, P) if P else zeros, *[zeros] * (len(cell.states) - 1)]] * L
    else:
        initial = of_layers(hx)
    return initial, [[]] * L if reset_state is None else of_layers(reset_state)


def weights_of_layers(weights, sizes):
    """Of each layer its weights as the operator takes them; `weights` are all in a row."""
    _, _, _, P, L, D, bias = sizes
    each = len(weights) // L
    return [by_kind(weights[i * each : (i + 1) * each], D, bias, P) for i in range(L)]


def by_kind(weights, D, bias, P):
    """One layer's weights as the operator takes them: of each kind those of all directions, none of absent kinds."""
    kinds = len(weights) // D
    lists = [[tensor] for tensor in weights] if D == 1 else list(map(list, zip(weights[:kinds], weights[kinds:])))
    if not bias:
        lists[2:2] = [], []
    if not P:
        lists.append([])
    return lists


def as_passed(states):
    """States as users pass them: one as a tensor, several as a tuple."""
    return tuple(states) if len(states) > 1 else states[0]


def run_kernels(name, x, hx, weights, sizes, batch_sizes, allow_tf32):
    """Output and last states of a usual call, see `is_plain`, of the cell of this name, without dropout.

    hx: for each of the cell's states that of all layers.
    """
    operator = choose_plain(name, (*weights, x, *hx) if torch.is_grad_enabled() else ())
    states = states_of_layers(CELLS[name], x, hx, None, sizes, hx[0].size(1))
    layers = weights_of_layers(weights, sizes)
    output, last = run_stack(operator, x, states, layers, (batch_sizes, None, None), (allow_tf32,), 0.0, ())
    return output, last
