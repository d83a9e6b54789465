"""cuDNN's own layers, by PyTorch's operator for them: what fusedlstm's kernels compete with on a GPU.

The parameters stay separate tensors, as users have them, and are copied to where cuDNN wants them in every call.
"""

from __future__ import annotations

import torch

from fusedlstm import _transforms
from fusedlstm._autograd import asked_of
from fusedlstm._private_torch import (
    below_autograd,
    cudnn_rnn,
    cudnn_rnn_backward,
    is_any_autocast_enabled,
    plain_apply,
)
from fusedlstm._stack import Call, gradients_by_layers
from fusedlstm.cells import CELLS


def run(x, hx, weights, sizes, batch_sizes, allow_tf32, is_differentiable):
    """As `_stack.run_stack`, whose values these are within the error of the dtype; differentiable at will.

    A gradient of a gradient, which cuDNN has none of, is taken of fusedlstm's kernels.
    """
    call = Call(sizes, batch_sizes, allow_tf32, len(hx))
    hx = [state.contiguous() for state in hx]
    if is_any_autocast_enabled():  # all that it would cast is cast
        with torch.autocast(x.device.type, enabled=False):
            return _run(call, x, hx, weights, is_differentiable)
    return _run(call, x, hx, weights, is_differentiable)


def _run(call, x, hx, weights, is_differentiable):
    if is_differentiable:
        output, *last = _apply_layers(call, x, *hx, *weights)
    else:
        output, last, _, _ = _forward(call, x, hx, weights, is_training=False)
    return output, last


class _Layers(torch.autograd.Function):
    """All layers of a call, with their derivative."""

    @staticmethod
    def forward(ctx, call, *tensors):
        with below_autograd():
            output, last, reserve, buffer = _forward(call, *call.parts(tensors), is_training=True)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, reserve, buffer, *tensors)
        return output, *last

    @staticmethod
    def backward(ctx, *d_results):
        output, reserve, buffer, *tensors = ctx.saved_tensors
        if all(d is None for d in d_results):  # as what comes after may say
            return (None,) * (1 + len(tensors))
        asked = asked_of(ctx, tensors)
        # cuDNN has no gradients of its gradients; PyTorch's operator for them has no rules of transforms.
        if torch.is_grad_enabled() or _transforms.are_active(d_results):
            return (None, *gradients_by_layers(ctx.call, tensors, d_results, asked))
        with below_autograd():
            found = _backward(ctx.call, tensors, d_results, output, reserve, buffer, asked)
        return (None, *[gradient if ask else None for gradient, ask in zip(found, asked)])


_apply_layers = plain_apply(_Layers)


def _forward(call, x, hx, weights, is_training):
    """Output, last states, and what the backward pass needs beside them."""
    output, *last, reserve, buffer = cudnn_rnn(
        x, weights, _per_direction(call.sizes), None, *_two(hx), *_options(call, is_training)
    )
    return output, last[: len(hx)], reserve, buffer


def _backward(call, tensors, d_results, output, reserve, buffer, asked):
    """The gradients of all tensors, of some that are not asked for too."""
    x, hx, weights = call.parts(tensors)
    d_output, *d_last = d_results
    asks_x, asks_hx, asks_weights = call.parts(asked)
    asks = [asks_x, asks_hx[0], len(hx) > 1 and asks_hx[1], any(asks_weights)]
    d_x, d_h, d_c, d_weights = cudnn_rnn_backward(
        x, weights, _per_direction(call.sizes), buffer, *_two(hx), output, d_output, *_two(d_last),
        *_options(call, True), reserve, asks,
    )  # fmt: skip
    return d_x, *(d_h, d_c)[: len(hx)], *(d_weights if asks[-1] else [None] * len(weights))


def _per_direction(sizes) -> int:
    return (4 if sizes.bias else 2) + (1 if sizes.proj_size else 0)


def _two(states):
    """Those of h and c, None for one that the cell does not have."""
    return states[0], states[1] if len(states) > 1 else None


def _options(call, is_training):
    """The arguments of both operators from `mode` to `dropout_state`."""
    _, _, H, P, L, D, _ = call.sizes
    batch_sizes = [] if call.batch_sizes is None else call.batch_sizes.tolist()
    return CELLS[call.sizes.cell].cudnn, H, P, L, False, 0.0, is_training, D == 2, batch_sizes, None
