"""All layers of a usual call by one operator, `<cell>_stack`, and its derivative.

What is usual is said in _run.py; everything else calls a layer's operator for each layer.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from fusedlstm import _transforms
from fusedlstm._arguments import BackwardArguments, Incoming, LayerArguments
from fusedlstm._autograd import asked_of, gradients_of_layer
from fusedlstm._autograd_steps import UNROUNDED
from fusedlstm._choice import choose
from fusedlstm._layers import states_of_layers, weights_of_layers
from fusedlstm._out_of_memory import raises_out_of_memory
from fusedlstm._private_torch import below_autograd, count_of_dispatch_modes, plain_apply
from fusedlstm._sizes import Sizes, weights_of
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS


class Call(NamedTuple):
    """A call but for what can have gradients."""

    sizes: Sizes
    batch_sizes: Tensor | None
    allow_tf32: bool
    states: int  # how many are given: none for zeros

    @property
    def options(self) -> tuple:
        """What the operators take after the weights."""
        return self.batch_sizes, self.sizes.num_layers, self.sizes.directions, self.allow_tf32

    def parts(self, tensors) -> tuple:
        """What there is for the input, for the states, and for the weights, of all in a row."""
        return tensors[0], tensors[1 : 1 + self.states], tensors[1 + self.states :]


def run_stack(x, hx, weights, sizes, batch_sizes, allow_tf32):
    """Output and last states of all layers, without dropout; differentiable as those of a layer's operator.

    Args:
        hx: for each of the cell's states that of all layers; [] for zeros, where there are no batch_sizes.
        weights: of all layers and directions, in a row.
    """
    operators = OPERATORS[sizes.cell]
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        if CELLS[sizes.cell].run_step is not None and batch_sizes is None:
            results = run_short(x, hx, weights, sizes)
            if results is not None:
                return results
        tensors = (x, *hx, *weights)
        if any(tensor.requires_grad for tensor in tensors):
            output, *last = _apply_stack(Call(sizes, batch_sizes, allow_tf32, len(hx)), *tensors)
            return output, last
    h, c, *_ = *hx, None, None
    output, h, c = operators.stack_inference(
        x, h, c, weights, batch_sizes, sizes.num_layers, sizes.directions, allow_tf32
    )
    return output, [h] if c is None else [h, c]


def run_short(x, hx, weights, sizes):
    """A few steps in training by PyTorch's own layers, of a cell that gains nothing in them by kernels, see
    `Cell.run_step`: there the calls of Python that our derivatives take are longer than PyTorch's loop over steps.

    Arguments and results as those of `run_stack`; hx and weights may hold what is no tensor. None for any other call,
    those of tensors that do not fit among them: our operators refuse these, while PyTorch's take a bias, say, that has
    one element.
    """
    if not x.is_cpu or x.dtype not in UNROUNDED or x.dim() != 3 or x.layout is not torch.strided:
        return None
    _, input_size, H, _, L, D, bias = sizes
    T, B, columns = x.shape
    try:
        # What else does not fit the operator refuses.
        if T not in (1, 2) or columns != input_size or [weight.shape for weight in weights] != _shapes_of(sizes):
            return None
        for state in hx:
            if state.shape != (L * D, B, H) or state.dtype is not x.dtype or state.layout is not torch.strided:
                return None
        if weights[0].requires_grad or any(tensor.requires_grad for tensor in (x, *hx, *weights)):
            (state,) = hx or (x.new_zeros(L * D, B, H),)
            # dropout, training, bidirectional, batch_first
            output, last = CELLS[sizes.cell].run_layer(x, state, weights, bias, L, 0.0, True, D == 2, False)
            return output, [last]
    except (AttributeError, RuntimeError, TypeError, ValueError):
        pass
    return None


@functools.cache
def _shapes_of(sizes) -> list[tuple[int, ...]]:
    """Those of all weights in a row."""
    return [shape for _, shape in weights_of(sizes)]


class _Stack(torch.autograd.Function):
    """`<cell>_stack` with its derivative."""

    @staticmethod
    def forward(ctx, call, *tensors):
        with below_autograd():
            output, last, kept = OPERATORS[call.sizes.cell].stack(*call.parts(tensors), *call.options)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, *kept, *tensors)
        return output, *last

    @staticmethod
    @raises_out_of_memory
    def backward(ctx, *d_results):
        call, saved = ctx.call, ctx.saved_tensors  # to be asked for once: checkpoints count
        L = call.sizes.num_layers
        output, kept, tensors = saved[0], saved[1 : 2 + L], saved[2 + L :]
        if all(d is None for d in d_results):  # as what comes after may say
            return (None,) * (1 + len(tensors))
        asked = asked_of(ctx, tensors)
        if torch.is_grad_enabled() or _transforms.are_active(d_results) or count_of_dispatch_modes() > 0:
            of_layers = list(zip([*kept[2:], output], kept[0].chunk(L), kept[1].chunk(L)))
            return (None, *gradients_by_layers(call, tensors, d_results, asked, of_layers))
        d_output, *d_last = d_results
        with below_autograd():
            found = OPERATORS[call.sizes.cell].stack_backward(
                d_output, d_last, *call.parts(tensors), *call.options, output, kept, asked
            )
        return (None, *[gradient if ask else None for gradient, ask in zip(found, asked)])


def gradients_by_layers(call: Call, tensors, d_results, asked, kept=None):
    """The gradients that are asked for, None for the others, by the rules of each layer: those of transforms, and as
    functions of all tensors.

    Args:
        kept: of each layer output, saved and carried; None where they are not at hand.
    """
    is_recorded = torch.is_grad_enabled() and not _transforms.are_active(d_results)
    if not is_recorded or (kept and call.sizes.num_layers == 1):
        # Transforms follow what comes in; to them all else, what was kept too, is constant.
        found = _chain(call, tensors, d_results, asked, kept or _run(call, tensors)[2])
    else:
        found = _of_recorded_layers(call, tensors, d_results, asked)
    return [gradient if ask else None for gradient, ask in zip(found, asked)]


def _run(call: Call, tensors):
    """Output, last states, and of each layer what is kept, by whatever runs a layer here and now."""
    cell, sizes = CELLS[call.sizes.cell], call.sizes
    x, hx, weights = call.parts(tensors)
    operator = choose(cell, x, tensors, sizes.hidden_size, True, None, None, False)
    initial, _ = states_of_layers(cell, x, hx or None, None, sizes, None if hx else x.size(1))
    last, kept = [], []
    for states, kinds in zip(initial, weights_of_layers(weights, sizes)):
        x, last_of_layer, saved, carried = operator(
            x, states, *kinds, call.batch_sizes, None, None, [], call.allow_tf32
        )
        last.append(last_of_layer)
        kept.append((x, saved, carried))
    return x, list(map(torch.cat, zip(*last))), kept


def _of_recorded_layers(call: Call, tensors, d_results, asked):
    """By a graph of the layers, run again: what each was given is then a function of those below it."""
    with torch.enable_grad():
        # Views: a state may be a function of the input, and one tensor may be several weights.
        tensors = [tensor.view_as(tensor) for tensor in tensors]
        output, last, _ = _run(call, tensors)
        results, incoming = zip(*[pair for pair in zip((output, *last), d_results) if pair[1] is not None])
        wanted = [tensor for tensor, ask in zip(tensors, asked) if ask]
        found = iter(torch.autograd.grad(results, wanted, incoming, create_graph=True, allow_unused=True))
    return [next(found) if ask else None for ask in asked]


def _chain(call: Call, tensors, d_results, asked, kept):
    """From what the layers kept, the last one first."""
    cell, L = CELLS[call.sizes.cell], call.sizes.num_layers
    x, hx, weights = call.parts(tensors)
    asks_x, asks_hx, asks_weights = call.parts(asked)
    initial, _ = states_of_layers(cell, x, hx or None, None, call.sizes, None if hx else x.size(1))
    layers, asks_layers = weights_of_layers(weights, call.sizes), weights_of_layers(asks_weights, call.sizes)
    d_output, *d_last = d_results
    parts = [[None] * L if d is None else d.chunk(L) for d in d_last]
    d_initial, d_weights = [], []
    for i in reversed(range(L)):
        given = kept[i - 1][0] if i > 0 else x
        layer = LayerArguments(given, initial[i], *layers[i], call.batch_sizes, allow_tf32=call.allow_tf32)
        needs = [i > 0 or asks_x, any(asks_hx), *map(any, asks_layers[i]), False]
        incoming = Incoming(d_output, [part[i] for part in parts], None)
        found = gradients_of_layer(cell.name, BackwardArguments(incoming, layer, *kept[i], needs))
        d_output, d_states, *d_kinds, _ = found
        d_initial.insert(0, d_states)
        d_weights[:0] = [d for of_direction in zip(*[kind for kind in d_kinds if kind]) for d in of_direction]
    d_hx = [torch.cat(of_state) for of_state in zip(*d_initial)][: len(hx)]
    return d_output, *d_hx, *d_weights


_apply_stack = plain_apply(_Stack)
