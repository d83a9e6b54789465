"""The operators seen from Python: fake kernels. One call is one layer, both directions, all steps.

`torch.ops.fusedlstm` has for each cell, with schemas in csrc/library.cpp and kernels for CPU and CUDA beside them:

* `<cell>_layer`: see `fusedlstm.reference.layer` for arguments, results and meaning.
* `<cell>_layer_inference`: the same arguments; output and last states only; no derivative.
* `<cell>_layer_backward`: the gradients that are asked for in `needs`; the others have size [0].
* `<cell>_cell`, `<cell>_cell_inference`, `<cell>_cell_backward`: the same of one step in one direction, between tensors
  of a cell's shapes: input [B, I], states [B, H], and weight_ih, weight_hh and both biases or none in one list. `kept`
  are output, saved and carried of the layer. Called by _autograd_steps.py; they have no derivative of their own.
* `<cell>_cell_second_order`, `<cell>_cell_sums_backward`, on the CPU alone: the derivatives of these, see
  _second_order_cell.py. None where nothing is asked for or nothing flows.
* `<cell>_stack`, `<cell>_stack_inference`, `<cell>_stack_backward`: the same of all layers of a usual call, with all
  weights in one list, see csrc/call/arguments.h. Called by _stack.py, outside of everything that traces or transforms;
  they have no derivative of their own.
* `<cell>_freeze`, on the CPU alone: the weights of layers as its kernels read them, in a tensor of bytes that fits this
  process, a row for each layer; `<cell>_layer_frozen` and `<cell>_cell_frozen` are inference with such a row, and with
  no states for zeros.
  They are called as they are, outside of everything that traces or transforms.
* `<cell>_layer_quantized`, on the CPU alone: inference with int8 weights; see fusedlstm/_int8.py.
  `<cell>_cell_quantized` is a step of it, called as it is, as those of frozen cells are.
* `<cell>_stack_frozen`, `<cell>_stack_quantized`: all layers of either, in calls as short as those. They, and
  `<cell>_stack_inference`, have each state apart: h_0 and c_0, h_n and c_n, None where there is none.
* `<cell>_steps_second_order`: what is between the products of second order, see _second_order_step.py.

Operators of layers take ensembles: with the members as one more dimension in front of every tensor but batch_sizes, one
call runs M layers, and gives what M calls would.

This module adds what PyTorch needs to trace them; derivatives are in _autograd.py.
"""

from __future__ import annotations

import functools
import math
from itertools import chain
from typing import NamedTuple

import torch

from fusedlstm import _int8, _library
from fusedlstm._arguments import BackwardArguments, LayerArguments, differentiable, one_step
from fusedlstm._namespace import REGISTERED
from fusedlstm._private_torch import (
    FakeTensorMode,
    FunctionalTensorMode,
    OpOverload,
    argument_names,
    run_with_real_tensors,
)
from fusedlstm.cells import CELLS, Cell

_library.load()


class Operators(NamedTuple):
    """The operators of a cell."""

    layer: OpOverload
    inference: OpOverload
    backward: OpOverload
    cell: OpOverload
    cell_inference: OpOverload
    cell_backward: OpOverload
    cell_second_order: OpOverload
    cell_sums_backward: OpOverload
    steps_second_order: OpOverload
    freeze: OpOverload
    frozen: OpOverload
    cell_frozen: OpOverload
    quantized: OpOverload
    cell_quantized: OpOverload
    stack: OpOverload
    stack_inference: OpOverload
    stack_backward: OpOverload
    stack_frozen: OpOverload
    stack_quantized: OpOverload


_KINDS = "", "_inference", "_backward"


