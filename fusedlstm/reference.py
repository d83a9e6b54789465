"""What one LSTM layer means, in plain differentiable PyTorch.

`lstm_layer` takes the arguments of the op `fusedlstm::lstm_layer` and returns its five results, and
`lstm_layer_backward` differentiates it for those of `fusedlstm::lstm_layer_backward`.
Every kernel is tested against it, gradients of third order differentiate it, and calls that no kernel covers (forward
mode, a second order inside torch.func, devices without kernels) run it.

Letters: T steps, B batch, I input features, H hidden units, P projection, R = P or H (features of
h), D directions, N rows of gates (T * B, or the rows of packed data). Gates in the order i, f, g, o.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

# Arguments of a layer by place that can have gradients, in the order of lstm_layer_backward's results and of `needs`.
DIFFERENTIABLE = (0, 1, 2, 3, 4, 5, 6, 7, 11, 12)
BATCH_SIZES = 8  # also by place


def lstm_layer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weight_ih: list[Tensor],
    weight_hh: list[Tensor],
    bias_ih: list[Tensor],
    bias_hh: list[Tensor],
    weight_hr: list[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run one layer, in one or two directions, over all steps.

    Or of an ensemble: M layers of the same sizes, each with arguments of its own. Then all tensors but `batch_sizes`,
    results too, have the members as one more dimension in front.

    Args:
        input: [T, B, I], or packed [N, I] together with `batch_sizes`.
        h_0, c_0: [D, B, R] and [D, B, H].
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr: one tensor per direction,
            [4H, I], [4H, R], [4H], [4H], [P, H]; empty lists where the layer has none.
        batch_sizes: int64 [T], the rows of each step of packed data.
        lengths: int64 [B]; steps at and after the length are not run.
        reset: bool [T, B]; where true the state becomes `reset_h`, `reset_c` (zeros when None)
            before that step.
        reset_h, reset_c: [D, B, R] and [D, B, H].
        allow_tf32: no effect here; present so that the signature is the op's.

    Returns:
        output [T, B, D*R] (packed [N, D*R]); h_n [D, B, R]; c_n [D, B, H];
        gates [D, N, 4H], after their activations, without gradient; cell_states [D, N, H], in
        float32 for 16-bit inputs. Zeros at the steps that are not run.

    Computes in float32 (float64 for float64); 16-bit h is rounded at every step, c only at the end.

    An ensemble is equivalent to:
        [torch.stack(results) for results in zip(*(lstm_layer(*arguments_of_m) for m in range(M)))]
    """
    if h_0.dim() == 4:
        layer = (
            input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, batch_sizes, lengths, reset, reset_h,
            reset_c, allow_tf32,
        )  # fmt: skip
        results = zip(*(lstm_layer(*member(layer, m)) for m in range(len(h_0))))
        return tuple(map(torch.stack, results))
    if batch_sizes is not None:
        T, B = batch_sizes.size(0), h_0.size(1)
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
                input,
                h_0[d],
                c_0[d],
                *(p[d] if p else None for p in (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)),
                runs,
                reset,
                None if reset_h is None else reset_h[d],
                None if reset_c is None else reset_c[d],
                reverse=d == 1,
            )
            for d in range(len(weight_ih))
        ]
    output, h_n, c_n, gates, cell_states = zip(*directions)
    output = torch.cat(output, -1)
    gates, cell_states = torch.stack(gates).flatten(1, 2), torch.stack(cell_states).flatten(1, 2)

    if batch_sizes is not None:
        output, gates, cell_states = output.flatten(0, 1)[rows], gates[:, rows], cell_states[:, rows]
    return output, torch.stack(h_n), torch.stack(c_n), gates.detach(), cell_states


