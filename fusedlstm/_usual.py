"""The usual call of a module: without gradients, on the CPU, with plain, frozen or int8 weights, by one operator.

Every microsecond counts here: single steps take a few. What does not fit in the operator it refuses, and the long way,
by `run`, then says what is wrong.

An attribute of a module takes nn.Module's __getattr__ along, and five times as long as one of its dictionary: hence
`own`, the module's __dict__, in all of this. A module that lacks one of them there, since a subclass has a property of
that name, has no usual calls.
"""

from __future__ import annotations

from torch import Tensor
from torch.overrides import has_torch_function

from fusedlstm._private_torch import (
    count_of_dispatch_modes,
    function_of,
    is_any_autocast_enabled,
    is_intercepted,
)
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS

# By the mode of a layer: gates of its cell, and the operator of its stack.
_PLAIN = {name.upper(): (cell.gates, function_of(OPERATORS[name].stack_inference)) for name, cell in CELLS.items()}


def run_usual(run, module, input, hx, others):
    """What a module returns for a usual call, by run(module, own, input, hx, others), if that gives anything and no
    operator refuses; else None. Compilers are sent away before anything else is asked: they cannot look into the rest.
    """
    if type(input) is not Tensor or is_intercepted():
        return None
    try:
        return run(module, module.__dict__, input, hx, others)
    except (KeyError, RuntimeError, TypeError, ValueError):
        return None


def states_of_usual(input, hx, others, grads, dim=3, parameters=()):
    """The initial states (h, c) of a call that has one input of `dim` dimensions and states of the usual kinds and
    nothing else, and no gradients; else None. c is None where one state is given, both where none is, for zeros.

    Args:
        others: the arguments beside these.
        grads: torch.is_grad_enabled(), where the results would have none; else False.
        parameters: those that may be of other kinds than PyTorch's own tensors.
    """
    for other in others:
        if other is not None:
            return None
    if hx is None:
        states, tensors = (None, None), (input, *parameters)
    elif type(hx) is tuple:  # of which isinstance(hx, Tensor) would ask all that a tuple is
        if len(hx) != 2 or not isinstance(hx[0], Tensor) or not isinstance(hx[1], Tensor):
            return None
        states, tensors = hx, (input, hx[0], hx[1], *parameters)
    elif isinstance(hx, Tensor):
        states, tensors = (hx, None), (input, hx, *parameters)
    else:
        return None
    if (
        input.ndim != dim
        or has_torch_function(tensors)
        or is_any_autocast_enabled()
        or count_of_dispatch_modes() > 0
        or (grads and True in [tensor.requires_grad for tensor in tensors])
    ):
        return None
    return states


def draws_masks(own) -> bool:
    """Whether a call of the layer has dropout of any kind."""
    if not own["training"]:
        return False
    between_layers = own["dropout"] and own["num_layers"] > 1
    return bool(between_layers or own.get("_fused_weight_dropout") or own.get("_fused_recurrent_dropout"))


def time_major(own, input):
    """The input of a layer as operators take it."""
    return input.transpose(0, 1) if own["batch_first"] else input


def as_returned(own, results):
    """What a layer returns, of output, h and c as the operator of a stack gives them."""
    output, h, c = results
    return output.transpose(0, 1) if own["batch_first"] else output, h if c is None else (h, c)


def run_plain(own, input, hx, others):
    """What a layer with its plain recurrence and its parameters as weights returns for a usual call with gradients
    disabled; else None."""
    weights = kept(own["_parameters"], own["_flat_weights_names"])
    if weights is None or draws_masks(own):
        return None
    states, (gates, operator) = states_of_usual(input, hx, others, False, parameters=weights), _PLAIN[own["mode"]]
    # The operator takes any sizes that fit together, and not only the module's.
    if (
        states is None
        or not input.is_cpu
        or input.shape[2] != own["input_size"]
        or weights[1] is None
        or weights[1].shape != (gates * own["hidden_size"], own["proj_size"] or own["hidden_size"])
    ):
        return None
    h, c = states
    directions = 2 if own["bidirectional"] else 1
    results = operator(time_major(own, input), h, c, weights, None, own["num_layers"], directions, False)
    return as_returned(own, results)


def kept(own, names) -> list[Tensor | None] | None:
    """Of a module's own parameters or buffers those of these names; None where one is elsewhere."""
    if [*own] == names:  # in a fraction of the time
        return [*own.values()]
    try:
        return [own[name] for name in names]
    except KeyError:
        return None