def _operators(cell: Cell) -> Operators:
    names = [f"{cell.name}_{of}{kind}" for of in ("layer", "cell") for kind in _KINDS]
    names += [f"{cell.name}_cell_{of}" for of in ("second_order", "sums_backward")]
    names += [
        f"{cell.name}_{of}"
        for of in ("steps_second_order", "freeze", "layer_frozen", "cell_frozen", "layer_quantized", "cell_quantized")
    ]
    names += [f"{cell.name}_stack{kind}" for kind in (*_KINDS, "_frozen", "_quantized")]
    operators = Operators(*(getattr(REGISTERED, name).default for name in names))
    names = argument_names(operators.layer)
    if names != LayerArguments._fields:
        raise ImportError(
            f"fusedlstm expected a library whose {cell.name}_layer takes {', '.join(LayerArguments._fields)}, got one "
            f"that takes {', '.join(names)}: build the package again"
        )
    return operators


OPERATORS = {name: _operators(cell) for name, cell in CELLS.items()}


def _fake_layer(cell: Cell, *arguments):
    output, last = _fake_inference(*arguments)
    input, h_n = arguments[0], last[0]
    *front, D, _, _ = h_n.shape  # front: the members of an ensemble
    rows, H = math.prod(input.shape[len(front) : -1]), LayerArguments(*arguments).weight_hh[0].size(-2) // cell.gates
    carried = input.new_empty(
        (*front, D, rows, cell.carried * H), dtype=torch.promote_types(input.dtype, torch.float32)
    )
    return output, last, input.new_empty((*front, D, rows, cell.saved * H)), carried


def _fake_inference(*arguments):
    layer = LayerArguments(*arguments)
    input, h_0 = layer.input, layer.initial[0]
    # Called in place of a kernel also where only some of the tensors are on the meta device.
    for tensor in chain.from_iterable(layer[1:7]):
        if tensor.device != input.device:
            raise RuntimeError(f"fusedlstm: expected all tensors on {input.device}, got one on {tensor.device}")
    D, _, R = h_0.shape[-3:]
    output = input.new_empty((*input.shape[:-1], D * R))
    return output, [input.new_empty(state.shape) for state in layer.initial]


def _fake_backward(*arguments):
    layer, needs = BackwardArguments.of(arguments).layer, arguments[-1]

    def gradient(argument, needed):
        if isinstance(argument, list):
            return [gradient(tensor, needed) for tensor in argument]
        return layer.input.new_empty(argument.shape if needed else (0,))

    return tuple(map(gradient, differentiable(layer), needs))


def _fake_cell(cell: Cell, input, states, weights, allow_tf32):
    output, last, *kept = _fake_layer(cell, *one_step(input, states, weights, allow_tf32))
    return [state.squeeze(0) for state in last], [output, *kept]


def _fake_cell_inference(input, states, weights, allow_tf32):
    _, last = _fake_inference(*one_step(input, states, weights, allow_tf32))
    return [state.squeeze(0) for state in last]


def _fake_cell_backward(d_last, input, states, weights, allow_tf32, kept, needs):
    return [input.new_empty(t.shape if need else (0,)) for t, need in zip((input, *states, *weights), needs)]


def _fake_cell_second_order(
    cell: Cell, d_last, input, states, weights, allow_tf32, kept, cotangents, needs, leaves_sums
):
    arrives, by_sums = any(d is not None for d in d_last), not leaves_sums
    x_dot, h_dot, *others = (u is not None for u in cotangents)
    w_ih_dot, w_hh_dot = others[len(states) - 1 : len(states) + 1]
    of_states = [by_sums or w_hh_dot or cell.takes_h, *[True] * (len(states) - 1)]
    of_weights = [by_sums or x_dot, by_sums or h_dot, *[by_sums] * (len(weights) - 2)]
    flows = [*[True] * len(states), *[arrives and way for way in (by_sums or w_ih_dot, *of_states, *of_weights)]]
    found = [
        input.new_empty(like.shape) if need and way else None
        for like, need, way in zip((*states, input, *states, *weights), needs, flows)
    ]
    return [
        kept[1].new_empty((1, len(input), cell.sums * states[0].size(1))) if leaves_sums and arrives else None,
        *found,
    ]


