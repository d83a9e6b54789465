"""cuDNN's own layers, by PyTorch's operator for them: what fusedlstm's kernels compete with on a GPU.

The parameters stay separate tensors, as users have them, and are copied to where cuDNN wants them in every call.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fusedlstm import _transforms
from fusedlstm._layers import run_kernels
from fusedlstm._private_torch import below_autograd, cudnn_rnn, cudnn_rnn_backward, is_any_autocast_enabled
from fusedlstm.cells import CELLS

_MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}  # cudnnRNNMode_t


class _Call(NamedTuple):
    """A call but for its tensors."""

    name: str
    sizes: tuple  # _checks.Sizes
    batch_sizes: torch.Tensor | None
    allow_tf32: bool


def run(name, x, hx, weights, sizes, batch_sizes, allow_tf32, is_differentiable):
    """As `_layers.run_kernels`, whose values these are within the error of the dtype; differentiable at will.

    A gradient of a gradient, which cuDNN has none of, is taken of fusedlstm's kernels.
    """
    call = _Call(name, sizes, batch_sizes, allow_tf32)
    hx = [state.contiguous() for state in hx]
    if is_any_autocast_enabled():  # all that it would cast is cast
        with torch.autocast(x.device.type, enabled=False):
            return _run(call, x, hx, weights, is_differentiable)
    return _run(call, x, hx, weights, is_differentiable)


def _run(call, x, hx, weights, is_differentiable):
    if is_differentiable:
        output, *last = _Stack.apply(call, x, *hx, *weights)
    else:
        output, last, _, _ = _forward(call, x, hx, weights, is_training=False)
    return output, last


class _Stack(torch.autograd.Function):
    """All layers of a call, with their derivative."""

    @staticmethod
    def forward(ctx, call, x, *tensors):
        states = len(CELLS[call.name].states)
        hx, weights = tensors[:states], tensors[states:]
        with below_autograd():
            output, last, reserve, buffer = _forward(call, x, hx, weights, is_training=True)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, reserve, buffer, x, *tensors)
        return output, *last

    @staticmethod
    def backward(ctx, *d_results):
        output, reserve, buffer, *tensors = ctx.saved_tensors
        asked = ctx.needs_input_grad[1:]
        if all(d is None for d in d_results):
            return (None,) * (1 + len(tensors))
        # cuDNN has no gradients of its gradients; PyTorch's operator for them has no rules of transforms.
        if torch.is_grad_enabled() or _transforms.are_active():
            return (None, *_gradients_of_kernels(ctx.call, tensors, d_results, asked))
        with below_autograd():
            found = _backward(ctx.call, tensors, d_results, output, reserve, buffer, asked)
        return (None, *[gradient if ask else None for gradient, ask in zip(found, asked)])


def _gradients_of_kernels(call, tensors, d_results, asked):
    """The gradients that are asked for, as functions of all tensors; None for the others."""
    states = len(CELLS[call.name].states)
    with torch.enable_grad():
        # Views: a state may be a function of the input, and one tensor may be several weights.
        x, *others = tensors = [tensor.view_as(tensor) for tensor in tensors]
        output, last = run_kernels(
            call.name, x, others[:states], others[states:], call.sizes, call.batch_sizes, call.allow_tf32
        )
        pairs = [(result, d) for result, d in zip((output, *last), d_results) if d is not None]
        wanted = [tensor for tensor, ask in zip(tensors, asked) if ask]
        results, incoming = zip(*pairs)
        found = iter(torch.autograd.grad(results, wanted, incoming, create_graph=True, allow_unused=True))
    return [next(found) if ask else None for ask in asked]


def _forward(call, x, hx, weights, is_training):
    """Output, last states, and what the backward pass needs beside them."""
    output, *last, reserve, buffer = cudnn_rnn(
        x, weights, _per_direction(call.sizes), None, *_two(hx), *_options(call, is_training)
    )
    return output, last[: len(hx)], reserve, buffer


def _backward(call, tensors, d_results, output, reserve, buffer, asked):
    """The gradients of all tensors, of some that are not asked for too."""
    states = len(CELLS[call.name].states)
    x, hx, weights = tensors[0], tensors[1 : 1 + states], tensors[1 + states :]
    d_output, *d_last = d_results
    asks_weights = any(asked[1 + states :])
    asks = [asked[0], asked[1], states > 1 and asked[2], asks_weights]
    d_x, d_h, d_c, d_weights = cudnn_rnn_backward(
        x, weights, _per_direction(call.sizes), buffer, *_two(hx), output, d_output, *_two(d_last),
        *_options(call, True), reserve, asks,
    )  # fmt: skip
    return d_x, *(d_h, d_c)[:states], *(d_weights if asks_weights else [None] * len(weights))


def _per_direction(sizes) -> int:
    return (4 if sizes.bias else 2) + (1 if sizes.proj_size else 0)


def _two(states):
    """Those of h and c, None for one that the cell does not have."""
    return states[0], states[1] if len(states) > 1 else None


def _options(call, is_training):
    """The arguments of both operators from `mode` to `dropout_state`."""
    _, _, H, P, L, D, _ = call.sizes
    batch_sizes = [] if call.batch_sizes is None else call.batch_sizes.tolist()
    return _MODES[call.name], H, P, L, False, 0.0, is_training, D == 2, batch_sizes, None
