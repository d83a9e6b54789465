"""What the recurrence of a varied layer means, in plain differentiable PyTorch: one direction, over all steps.

`recurrence` takes the arguments of the operators `fusedlstm::<cell>_recurrence` and returns their first results. Their
kernels are tested against it; second derivatives, transforms of torch.func and devices without such kernels run it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from fusedlstm.cells import Cell


class RecurrenceArguments(NamedTuple):
    """What `<cell>_recurrence` takes; csrc/call/recurrence.h has the same names. All in float32, or all in float64.

    Attributes:
        input: [T, B, I].
        initial: the states before the first step, [B, H] each.
        weight_ih, weight_hh: [GH, I] and [GH, H].
        bias_ih: [GH] of a cell whose gates are apart, added to W_ih x; None for none, and where `bias` has both.
        bias: [GH], added to what W_hh h comes to; to the normalised sums of a GRU with layer norm; None for none.
        mask: [1 or T, B, H], by which h is multiplied where it enters the product; None for none.
        zoneout: for each state the part of its old value that a step keeps, [1 or T, 1 or B, H], also as bools; [] for
            none.
        weight_ch: [3H] of the LSTM, its peepholes i, f and o; None for none.
        gain_ih: [GH] of the LSTM, of the norm of W_ih x, where W_hh h has one; None for none.
        gain: [GH], of the norm of W_hh h, or of the GRU's joint one; None for none.
        gain_c, bias_c: [H] of the LSTM, of the norm of c; None for none.
        eps: of the norms.
        lengths: int64 [B]; steps at and after the length are not run, and have zeros as output.
        reset: bool [T, B]; where true the states become `reset_state` before that step.
        reset_state: as `initial`; [] for zeros.
        reverse: from the last step to the first.
        keeps: whether the operator keeps what its derivative needs, which it does by itself where gradients are asked
            for; no effect here.
        allow_tf32: whether a GPU may multiply float32 in TF32; no effect here.
    """

    input: Tensor
    initial: list[Tensor]
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    zoneout: list[Tensor]
    weight_ch: Tensor | None
    gain_ih: Tensor | None
    gain: Tensor | None
    gain_c: Tensor | None
    bias_c: Tensor | None
    eps: float
    lengths: Tensor | None
    reset: Tensor | None
    reset_state: list[Tensor]
    reverse: bool
    keeps: bool
    allow_tf32: bool


def recurrence(cell: Cell, *arguments) -> tuple[Tensor, list[Tensor]]:
    """The output [T, B, H], and the states after the last step, [B, H] each."""
    a = RecurrenceArguments(*arguments)
    T, states = len(a.input), list(a.initial)
    runs = None
    if a.lengths is not None:
        runs = (torch.arange(T, device=a.lengths.device)[:, None] < a.lengths).unsqueeze(-1)
    from_input = linear(a.input, a.weight_ih, a.bias_ih)
    if a.gain_ih is not None:
        from_input = _normed(from_input, a.gain_ih, None, a.eps)
    if T == 0:  # a function of the input and its weight, like any output
        return from_input[..., : a.weight_hh.size(1)], [state.clone() for state in states]
    from_input = from_input.unbind()
    outputs = [None] * T
    for t in reversed(range(T)) if a.reverse else range(T):
        if a.reset is not None:
            fresh = a.reset_state or [torch.zeros_like(state) for state in states]
            states = [new.where(a.reset[t, :, None], state) for new, state in zip(fresh, states)]
        h = states[0] if a.mask is None else states[0] * _of_step(a.mask, t)
        following = _STEPS.get(cell.name, _plain_step)(cell, a, from_input[t], linear(h, a.weight_hh), states)
        if a.zoneout:
            kept = [_of_step(part, t).to(old.dtype) for part, old in zip(a.zoneout, states)]
            following = [z * old + (1 - z) * new for z, old, new in zip(kept, states, following)]
        if runs is not None:
            following = [new.where(runs[t], old) for new, old in zip(following, states)]
        states = following
        outputs[t] = states[0] if runs is None else states[0].where(runs[t], 0)
    return torch.stack(outputs), states


def _of_step(tensor, t) -> Tensor:
    return tensor[t if len(tensor) > 1 else 0]


def _normed(rows, gain, bias, eps) -> Tensor:
    """torch.nn.functional.layer_norm, whose derivatives are wrong inside of forward mode: of torch 2.13, that of its
    tangent takes the mean and the deviation to be constants."""
    centred = rows - rows.mean(-1, keepdim=True)
    normed = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * gain
    return normed if bias is None else normed + bias


def _plain_step(cell, a, from_input, from_hidden, states):
    if a.bias is not None:
        from_hidden = from_hidden + a.bias
    return cell.step(from_input, from_hidden, states)[0]


def _lstm_step(cell, a, from_input, from_hidden, states):
    """Hochreiter & Schmidhuber 1997, with peepholes of Gers & Schmidhuber 2000, and norms of Ba et al. 2016."""
    _, c = states
    if a.gain is not None:
        from_hidden = _normed(from_hidden, a.gain, None, a.eps)
    if a.bias is not None:
        from_hidden = from_hidden + a.bias
    i, f, g, o = (from_input + from_hidden).chunk(4, -1)
    w_i, w_f, w_o = (0, 0, 0) if a.weight_ch is None else a.weight_ch.chunk(3)
    c = (f + w_f * c).sigmoid() * c + (i + w_i * c).sigmoid() * g.tanh()
    seen = c if a.gain_c is None else _normed(c, a.gain_c, a.bias_c, a.eps)
    return [(o + w_o * c).sigmoid() * seen.tanh(), c]


def _gru_step(cell, a, from_input, from_hidden, states):
    """With layer norm that of DreamerV3 (Hafner et al. 2023): one norm of both products, and a bias of the update."""
    if a.gain is None:
        return _plain_step(cell, a, from_input, from_hidden, states)
    (h,) = states
    sums = _normed(from_input + from_hidden, a.gain, a.bias, a.eps)
    r, z, n = sums.chunk(3, -1)
    return [h + (z - 1).sigmoid() * ((r.sigmoid() * n).tanh() - h)]


_STEPS = {"lstm": _lstm_step, "gru": _gru_step}