def lstm_layer_backward(d_output, d_h_n, d_c_n, d_cell_states, *arguments) -> tuple:
    """The gradients for `lstm_layer`'s arguments, from those for its results; differentiable in grad mode.

    Args:
        d_output, d_h_n, d_c_n, d_cell_states: None for zeros.
        *arguments: those of `lstm_layer`; output, gates and cell_states, which are computed anew here; and `needs`,
            whether to return a gradient for each argument that can have one.

    Returns:
        Gradients of the sizes of the arguments, of size [0] where not needed.
    """
    *layer, _, _, _, needs = arguments
    incoming = d_output, d_h_n, d_c_n, d_cell_states
    needed = dict(zip(DIFFERENTIABLE, needs))
    asked = [needed.get(place, False) for place in range(len(layer))]

    def results(*wanted):
        output, h_n, c_n, _, cell_states = lstm_layer(*replaced(layer, asked, wanted))
        return [result for result, d in zip((output, h_n, c_n, cell_states), incoming) if d is not None]

    wanted = [tensor for argument, ask in zip(layer, asked) if ask for tensor in listed(argument)]
    found = gradients(results, wanted, [d for d in incoming if d is not None])
    found = iter([torch.zeros_like(tensor) if d is None else d for tensor, d in zip(wanted, found)])
    nothing = layer[0].new_empty
    return tuple(arranged(layer[place], need, found, lambda: nothing(0)) for place, need in zip(DIFFERENTIABLE, needs))


def gradients(function, wanted, cotangents) -> list:
    """Gradients of the sum of <cotangent, result> for the tensors `wanted`, where function(*wanted) gives the results.

    Not followed to what the tensors depend on; differentiable in grad mode. None where nothing flows.
    """
    if not (wanted and cotangents):
        return [None] * len(wanted)
    if torch._C._are_functorch_transforms_active():  # they allow no leaves inside
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


def member(layer, m: int) -> list:
    """The arguments of member `m` in those of an ensemble of layers."""
    return [a if place == BATCH_SIZES else of_member(a, m) for place, a in enumerate(layer)]


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


def _direction(input, h, c, w_ih, w_hh, b_ih, b_hh, w_hr, runs, reset, reset_h, reset_c, *, reverse):
    """One direction of `lstm_layer`: output, h_n, c_n, gates and cell states, time first."""
    dtype, T = input.dtype, input.size(0)
    wide = torch.promote_types(dtype, torch.float32)
    w_ih, w_hh, w_hr = w_ih.to(wide), w_hh.to(wide), None if w_hr is None else w_hr.to(wide)
    bias = None if b_ih is None else b_ih.to(wide) + b_hh.to(wide)
    if reset is not None:
        reset = reset.unsqueeze(-1)
        reset_h = h.new_zeros(()) if reset_h is None else reset_h
        reset_c = c.new_zeros(()) if reset_c is None else reset_c

    # unbind, whose derivative is one stack: that of each [t] is a tensor of all steps.
    from_input = linear(input.to(wide), w_ih, bias).unbind()
    outputs, gates, cells = [None] * T, [None] * T, [None] * T
    c = c.to(wide)
    for t in reversed(range(T)) if reverse else range(T):
        if reset is not None:
            h, c = reset_h.where(reset[t], h), reset_c.to(wide).where(reset[t], c)
        pre_gates = from_input[t] + linear(h.to(wide), w_hh)
        i, f, g, o = pre_gates.chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_next = f * c + i * g
        h_next = o * c_next.tanh()
        if w_hr is not None:
            h_next = linear(h_next, w_hr)
        h_next = h_next.to(dtype)
        gates[t] = torch.cat([i, f, g, o], -1).to(dtype)
        outputs[t], cells[t] = h_next, c_next
        if runs is not None:
            outputs[t], cells[t], gates[t] = (x.where(runs[t], 0) for x in (outputs[t], cells[t], gates[t]))
            h_next, c_next = h_next.where(runs[t], h), c_next.where(runs[t], c)
        h, c = h_next, c_next

    if T == 0:
        rows = input.shape[:2]
        empty = [input.new_empty(*rows, h.size(-1)), input.new_empty(*rows, 4 * c.size(-1))]
        return empty[0], h.clone(), c.to(dtype), empty[1], c.new_empty(*rows, c.size(-1))
    return torch.stack(outputs), h, c.to(dtype), torch.stack(gates), torch.stack(cells)


def dense_rows(batch_sizes: Tensor, B: int) -> tuple[Tensor, Tensor]:
    """Where the packed rows are among the T * B rows of a dense layout, [N], and the length of each sequence, [B]."""
    runs = torch.arange(B) < batch_sizes[:, None]
    return runs.flatten().nonzero().squeeze(1), runs.sum(0)