def _fake_cell_sums_backward(cell: Cell, d_last, d_sums, input, states, weights, allow_tf32, kept, needs):
    arrives = any(d is not None for d in d_last)
    flows = [True, True, *[arrives] * (len(states) - 1), *[True] * len(weights)]
    return [
        input.new_empty(like.shape) if need and way else None
        for like, need, way in zip((input, *states, *weights), needs, flows)
    ]


def _fake_steps_second_order(cell: Cell, before, after, saved, sums, hidden_sums, before_tangent, d_after, d_h_tangent):
    rows, moves = after[-1], sums is not None
    arrives = d_h_tangent is not None or any(d is not None for d in d_after)

    def values(width, exists=True):
        return rows.new_empty((len(rows), width * rows.size(1)) if exists else (0,))

    used = [cell.takes_h, *[True] * (len(after) - 1)]
    d_sums = [values(cell.gates, arrives and has) for part in (True, cell.is_apart) for has in (part, part and moves)]
    d_before = [[values(1, arrives and is_used and has) for is_used in used] for has in (True, moves)]
    return [values(1, moves) for _ in after], d_sums, *d_before


def _fake_quantized(cell: Cell, input, initial, weights, batch_sizes, lengths, reset, reset_state):
    for tensor in chain(initial, weights, reset_state):  # as in _fake_inference
        if tensor.device != input.device:
            raise RuntimeError(f"fusedlstm: expected all tensors on {input.device}, got one on {tensor.device}")
    D, H, P = _int8.sizes_of_layer(weights, cell)
    R = P or H
    output = input.new_empty((*input.shape[:-1], D * R))
    if initial:
        return output, [input.new_empty(state.shape) for state in initial]
    B = input.size(1) if batch_sizes is None else batch_sizes[0].item()
    return output, [input.new_empty((D, B, R if place == 0 else H)) for place in range(len(cell.states))]


def _functionalized_layer(cell: Cell, mode, operator, types, arguments, options):
    """`<cell>_layer` in what traces programs after torch.export; for torch.onnx.export, what ONNX has for a layer."""
    results = mode.__torch_dispatch__(operator, types, arguments, options)
    if not (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()):
        return results
    from fusedlstm import onnx

    with mode:
        # ONNX has nothing that is saved. Where nothing uses it, the operator is dropped.
        return *onnx.layer(cell, LayerArguments(*arguments)), *results[2:]


def _functionalized_quantized(mode, operator, types, arguments, options):
    """The same of `<cell>_layer_quantized`, which ONNX has nothing for."""
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        from fusedlstm import onnx

        onnx.refuse({"int8 weights": True})
    return mode.__torch_dispatch__(operator, types, arguments, options)


for _cell in CELLS.values():
    _own = OPERATORS[_cell.name]
    _served = (
        (_own.layer, functools.partial(_fake_layer, _cell)),
        (_own.inference, _fake_inference),
        (_own.backward, _fake_backward),
        (_own.cell, functools.partial(_fake_cell, _cell)),
        (_own.cell_inference, _fake_cell_inference),
        (_own.cell_backward, _fake_cell_backward),
        (_own.cell_second_order, functools.partial(_fake_cell_second_order, _cell)),
        (_own.cell_sums_backward, functools.partial(_fake_cell_sums_backward, _cell)),
        (_own.steps_second_order, functools.partial(_fake_steps_second_order, _cell)),
        (_own.quantized, functools.partial(_fake_quantized, _cell)),
    )
    for _operator, _fake in _served:
        torch.library.register_fake(_operator.name(), _fake)
        torch.library.register_torch_dispatch(_operator.name(), FakeTensorMode, run_with_real_tensors)
    _functionalized = (
        (_own.layer, functools.partial(_functionalized_layer, _cell)),
        (_own.quantized, _functionalized_quantized),
    )
    for _operator, _rule in _functionalized:
        torch.library.register_torch_dispatch(_operator.name(), FunctionalTensorMode, _rule)
