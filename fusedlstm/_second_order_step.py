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
        incoming: d_h [N, R], d_c [N, H]; the latter None for zeros.
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
    _, f, g, o = gates.chunk(4, -1)
    t = c_next.tanh()
    factors = torch.cat([g, c, gates.narrow(-1, 0, c.size(-1)), t], -1)  # of the gates i, f, g, o, in c_next and m

    # Tangents. The gates' activations are sigmoids, but for that of g, a tanh.
    slopes = torch.addcmul(gates, gates, gates, value=-1)
    slopes.chunk(4, -1)[2].sub_(g).add_(1)
    gates_dot = sums_dot((x, h), (w_ih, w_hh), (x_dot, h_dot), (w_ih_dot, w_hh_dot), (b_ih_dot, b_hh_dot)) * slopes
    by_i, by_f, by_g, by_o = (gates_dot * factors).chunk(4, -1)
    c_next_dot = by_i + by_f
    c_next_dot += by_g
    if c_dot is not None:
        c_next_dot.addcmul_(f, c_dot)
    slope_of_t = torch.addcmul(t.new_ones(()), t, t, value=-1)
    t_dot = slope_of_t * c_next_dot
    m_dot = torch.addcmul(by_o, o, t_dot)
    h_next_dot = m_dot if w_hr is None else linear(m_dot, w_hr)
    if w_hr_dot is not None:
        h_next_dot = h_next_dot + linear(o * t, w_hr_dot)
    if not any(needs):
        return h_next_dot, c_next_dot, *[None] * 7

    # phi's derivatives for m', for c_next', for c_next by way of t, and for m where a projection moves.
    d_m = d_h if w_hr is None else d_h @ w_hr
    by_c_next = o * slope_of_t
    by_c_next_dot = d_m * by_c_next
    if d_c is not None:
        by_c_next_dot += d_c
    i_dot, f_dot, g_dot, o_dot = gates_dot.chunk(4, -1)
    through_t = torch.addcmul(o_dot * slope_of_t, o * t, t_dot, value=-2).mul_(d_m)
    by_m = None if w_hr_dot is None else d_h @ w_hr_dot
    if by_m is not None:
        through_t.addcmul_(by_m, by_c_next)
    # For y', and for y: phi has y' times its factor, and y times how that moves or by way of t.
    of_factors = torch.cat([by_c_next_dot, by_c_next_dot, by_c_next_dot, d_m], -1)
    factors_dot = torch.cat([g_dot, torch.zeros_like(c) if c_dot is None else c_dot, i_dot, t_dot], -1)
    through = torch.cat([through_t, through_t, through_t, torch.zeros_like(t) if by_m is None else by_m], -1)
    by_gates_dot = of_factors * factors
    by_gates = factors_dot.mul_(of_factors).addcmul_(through, factors)
    # For z' (the gradients of first order) and for z. A slope changes with its sum: y'' = y' (1 - 2 y), or -2 y y'. In
    # the memory of what is not needed any more.
    bends = torch.addcmul(gates_dot, gates_dot, gates, value=-2)
    bends.chunk(4, -1)[2].sub_(g_dot)
    by_sums = by_gates.mul_(slopes).addcmul_(by_gates_dot, bends)
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
