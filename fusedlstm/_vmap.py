"""The rules of torch.func.vmap for the layer operators: kernels, one call, and no loop in Python.

Members that share their weights are rows of one larger batch. Members with weights of their own, packed data, and
gradients of members are an ensemble.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from fusedlstm import ops, reference
from fusedlstm.reference import BATCH_SIZES

_ROWS = slice(9, 13)  # of the arguments: lengths, reset, reset_h, reset_c


def is_only_transform() -> bool:
    """Whether all active transforms are vmap, for which the operators have rules."""
    if forward_ad._current_level >= 0:
        return False
    transforms = torch._C._functorch.get_interpreter_stack() or []
    return all(t.key() == torch._C._functorch.TransformType.Vmap for t in transforms)


# What torch.compiler.assume_constant_result does (see functional.py): Dynamo runs transforms while it traces them.
is_only_transform._dynamo_marked_constant = True


def _rule(operator):
    def rule(info, in_dims, *arguments):
        shares_weights = all(dim is None for dims in in_dims[ops.LISTS] for dim in dims)
        if shares_weights and arguments[BATCH_SIZES] is None:
            return _as_one_batch(operator, info.batch_size, in_dims, arguments)
        return _as_ensemble(operator, info.batch_size, in_dims, arguments, first=0)

    return rule


def _backward_rule(info, in_dims, *arguments):
    """Gradients of members, or several for one result: those for the weights are each one's own."""
    return _as_ensemble(ops.lstm_layer_backward, info.batch_size, in_dims, arguments, first=4)


def _as_ensemble(operator, V, in_dims, arguments, first):
    """Call `operator`, whose layer arguments begin at `first`, with V times as many members."""
    if in_dims[first + BATCH_SIZES] is not None:
        raise NotImplementedError("fusedlstm: expected batch_sizes common to all members of a vmap, got one each")
    h_0 = first + 1
    is_nested = arguments[h_0].dim() - (in_dims[h_0] is not None) == 4

    def in_front(argument, dim):
        if isinstance(argument, list):
            return list(map(in_front, argument, dim))
        if not isinstance(argument, torch.Tensor):
            return argument
        members = argument.expand(V, *argument.shape) if dim is None else argument.movedim(dim, 0)
        return members.flatten(0, 1) if is_nested else members

    def unfolded(result):
        if isinstance(result, list):
            return list(map(unfolded, result))
        return result.unflatten(0, (V, result.size(0) // V)) if is_nested and result.dim() > 1 else result

    def dim(result):  # those of gradients that are not needed have size [0]
        return list(map(dim, result)) if isinstance(result, list) else 0 if result.dim() > 1 else None

    call = list(map(in_front, arguments, in_dims))
    call[first + BATCH_SIZES] = arguments[first + BATCH_SIZES]
    results = tuple(map(unfolded, operator(*call)))
    return results, tuple(map(dim, results))


def _as_one_batch(operator, V, in_dims, arguments):
    """Call `operator` on V members with common weights as on V * B rows."""

    def folded(tensor, dim, batch=-2):
        if tensor is None:
            return None
        tensor = tensor.expand(V, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return tensor.movedim(0, batch - 1).flatten(batch - 1, batch)

    input, *state = map(folded, arguments[:3], in_dims[:3])
    rows = map(folded, arguments[_ROWS], in_dims[_ROWS], (-1, -1, -2, -2))  # in the first two, batch is last
    results = operator(input, *state, *arguments[ops.LISTS], None, *rows, arguments[-1])
    T, B = input.size(-3), input.size(-2) // V
    unfolded = [result.unflatten(-2, (V, B)).movedim(-3, 0) for result in results[:3]]
    for result in results[3:]:  # gates and cell states, [D, T * V * B, ...]
        unfolded.append(result.unflatten(-2, (T, V, B)).movedim(-3, 0).flatten(-3, -2))
    return tuple(unfolded), (0,) * len(unfolded)


torch.library.register_vmap("fusedlstm::lstm_layer", _rule(ops.lstm_layer))
torch.library.register_vmap("fusedlstm::lstm_layer_inference", _rule(ops.lstm_layer_inference))
torch.library.register_vmap("fusedlstm::lstm_layer_backward", _backward_rule)


def _batched_backward(*arguments):
    """`lstm_layer_backward` under the older vmap of is_grads_batched=True and jacobian(vectorize=True).

    That takes rules for no operator with lists: differentiates the reference, also where ops.py is below autograd.
    """
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
        return reference.lstm_layer_backward(*arguments)


_library_rules = torch.library.Library("fusedlstm", "IMPL")
_library_rules.impl("lstm_layer_backward", _batched_backward, "Batched")
