"""Second order of single steps, written out. They do not depend on one another: each is a row of one batch.

When a step's arguments (x, h, c, weights) move along tangents, so do its results: (h', c'). What is differentiated is
phi = <d_h, h'> + <d_c, c'>, the sum of <tangent, gradient> over all gradients of the step (see _second_order.py). With
z for the sums that enter the gates, y for the gates after their activations and t = tanh(c_next):

* z' = x' W_ih^T + x W_ih'^T + h' W_hh^T + h W_hh'^T + b', and y' = y'(z) z'
* c_next' = f' c + f c' + i' g + i g', and m' = o' t + o (1 - t^2) c_next', where h_next = m or its projection m W_hr^T

phi depends on z through y and y', on c directly, and on both through c_next, of which it is also a function by t.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear


def second_order(rows, weights, gates, c_next, incoming, rows_dot, weights_dot, needs) -> tuple:
    """Gradients of phi for the step's arguments, and for the incoming gradients.

    N rows; I, H, R (and P) features of x, c, h. All in the dtype that is computed in.

    Args:
        rows: x [N, I], h [N, R], c [N, H].
        weights: weight_ih [4H, I], weight_hh [4H, R], weight_hr [P, H] or None.
        gates, c_next: [N, 4H], activated, in the order i, f, g, o; [N, H]. Gates of zeros are those of steps that did
            not run: nothing flows through them.
        incoming: d_h [N, R], d_c [N, H].
        rows_dot: tangents of `rows`, None for zeros.
        weights_dot: those of weight_ih, weight_hh, bias_ih, bias_hh, weight_hr.
        needs: whether to return gradients for x, h, c, weight_ih, weight_hh, a bias, weight_hr.

    Returns:
        h' and c_next', which are the gradients for d_h and d_c; then, in the order of `needs`, the gradients, None
        where not needed.
    """
    x, h, c = rows
    w_ih, w_hh, w_hr = weights
    d_h, d_c = incoming
    x_dot, h_dot, c_dot = rows_dot
    w_ih_dot, w_hh_dot, b_ih_dot, b_hh_dot, w_hr_dot = weights_dot
    i, f, g, o = gates.chunk(4, -1)
    t = c_next.tanh()

    # Tangents. The gates' activations are sigmoids, but for that of g, a tanh.
    slopes = torch.addcmul(gates, gates, gates, value=-1)
    slope_of_g = slopes.chunk(4, -1)[2]
    slope_of_g -= g - 1
    gates_dot = slopes * sums_dot((x, h), (w_ih, w_hh), (x_dot, h_dot), (w_ih_dot, w_hh_dot), (b_ih_dot, b_hh_dot))
    i_dot, f_dot, g_dot, o_dot = gates_dot.chunk(4, -1)
    c_next_dot = f_dot * c + i_dot * g + i * g_dot
    if c_dot is not None:
        c_next_dot.addcmul_(f, c_dot)
    slope_of_t = 1 - t * t
    by_c_next = o * slope_of_t
    m_dot = torch.addcmul(o_dot * t, by_c_next, c_next_dot)
    h_next_dot = m_dot if w_hr is None else linear(m_dot, w_hr)
    if w_hr_dot is not None:
        h_next_dot = h_next_dot + linear(o * t, w_hr_dot)
    if not any(needs):
        return h_next_dot, c_next_dot, *[None] * 7

    # phi's derivatives for m', for c_next', for c_next by way of t, and for m where a projection moves.
    d_m = d_h if w_hr is None else d_h @ w_hr
    by_c_next_dot = torch.addcmul(d_c, d_m, by_c_next)
    through_t = d_m * slope_of_t * torch.addcmul(o_dot, o * t, c_next_dot, value=-2)
    by_m = None if w_hr_dot is None else d_h @ w_hr_dot
    if by_m is not None:
        through_t.addcmul_(by_m, by_c_next)
    # For y', and for y.
    by_gates_dot = torch.cat([by_c_next_dot * g, by_c_next_dot * c, by_c_next_dot * i, d_m * t], -1)
    of_i, of_g = (torch.addcmul(by_c_next_dot * a, through_t, b) for a, b in ((g_dot, g), (i_dot, i)))
    of_f = through_t * c if c_dot is None else torch.addcmul(by_c_next_dot * c_dot, through_t, c)
    of_o = d_m * slope_of_t * c_next_dot
    if by_m is not None:
        of_o.addcmul_(by_m, t)
    by_gates = torch.cat([of_i, of_f, of_g, of_o], -1)
    # For z' (the gradients of first order) and for z. A slope changes with its sum: y'' = y' (1 - 2 y), or -2 y y'. In
    # the memory of what is not needed any more.
    bends = 1 - 2 * gates
    bend_of_g = bends.chunk(4, -1)[2]
    bend_of_g -= 1
    by_sums = by_gates.mul_(slopes).addcmul_(by_gates_dot, bends.mul_(gates_dot))
    by_sums_dot = by_gates_dot.mul_(slopes)

    def of_rows(w, w_dot):
        found = by_sums @ w
        return found if w_dot is None else found.addmm_(by_sums_dot, w_dot)

    def of_weight(row, row_dot):
        found = by_sums.t() @ row
        return found if row_dot is None else found.addmm_(by_sums_dot.t(), row_dot)

    needs_x, needs_h, needs_c, needs_w_ih, needs_w_hh, needs_bias, needs_w_hr = needs
    return (
        h_next_dot,
        c_next_dot,
        of_rows(w_ih, w_ih_dot) if needs_x else None,
        of_rows(w_hh, w_hh_dot) if needs_h else None,
        torch.addcmul(by_c_next_dot * f_dot, through_t, f) if needs_c else None,
        of_weight(x, x_dot) if needs_w_ih else None,
        of_weight(h, h_dot) if needs_w_hh else None,
        by_sums.sum(0) if needs_bias else None,
        d_h.t() @ m_dot if needs_w_hr else None,
    )


def sums_dot(rows, weights, rows_dot, weights_dot, biases_dot):
    """z' of some rows [..., features], from what is given of its parts; None for zeros."""
    total = None
    pairs = [*zip(rows_dot, weights), *zip(rows, weights_dot)]
    for row, weight in pairs:
        if row is not None and weight is not None:
            total = linear(row, weight) if total is None else total.add_(linear(row, weight))
    for bias in biases_dot:
        if bias is not None:
            total = bias if total is None else total + bias
    return rows[0].new_zeros(()) if total is None else total
