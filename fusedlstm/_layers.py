"""A stack of layers, one after the other: the weights and states of each, and the loop over them."""

from __future__ import annotations

import torch
from torch import Tensor


def run_each(operator, x, states, layers, rows, options, dropout, wanted):
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


def zero_states(cell, x, sizes, B):
    """The initial states of all layers together, as users pass them."""
    _, _, H, P, L, D, _ = sizes
    return [x.new_zeros(L * D, B, P if P and place == 0 else H) for place in range(len(cell.states))]


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


def with_weight_dropout(weights, sizes, probability):
    """All weights in a row, each weight_hh with a mask of its own: DropConnect (Wan et al. 2013; Merity et al. 2018).

    An element is zero with this probability, and else divided by one minus it.
    """
    each = max(1, len(weights) // (sizes.num_layers * sizes.directions))  # fewer are refused later
    return [
        torch.dropout(weight, probability, True) if i % each == 1 and isinstance(weight, Tensor) else weight
        for i, weight in enumerate(weights)
    ]


def as_passed(states):
    """States as users pass them: one as a tensor, several as a tuple."""
    return tuple(states) if len(states) > 1 else states[0]
