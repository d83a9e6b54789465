"""The operators seen from Python: fake kernels and derivatives. One layer, both directions, all steps.

`torch.ops.fusedlstm` has, with schemas in csrc/library.cpp and kernels for CPU and CUDA beside them:

* `lstm_layer`: see `fusedlstm.reference.lstm_layer` for arguments, results and meaning.
* `lstm_layer_inference`: the same arguments; output, h_n and c_n only; no derivative.
* `lstm_layer_backward`: the gradients that are asked for in `needs`; the others have size [0].

All take ensembles: with the members as one more dimension in front of every tensor but batch_sizes, one call runs M
layers, and gives what M calls would.

This module adds what PyTorch needs to trace them; derivatives are in _autograd.py.
"""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.utils import _pytree

from fusedlstm import _library
from fusedlstm.reference import DIFFERENTIABLE

_library.load()

lstm_layer = torch.ops.fusedlstm.lstm_layer.default
lstm_layer_inference = torch.ops.fusedlstm.lstm_layer_inference.default
lstm_layer_backward = torch.ops.fusedlstm.lstm_layer_backward.default

# A layer's arguments by place: input, h_0, c_0; five lists of one tensor per direction;
# batch_sizes, lengths, reset, reset_h, reset_c; allow_tf32.
LISTS = slice(3, 8)
ROWS = slice(8, 11)
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
