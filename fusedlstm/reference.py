"""What one layer means, of any cell, in plain differentiable PyTorch.

`layer` takes the arguments of the operators `fusedlstm::<cell>_layer` and returns their results, and
`layer_backward` differentiates it for those of `fusedlstm::<cell>_layer_backward`.
Every kernel is tested against it, gradients of third order differentiate it, and calls that no kernel covers (forward
mode, a second order inside torch.func, devices without kernels) run it.

Letters: T steps, B batch, I input features, H hidden units, P projection, R = P or H (features of
h), D directions, G gates, N rows of what is kept (T * B, or the rows of packed data). A cell's gates, states and what
it keeps are said in fusedlstm/cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from fusedlstm._arguments import BackwardArguments, LayerArguments, differentiable, layer_arguments
from fusedlstm._private_torch import are_transforms_active
from fusedlstm.cells import Cell


def layer(cell: Cell, *arguments) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Run one layer, in one or two directions, over all steps.

    Or of an ensemble: M layers of the same sizes, each with arguments of its own. Then all tensors but `batch_sizes`,
    results too, have the members as one more dimension in front.

    Args:
        cell: what a step does.
        input: [T, B, I], or packed [N, I] together with `batch_sizes`.
        initial: the states before the first step: h [D, B, R], others [D, B, H].
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr: one tensor per direction,
            [GH, I], [GH, R], [GH], [GH], [P, H]; empty lists where the layer has none.
        batch_sizes: int64 [T], the rows of each step of packed data.
        lengths: int64 [B]; steps at and after the length are not run.
        reset: bool [T, B]; where true the state becomes `reset_state` before that step.
        reset_state: as `initial`; empty for zeros.
        allow_tf32: no effect here; present so that the signature is the op's.

    Returns:
        output [T, B, D*R] (packed [N, D*R]); last, the states after the last step, as `initial`;
        saved [D, N, saved * H] without gradient, and carried [D, N, carried * H], the latter in float32 for 16-bit
        inputs. Zeros at the steps that are not run.

    Computes in float32 (float64 for float64); 16-bit h is rounded at every step, other states only at the end.

    An ensemble is equivalent to:
        [torch.stack(results) for results in zip(*(layer(cell, *arguments_of_m) for m in range(M)))]
    """
    arguments = LayerArguments(*arguments)
    input, initial, *kinds, batch_sizes, lengths, reset, reset_state, _ = arguments
    if initial[0].dim() == 4:
        members = [layer(cell, *member(arguments, m)) for m in range(len(initial[0]))]
        output, last, saved, carried = zip(*members)
        return torch.stack(output), list(map(torch.stack, zip(*last))), torch.stack(saved), torch.stack(carried)
    if batch_sizes is not None:
        T, B = batch_sizes.size(0), initial[0].size(1)
        rows, lengths = (index.to(input.device) for index in dense_rows(batch_sizes, B))
        input = input.new_zeros(T * B, input.size(1)).index_copy(0, rows, input).unflatten(0, (T, B))

    runs = None
    if lengths is not None:
        steps = torch.arange(input.size(0), device=input.device)
        runs = (steps[:, None] < lengths).unsqueeze(-1)
        # What lies in the padding, even NaN, must reach neither results nor gradients.
        input = input.where(runs, 0)

    # Autocast would round the operands of the products below a second time.
    with torch.autocast(input.device.type, enabled=False):
        directions = [
            _direction(
                cell,
                input,
                [state[d] for state in initial],
                *(p[d] if p else None for p in kinds),
                runs,
                reset,
                [state[d] for state in reset_state],
                reverse=d == 1,
            )
            for d in range(len(arguments.weight_ih))
        ]
    output, last, saved, carried = zip(*directions)
    output = torch.cat(output, -1)
    saved, carried = torch.stack(saved).flatten(1, 2), torch.stack(carried).flatten(1, 2)

    if batch_sizes is not None:
        output, saved, carried = output.flatten(0, 1)[rows], saved[:, rows], carried[:, rows]
    return output, list(map(torch.stack, zip(*last))), saved.detach(), carried


def layer_backward(cell: Cell, *arguments) -> tuple:
    """The gradients for `layer`'s arguments, from those for its results; differentiable in grad mode.

    Args:
        cell: what a step does.
        *arguments: BackwardArguments in a row. output, saved and carried are computed anew here, and may be None.

    Returns:
        Differentiable gradients of the sizes of the arguments, of size [0] where not needed.
    """
    given, _, _, _, _, needs = BackwardArguments.of(arguments)
    arguments = BackwardArguments.of(arguments).layer
    incoming = [given.output, *given.last, given.carried]
    asked = layer_arguments(needs, False, False, False, False)

    def results(*wanted):
        output, last, _, carried = layer(cell, *replaced(arguments, asked, wanted))
        return [result for result, d in zip((output, *last, carried), incoming) if d is not None]

    wanted = [tensor for argument, ask in zip(arguments, asked) if ask for tensor in listed(argument)]
    found = gradients(results, wanted, [d for d in incoming if d is not None])
    found = iter([torch.zeros_like(tensor) if d is None else d for tensor, d in zip(wanted, found)])
    nothing = arguments.input.new_empty
    return tuple(arranged(one, need, found, lambda: nothing(0)) for one, need in zip(differentiable(arguments), needs))


