"""Second order of single steps. They do not depend on one another: each is a row of one batch.

When a step's arguments (x, states, weights) move along tangents, so do its results, and the gradients that it has for
them. With s for the sums W_ih x and W_hh h that enter the gates, biases included:

* s' = x' W_ih^T + x W_ih'^T + b_ih' for the one, h' W_hh^T + h W_hh'^T + b_hh' for the other
* `<cell>_steps_second_order` turns s' into the tangents of the states after the step, and those of the gradients for s
  and for the states before it
* what those gradients are multiplied with, they are also in their tangents: of x it is d_s' W_ih + d_s W_ih'

The tangents of the gradients are what is sought: the gradients of the sum of <tangent, gradient>.
"""

from __future__ import annotations

from torch.nn.functional import linear

from fusedlstm.cells import Cell
from fusedlstm.ops import OPERATORS


def second_order(
    cell: Cell, rows, weights, saved, after, incoming, rows_dot, weights_dot, needs, is_at_sums=False
) -> tuple:
    """Gradients of the sum of <tangent, gradient> for the step's arguments, and for the incoming gradients.

    N rows; I, H, R (and P) features of x, states but h, and h. All in float32 or float64.

    Args:
        cell: whose steps.
        rows: x [N, I], then the states before the step, [N, R] and [N, H].
        weights: weight_ih [GH, I], weight_hh [GH, R], weight_hr [P, H] or None.
        saved, after: [N, saved * H], and the states after the step.
        incoming: gradients of these states; None for zeros.
        rows_dot: tangents of `rows`, None for zeros.
        weights_dot: those of weight_ih, weight_hh, bias_ih, bias_hh, weight_hr.
        needs: whether to return gradients for each of `rows`, and of weight_ih, weight_hh, bias_ih, bias_hh, weight_hr.
        is_at_sums: whether the gradients for the sums are returned too, and not followed to what the sums are made of.

    Returns:
        The tangents of the states after the step, which are the gradients for `incoming`; with is_at_sums those for the
        sums, in a list as of `sums_dot`; then, in the order of `needs`, the gradients, None where not needed or nothing
        flows.
    """
    (x, *before), (x_dot, *before_dot) = rows, rows_dot
    w_ih, w_hh, w_hr = weights
    w_ih_dot, w_hh_dot, b_ih_dot, b_hh_dot, w_hr_dot = weights_dot
    needs_rows, needs_weights = needs[: len(rows)], needs[len(rows) :]
    of_input = x, w_ih, x_dot, w_ih_dot, b_ih_dot
    of_hidden = before[0], w_hh, before_dot[0], w_hh_dot, b_hh_dot

    d_h = incoming[0]
    d_m, d_m_dot = d_h, None  # of h before a projection
    if w_hr is not None and d_h is not None:
        d_m, d_m_dot = d_h @ w_hr, None if w_hr_dot is None else d_h @ w_hr_dot
    sums, hidden_sums = sums_dot(cell, of_input, of_hidden)
    is_needed = is_at_sums or any(needs)
    arrive = [d_m, *incoming[1:]] if is_needed else [None] * len(incoming)
    after_dot, d_sums, _, d_before_dot = OPERATORS[cell.name].steps_second_order(
        before, after, saved, sums, hidden_sums, before_dot, arrive, d_m_dot if is_needed else None
    )
    m_dot = after_dot[0]
    if w_hr is not None:
        after_dot[0] = projected_dot(cell, saved, after, m_dot, w_hr, w_hr_dot)
    if not is_needed:
        return *after_dot, *[None] * len(needs)

    d_x_sums, d_h_sums = d_sums[:2], d_sums[2:] if cell.is_apart else d_sums[:2]
    at_sums = ()
    if is_at_sums:
        at_sums = ([d_x_sums[1], d_h_sums[1]] if cell.is_apart else [d_x_sums[1]],)
        d_x_sums, d_h_sums = (d_x_sums[0], None), (d_h_sums[0], None)
    to_rows = [None] * len(rows)
    if needs_rows[0]:
        to_rows[0] = _of_row(d_x_sums, w_ih, w_ih_dot)
    if needs_rows[1]:
        to_rows[1] = _of_row(d_h_sums, w_hh, w_hh_dot)
        if cell.takes_h:
            to_rows[1] = d_before_dot[0] if to_rows[1] is None else to_rows[1].add_(d_before_dot[0])
    for place in range(2, len(rows)):
        if needs_rows[place]:
            to_rows[place] = d_before_dot[place - 1]
    needs_w_ih, needs_w_hh, needs_b_ih, needs_b_hh, needs_w_hr = needs_weights
    to_w_hr = None
    if needs_w_hr:
        to_w_hr = w_hr.new_zeros(w_hr.shape) if d_h is None else d_h.t() @ m_dot
    return (
        *after_dot,
        *at_sums,
        *to_rows,
        _of_weight(d_x_sums, x, x_dot) if needs_w_ih else None,
        _of_weight(d_h_sums, before[0], before_dot[0]) if needs_w_hh else None,
        d_x_sums[1].sum(0) if needs_b_ih and not is_at_sums else None,
        d_h_sums[1].sum(0) if needs_b_hh and not is_at_sums else None,
        to_w_hr,
    )


def sums_dot(cell: Cell, of_input, of_hidden) -> tuple:
    """s' of some rows, as `<cell>_steps_second_order` takes it: both parts, or their sum and None.

    Each part is of: rows [..., features], weight, and the tangents of rows, weight and bias; None for zeros.
    """
    from_input, from_hidden = _sums_dot(None, *of_input), None
    if cell.is_apart:
        from_hidden = _sums_dot(None, *of_hidden)
    else:
        from_input = _sums_dot(from_input, *of_hidden)
    if from_input is None:
        rows, weight = of_input[:2]
        from_input = rows.new_zeros(*rows.shape[:-1], weight.size(0))
    return from_input, from_hidden


def _sums_dot(total, rows, weight, rows_dot, weight_dot, bias_dot):
    for row, matrix in ((rows_dot, weight), (rows, weight_dot)):
        if row is None or matrix is None:
            continue
        product = linear(row, matrix, bias_dot)
        bias_dot = None
        total = product if total is None else product.add_(total)
    if bias_dot is not None:
        total = bias_dot.expand(*rows.shape[:-1], -1) if total is None else total + bias_dot
    return total


def projected_dot(cell: Cell, saved, after, m_dot, w_hr, w_hr_dot):
    """The tangent of h = m W_hr^T."""
    h_dot = linear(m_dot, w_hr)
    return h_dot if w_hr_dot is None else h_dot.add_(linear(cell.hidden(saved, after), w_hr_dot))


def _of_row(d_sums, weight, weight_dot):
    d, d_dot = d_sums
    return _sum_of_products((d_dot, weight), (d, weight_dot))


def _of_weight(d_sums, row, row_dot):
    d, d_dot = d_sums
    return _sum_of_products((None if d_dot is None else d_dot.t(), row), (d.t(), row_dot))


def _sum_of_products(*pairs):
    """Of pairs of matrices, those where one is None being zeros; None where all are."""
    total = None
    for a, b in pairs:
        if a is not None and b is not None:
            total = a @ b if total is None else total.addmm_(a, b)
    return total
