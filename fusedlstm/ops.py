"""The operators seen from Python: fake kernels and derivatives. One layer, both directions, all steps.

`torch.ops.fusedlstm` has, with schemas in csrc/library.cpp and kernels for CPU and CUDA beside them:

* `lstm_layer`: see `fusedlstm.reference.lstm_layer` for arguments, results and meaning.
* `lstm_layer_inference`: the same arguments; output, h_n and c_n only; no derivative.
* `lstm_layer_backward`: the gradients that are asked for in `needs`; the others have size [0].

All take ensembles: with the members as one more dimension in front of every tensor but batch_sizes, one call runs M
layers, and gives what M calls would.

This module adds what PyTorch needs to trace and to differentiate them. The derivative of the
backward operator itself (double backward) is in _second_order.py.
"""

from __future__ import annotations

import functools
import math
from itertools import accumulate, chain, islice

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.utils import _pytree

from fusedlstm import _library, reference
from fusedlstm._second_order import second_order
from fusedlstm.reference import DIFFERENTIABLE

_library.load()

lstm_layer = torch.ops.fusedlstm.lstm_layer.default
lstm_layer_inference = torch.ops.fusedlstm.lstm_layer_inference.default
lstm_layer_backward = torch.ops.fusedlstm.lstm_layer_backward.default

# A layer's arguments by place: input, h_0, c_0; five lists of one tensor per direction;
# batch_sizes, lengths, reset, reset_h, reset_c; allow_tf32.
LISTS = slice(3, 8)
_ROWS = slice(8, 11)
_LAYER_ARGUMENTS = 14


@torch.library.register_fake("fusedlstm::lstm_layer")
def _fake_layer(*arguments):
    output, h_n, c_n = _fake_inference(*arguments)
    input = arguments[0]
    *front, D, _, H = c_n.shape  # front: the members of an ensemble
    rows = math.prod(input.shape[len(front) : -1])
    cell_states = input.new_empty((*front, D, rows, H), dtype=torch.promote_types(input.dtype, torch.float32))
    return output, h_n, c_n, input.new_empty((*front, D, rows, 4 * H)), cell_states


@torch.library.register_fake("fusedlstm::lstm_layer_inference")
def _fake_inference(input, h_0, c_0, *others):
    # Called in place of a kernel also where only some of the tensors are on the meta device.
    for tensor in (h_0, c_0, *chain.from_iterable(others[:5])):
        if tensor.device != input.device:
            raise RuntimeError(f"fusedlstm: expected all tensors on {input.device}, got one on {tensor.device}")
    D, _, R = h_0.shape[-3:]
    output = input.new_empty((*input.shape[:-1], D * R))
    return output, input.new_empty(h_0.shape), input.new_empty(c_0.shape)


@torch.library.register_fake("fusedlstm::lstm_layer_backward")
def _fake_backward(*arguments):
    layer, needs = arguments[4 : 4 + _LAYER_ARGUMENTS], arguments[-1]

    def gradient(argument, needed):
        if isinstance(argument, list):
            return [gradient(tensor, needed) for tensor in argument]
        needed = needed and argument is not None  # a reset state that was not given has none
        return layer[0].new_empty(argument.shape if needed else (0,))

    return tuple(gradient(layer[place], need) for place, need in zip(DIFFERENTIABLE, needs))


@torch.library.register_torch_dispatch("fusedlstm::lstm_layer", FunctionalTensorMode)
def _functionalized_layer(mode, operator, types, arguments, options):
    """`lstm_layer` in what traces programs after torch.export; for torch.onnx.export, what ONNX has for a layer."""
    results = mode.__torch_dispatch__(operator, types, arguments, options)
    if not (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()):
        return results
    from fusedlstm import onnx

    with mode:
        # ONNX has neither gates nor cell states. Where nothing uses them, the operator is dropped.
        return *onnx.layer(*arguments), *results[3:]


def _with_real_tensors(mode, operator, types, arguments, options):
    """An operator under fake tensors; and on the real tensors behind them, which torch.export.draft_export has.

    PyTorch's own rule for these takes a None in place of a tensor for one that the operator wrote to.
    """
    fakes = [tensor for tensor in _pytree.tree_leaves(arguments) if isinstance(tensor, FakeTensor)]
    if not mode.propagate_real_tensors or any(fake.real_tensor is None for fake in fakes):
        return mode.__torch_dispatch__(operator, types, arguments, options)
    mode.propagate_real_tensors = False
    try:
        results = mode.__torch_dispatch__(operator, types, arguments, options)
    finally:
        mode.propagate_real_tensors = True
    reals = operator(*_pytree.tree_map_only(FakeTensor, lambda fake: fake.real_tensor, arguments))
    for fake, real in zip(*map(_pytree.tree_leaves, (results, reals))):
        fake.real_tensor = real
    return results


for _operator in (lstm_layer, lstm_layer_inference, lstm_layer_backward):
    torch.library.register_torch_dispatch(_operator.name(), FakeTensorMode, _with_real_tensors)