def gradients(function, wanted, cotangents) -> list:
    """Gradients of the sum of <cotangent, result> for the tensors `wanted`, where function(*wanted) gives the results.

    Not followed to what the tensors depend on; differentiable in grad mode. None where nothing flows.
    """
    if not (wanted and cotangents):
        return [None] * len(wanted)
    if are_transforms_active():  # they allow no leaves inside
        return torch.func.vjp(lambda *tensors: tuple(function(*tensors)), *wanted)[1](tuple(cotangents))
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        wanted = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in wanted]
        results = function(*wanted)
    pairs = [(result, u) for result, u in zip(results, cotangents) if result.requires_grad]
    if not pairs:
        return [None] * len(wanted)
    results, cotangents = zip(*pairs)
    return torch.autograd.grad(results, wanted, cotangents, create_graph=keep_graph, allow_unused=True)


def replaced(arguments, asked, tensors) -> list:
    """The arguments, where asked with the next of `tensors` in place of each of theirs."""
    following = iter(tensors)
    return [arranged(a, True, following, lambda: None) if ask else a for a, ask in zip(arguments, asked)]


def arranged(argument, need, found, otherwise):
    """The next of `found` for the argument, or for each of a list, if it is needed; else what `otherwise` returns.

    Not inside the functions that call it: a recursive closure is a cycle, which would keep a whole graph for the
    garbage collector.
    """
    if isinstance(argument, list):
        return [arranged(tensor, need, found, otherwise) for tensor in argument]
    return next(found) if need and argument is not None else otherwise()


def member(layer: LayerArguments, m: int) -> LayerArguments:
    """The arguments of member `m` in those of an ensemble of layers."""
    own = (of_member(argument, m) for argument in layer._replace(batch_sizes=None))
    return LayerArguments(*own)._replace(batch_sizes=layer.batch_sizes)


def of_member(argument, m: int):
    """What is member m's of a tensor or a list of them; anything else is everybody's."""
    if isinstance(argument, (list, tuple)):
        return [of_member(tensor, m) for tensor in argument]
    return argument[m] if isinstance(argument, Tensor) else argument


def listed(argument) -> list:
    """The tensors of an argument that is a list, a tensor or None."""
    return [tensor for tensor in as_list(argument) if tensor is not None]


def nothing(argument):
    """None in the place of an argument, or of each of a list."""
    return [None] * len(argument) if isinstance(argument, list) else None


def as_list(argument) -> list:
    """The argument, or what it is a list of; None where there is none."""
    return list(argument) if isinstance(argument, (list, tuple)) else [argument]


def _direction(cell, input, states, w_ih, w_hh, b_ih, b_hh, w_hr, runs, reset, reset_state, *, reverse):
    """One direction of `layer`: output, last, saved and carried, time first."""
    dtype, T = input.dtype, input.size(0)
    wide = torch.promote_types(dtype, torch.float32)
    w_ih, w_hh, b_ih, b_hh, w_hr = (None if w is None else w.to(wide) for w in (w_ih, w_hh, b_ih, b_hh, w_hr))
    if reset is not None:
        reset = reset.unsqueeze(-1)
        reset_state = reset_state or [state.new_zeros(()) for state in states]
        reset_state = [reset_state[0], *(state.to(wide) for state in reset_state[1:])]

    # unbind, whose derivative is one stack: that of each [t] is a tensor of all steps.
    from_input = linear(input.to(wide), w_ih, b_ih).unbind()
    outputs, saved, carried = [None] * T, [None] * T, [None] * T
    states = [states[0], *(state.to(wide) for state in states[1:])]
    for t in reversed(range(T)) if reverse else range(T):
        if reset is not None:
            states = [new.where(reset[t], state) for new, state in zip(reset_state, states)]
        h, *others = states
        h = h.to(wide)
        (h_next, *others), kept = cell.step(from_input[t], linear(h, w_hh, b_hh), [h, *others])
        if w_hr is not None:
            h_next = linear(h_next, w_hr)
        following = [h_next.to(dtype), *others]
        rows = following[0], kept.to(dtype), torch.cat([kept.new_empty(len(kept), 0), *others], -1)
        if runs is not None:
            rows = [row.where(runs[t], 0) for row in rows]
            following = [new.where(runs[t], state) for new, state in zip(following, states)]
        (outputs[t], saved[t], carried[t]), states = rows, following

    h, *others = states
    last = [h.clone() if T == 0 else h, *(state.to(dtype) for state in others)]
    if T == 0:
        rows, H = input.shape[:2], w_hh.size(0) // cell.gates
        kept = input.new_empty(*rows, cell.saved * H), h.new_empty(*rows, cell.carried * H, dtype=wide)
        return input.new_empty(*rows, h.size(-1)), last, *kept
    return torch.stack(outputs), last, torch.stack(saved), torch.stack(carried)


def dense_rows(batch_sizes: Tensor, B: int) -> tuple[Tensor, Tensor]:
    """Where the packed rows are among the T * B rows of a dense layout, [N], and the length of each sequence, [B]."""
    runs = torch.arange(B, device=batch_sizes.device) < batch_sizes[:, None]
    return runs.flatten().nonzero().squeeze(1), runs.sum(0)
