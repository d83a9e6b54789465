"""`lstm`, `gru`, `rnn` and one step of each, for those who hold the weights themselves.

The work around layers is in _run.py; what callers pass is checked by _checks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fusedlstm import _checks
from fusedlstm._layers import with_weight_dropout
from fusedlstm._run import run
from fusedlstm._run_cell import run_cell
from fusedlstm._sizes import Sizes
from fusedlstm._variants import Variants, Varied, check_variants, parameters_of
from fusedlstm.cells import CELLS, GRU, LSTM


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    weight_dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: tuple[Tensor, Tensor] | None = None,
    return_cell_states: bool = False,
    return_gates: bool = False,
    recurrent_dropout: float = 0.0,
    recurrent_dropout_per_step: bool = False,
    zoneout: float | tuple[float, float] = 0.0,
    layer_norm: bool = False,
    layer_norm_eps: float = 1e-5,
    peephole: bool = False,
):
    """Run a stack of LSTM layers.

    Sizes: T steps, B batch, I input features, H hidden units, R features of h (the projection's
    size, or H), D directions, L layers. All tensors have one dtype (float32, float64, bfloat16 or
    float16) and one device, unless said otherwise; any strides; none is modified.

    Args:
        input: [T, B, I]; [B, T, I] with `batch_first`; [T, I] for one sequence; or a PackedSequence.
            T = 0 and B = 0 are allowed.
        hx: (h_0, c_0), [D*L, B, R] and [D*L, B, H] (without B for one sequence), or None for zeros.
        weights: for each layer, forward then reverse direction: weight_ih [4H, I], weight_hh
            [4H, R], then bias_ih [4H], bias_hh [4H] or neither, then weight_hr [R, H] where there
            is a projection. `nn.LSTM.all_weights` is such a list. Then weight_ch [3H] with `peephole`, and gain_ih
            [4H], gain_hh [4H], gain_c [H], and bias_c [H] where there are biases, with `layer_norm`, as
            `FusedLSTM.all_weights` has them.
        bidirectional: each layer has two directions, side by side in its output.
        batch_first: for `input`, `output`, `reset` and the states of all steps.
        dropout: probability, applied between layers when `training`.
        weight_dropout: probability of DropConnect on every weight_hh when `training`, see `FusedLSTM`.
        lengths: integer [B] on any device, 0..T in any order. Steps past the end are not run:
            output is 0 there, h_n and c_n are those of the last step, and the reverse direction
            starts at each sequence's own end. Values are checked on the CPU only (no waiting for
            a GPU); on other devices those above T count as T.
        reset: bool [T, B]; where true, the state is replaced before that step. One direction only.
        reset_state: (h, c) like hx; what a reset puts in place. Zeros when None.
        return_cell_states: also return c of all steps, [D*L, T, B, H], differentiable, in float32
            for 16-bit inputs (packed input: [D*L, rows, H]).
        return_gates: also return the activated gates i, f, g, o of all steps, [D*L, T, B, 4H],
            without gradient.
        recurrent_dropout, recurrent_dropout_per_step, zoneout, layer_norm, layer_norm_eps, peephole: see `FusedLSTM`;
            the first ones draw when `training`.

    Returns:
        output, (h_n, c_n), and what the last two arguments ask for, in this order. output is
        [T, B, D*R] (or as `input` is arranged), h_n and c_n are shaped like hx.

    Raises:
        ValueError, RuntimeError, TypeError: as nn.LSTM does, saying what was expected and got.

    Equivalent to:
        m = nn.LSTM(...)  # with these weights
        m(input, hx)
    """
    variants = Variants(
        recurrent_dropout, recurrent_dropout_per_step, zoneout, layer_norm, layer_norm_eps, peephole
    )  # fmt: skip
    weights, sizes, varied = _checked(LSTM, weights, bidirectional, weight_dropout, training, variants)
    return run(
        "lstm", input, hx, weights, sizes, batch_first, dropout, training,
        lengths, reset, reset_state, return_cell_states, return_gates, varied=varied,
    )  # fmt: skip


def gru(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    weight_dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    return_gates: bool = False,
    recurrent_dropout: float = 0.0,
    recurrent_dropout_per_step: bool = False,
    zoneout: float = 0.0,
    layer_norm: bool = False,
    layer_norm_eps: float = 1e-5,
):
    """Run a stack of GRU layers.

    As `lstm`, but for:

    Args:
        hx: h_0, [D*L, B, H] (without B for one sequence), or None for zeros; `reset_state` likewise.
        weights: weight_ih [3H, I], weight_hh [3H, H], bias_ih [3H], bias_hh [3H]. `nn.GRU.all_weights` is such a list.
            Then gain [3H] with `layer_norm`, as `FusedGRU.all_weights` has it.
        return_gates: also return the activated gates r, z, n of all steps, [D*L, T, B, 3H], without gradient.

    Returns:
        output, h_n, and what the last argument asks for. The states of all steps are the output.
    """
    variants = Variants(recurrent_dropout, recurrent_dropout_per_step, zoneout, layer_norm, layer_norm_eps)
    weights, sizes, varied = _checked(GRU, weights, bidirectional, weight_dropout, training, variants)
    return run(
        "gru", input, hx, weights, sizes, batch_first, dropout, training,
        lengths, reset, reset_state, False, return_gates, varied=varied,
    )  # fmt: skip


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    weight_dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    recurrent_dropout: float = 0.0,
    recurrent_dropout_per_step: bool = False,
    zoneout: float = 0.0,
):
    """Run a stack of simple recurrent layers.

    As `lstm`, but for:

    Args:
        hx: h_0, [D*L, B, H] (without B for one sequence), or None for zeros; `reset_state` likewise.
        weights: weight_ih [H, I], weight_hh [H, H], bias_ih [H], bias_hh [H]. `nn.RNN.all_weights` is such a list.
        nonlinearity: "tanh" or "relu".

    Returns:
        output, h_n. The states of all steps are the output.
    """
    cell = _rnn_cell(nonlinearity)
    variants = Variants(recurrent_dropout, recurrent_dropout_per_step, zoneout)
    weights, sizes, varied = _checked(cell, weights, bidirectional, weight_dropout, training, variants)
    return run(
        cell.name, input, hx, weights, sizes, batch_first, dropout, training,
        lengths, reset, reset_state, varied=varied,
    )  # fmt: skip


def _checked(cell, weights, bidirectional, weight_dropout, training, variants):
    """All weights in a row as a call runs with them, the sizes that they imply, and the variants that there are."""
    variants, varied, parameters = check_variants(variants, cell.name, 0), None, []
    if variants.in_use():
        weights, parameters = _apart(weights, variants, cell)
    sizes = _checks.sizes_of(cell, weights, bidirectional)
    check_variants(variants, cell.name, sizes.proj_size)
    if variants.serve(training):
        varied = Varied(variants, parameters_of(variants, sizes), parameters, training)
    in_a_row = list(chain.from_iterable(weights))
    weight_dropout = _checks.checked_probability("weight_dropout", weight_dropout)
    if weight_dropout and training:
        in_a_row = with_weight_dropout(in_a_row, sizes, weight_dropout)
    return in_a_row, sizes, varied


def _apart(weights, variants, cell):
    """The weights of plain layers, and those that the variants add, in a row."""
    # With biases a layer has two weights more, and may have more parameters.
    added = [len(parameters_of(variants, Sizes(cell.name, 0, 0, 0, 1, 1, bias))) for bias in (False, True)]
    if not any(added) or len(weights) == 0:
        return weights, []
    counts = [plain + more for plain, more in zip((2, 4), added)]
    if len(weights[0]) not in counts:
        expected, options = " or ".join(map(str, counts)), ", ".join(variants.in_use())
        raise ValueError(
            f"{cell.layer.__name__}: Expected {expected} tensors in weights[0] with {options}, got {len(weights[0])}"
        )
    count = added[counts.index(len(weights[0]))]
    return [layer[:-count] for layer in weights], [tensor for layer in weights for tensor in layer[-count:]]


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    training: bool = False,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    weight_ch: Tensor | None = None,
    gain_ih: Tensor | None = None,
    gain_hh: Tensor | None = None,
    gain_c: Tensor | None = None,
    bias_c: Tensor | None = None,
    layer_norm_eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Run one step of one layer.

    Args:
        input: [B, I], or [I].
        hx: (h, c), each [B, H] (or [H]), or None for zeros.
        weight_ih, weight_hh, bias_ih, bias_hh: [4H, I], [4H, H], [4H], [4H].
        training: whether the next two draw masks, as `FusedLSTMCell` says, which has the formulas of all.
        recurrent_dropout, zoneout: probabilities.
        weight_ch: [3H], peepholes.
        gain_ih, gain_hh, gain_c, bias_c: [4H], [4H], [H], [H] of layer norm, all or none; bias_c with biases alone.
            These and weight_ch may be of another floating dtype.
        layer_norm_eps: of the norms.

    Returns:
        (h, c) after the step, shaped like hx.

    Raises:
        ValueError, RuntimeError, TypeError: as nn.LSTMCell does, saying what was expected and got; a probability
            outside of [0, 1), a part of layer norm's parameters.

    Equivalent to:
        i, f, g, o = (input @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh();  h = o.sigmoid() * c.tanh()
    """
    varied, norm = None, {"gain_ih": gain_ih, "gain_hh": gain_hh, "gain_c": gain_c, "bias_c": bias_c}
    if zoneout or recurrent_dropout or any(tensor is not None for tensor in (weight_ch, *norm.values())):
        varied = _varied_step(
            "lstm", recurrent_dropout, zoneout, norm, layer_norm_eps, weight_ch, weight_hh, bias_ih, training
        )  # fmt: skip
    return run_cell("lstm", input, hx, (weight_ih, weight_hh, bias_ih, bias_hh), varied=varied)


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    training: bool = False,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    gain: Tensor | None = None,
    layer_norm_eps: float = 1e-5,
) -> Tensor:
    """Run one step of one GRU layer.

    As `lstm_cell`, with hx and the result h, [B, H] (or [H]), weights of 3H rows, and

    Args:
        gain: [3H], of layer norm; `FusedGRU` has the formula.

    Equivalent to:
        x_r, x_z, x_n = (input @ weight_ih.T + bias_ih).chunk(3, -1)
        h_r, h_z, h_n = (h @ weight_hh.T + bias_hh).chunk(3, -1)
        z, n = (x_z + h_z).sigmoid(), (x_n + (x_r + h_r).sigmoid() * h_n).tanh();  h = n + z * (h - n)
    """
    varied = None
    if zoneout or recurrent_dropout or gain is not None:
        varied = _varied_step(
            "gru", recurrent_dropout, zoneout, {"gain": gain}, layer_norm_eps, None, weight_hh, bias_ih, training
        )  # fmt: skip
    return run_cell("gru", input, hx, (weight_ih, weight_hh, bias_ih, bias_hh), varied=varied)


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    training: bool = False,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
) -> Tensor:
    """Run one step of one simple recurrent layer.

    As `lstm_cell`, with hx and the result h, [B, H] (or [H]), and weights of H rows; nonlinearity "tanh" or "relu".

    Equivalent to:
        h = (input @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh).tanh()  # or .relu()
    """
    name, varied = _rnn_cell(nonlinearity).name, None
    if zoneout or recurrent_dropout:
        varied = _varied_step(name, recurrent_dropout, zoneout, {}, 1e-5, None, weight_hh, bias_ih, training)
    return run_cell(name, input, hx, (weight_ih, weight_hh, bias_ih, bias_hh), varied=varied)


def _varied_step(cell, recurrent_dropout, zoneout, norm, eps, weight_ch, weight_hh, bias_ih, training):
    """The variants of a call of a cell, or None; norm: what layer norm adds by kind, None where it is not given."""
    has_norm = any(tensor is not None for tensor in norm.values())
    variants = Variants(
        recurrent_dropout, zoneout=zoneout, layer_norm=has_norm, layer_norm_eps=eps, peephole=weight_ch is not None
    )  # fmt: skip
    variants = check_variants(variants, cell, 0)
    if not variants.serve(training):
        return None
    has_bias, H = bias_ih is not None, weight_hh.shape[-1]
    if norm.get("bias_c") is not None and not has_bias:
        raise ValueError("bias_c: Expected bias_ih and bias_hh with it, got neither")
    kinds = parameters_of(variants, Sizes(cell, 0, H, 0, 1, 1, has_bias))
    given = {"weight_ch": weight_ch, **norm}
    return Varied(variants, kinds, [given[kind] for kind in kinds], training)


def _rnn_cell(nonlinearity):
    cell = CELLS.get(f"rnn_{nonlinearity}")
    if cell is None:
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return cell