class _Layer(torch.autograd.Function):
    """`lstm_layer` with its derivative.

    Written out instead of `torch.library.register_autograd`, which flattens lists of tensors by a
    general tree walk in every call: that took longer than a whole small layer. Arguments here are
    the operator's, as one tuple, then all that can have gradients, flat: input, h_0, c_0, the lists'
    elements, reset_h, reset_c.
    """

    # No setup_context: with it, every call of apply inspects the signature, for 50 microseconds.
    @staticmethod
    def forward(ctx, arguments, *tensors):
        with torch._C._AutoDispatchBelowAutograd():
            results = lstm_layer(*arguments)
        output, _, _, gates, cell_states = results
        batch_sizes, lengths, reset = arguments[_ROWS]
        ctx.places, ctx.allow_tf32 = _places(*map(len, arguments[LISTS])), arguments[-1]
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, gates, cell_states, batch_sizes, lengths, reset, *tensors)
        return results

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_c_n, _, d_cell_states):
        output, gates, cell_states, batch_sizes, lengths, reset, *tensors = ctx.saved_tensors
        places, asked = ctx.places, ctx.needs_input_grad[1:]
        lists, asked_lists = [tensors[place] for place in places], [any(asked[place]) for place in places]
        arguments = (
            d_output, d_h_n, d_c_n, d_cell_states,
            *tensors[:3], *lists, batch_sizes, lengths, reset, *tensors[-2:], ctx.allow_tf32,
            output, gates, cell_states, [*asked[:3], *asked_lists, *asked[-2:]],
        )  # fmt: skip
        if reference.is_needed():
            found = reference.lstm_layer_backward(*arguments)
        elif torch.is_grad_enabled():  # double backward
            found = lstm_layer_backward(*arguments)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                found = lstm_layer_backward(*arguments)
        flat = (*found[:3], *chain.from_iterable(found[3:8]), *found[8:])
        return (None, *[gradient if ask else None for gradient, ask in zip(flat, asked)])


def _tensors(
    input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
    batch_sizes, lengths, reset, reset_h, reset_c, allow_tf32,
):  # fmt: skip
    """Of a layer's arguments all that can have gradients, in a row."""
    return input, h_0, c_0, *weight_ih, *weight_hh, *bias_ih, *bias_hh, *weight_hr, reset_h, reset_c


@functools.cache
def _places(*list_sizes) -> list[slice]:
    """Where the lists are in the row of `_tensors`."""
    ends = list(accumulate(list_sizes, initial=3))
    return list(map(slice, ends, ends[1:]))


# Function.apply without its detour for functorch: under vmap, the rule in _vmap.py comes first, and
# what arrives here are plain tensors.
_apply_layer = super(torch.autograd.Function, _Layer).apply


def differentiable_layer(*arguments):
    """`lstm_layer` of tensors of which some require gradients.

    What the operator does at the Autograd keys. To call it is the same as to call the operator, and
    faster: on the dispatcher's way there, all arguments and results are converted there and back.
    """
    return _apply_layer(arguments, *_tensors(*arguments))


def _layer_at_autograd_keys(*arguments):
    """`lstm_layer` at the Autograd keys.

    AOTInductor's executor passes None for an empty list of tensors: accepted here, on the way.
    """
    arguments = (*arguments[:3], *[tensors or [] for tensors in arguments[LISTS]], *arguments[8:])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in _tensors(*arguments)):
        return differentiable_layer(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return lstm_layer(*arguments)


_library_rules = torch.library.Library("fusedlstm", "IMPL")
_library_rules.impl("lstm_layer", _layer_at_autograd_keys, "Autograd")


def _save_backward(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.needs = inputs[-1]
    _save(ctx, inputs[4 : 4 + _LAYER_ARGUMENTS], (*inputs[:4], *inputs[-4:-1]))


def _double_backward(ctx, *gradients_of_gradients):
    """Gradients of `lstm_layer_backward` for its incoming gradients and for the layer's arguments.

    Its arguments output, gates and cell_states are functions of the layer's arguments: what flows
    through them is counted there, and None is returned for themselves.
    """
    layer, (*incoming, output, gates, cell_states) = _saved(ctx, 7)
    cotangents = [u if needed else None for u, needed in zip(gradients_of_gradients, ctx.needs)]
    asked = [_any(need) for need in ctx.needs_input_grad[: 4 + _LAYER_ARGUMENTS]]
    found = second_order(layer, incoming, (output, gates, cell_states), cotangents, asked)
    return (*found, None, None, None, None)


def _save(ctx, layer, more):
    """Save a layer's arguments and the tensors `more`, so that hooks and version checks see all."""
    ctx.list_sizes = [len(tensors) for tensors in layer[LISTS]]
    ctx.allow_tf32 = layer[-1]
    lists = [tensor for tensors in layer[LISTS] for tensor in tensors]
    ctx.save_for_backward(*more, *layer[:3], *layer[8:13], *lists)


def _saved(ctx, count):
    """What `_save` was given: the layer's arguments, and `more`, which were `count`."""
    saved = iter(ctx.saved_tensors)
    more, first, last = (list(islice(saved, n)) for n in (count, 3, 5))
    lists = [list(islice(saved, n)) for n in ctx.list_sizes]
    return [*first, *lists, *last, ctx.allow_tf32], more


def _any(needs) -> bool:
    return any(needs) if isinstance(needs, (list, tuple)) else needs


torch.library.register_autograd("fusedlstm::lstm_layer_backward", _double_backward, setup_context=_save_backward)
