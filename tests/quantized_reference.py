"""One layer with int8 weights in numpy, to the last bit of what the operators `<cell>_layer_quantized` return.

Integers are exact, and each operation on float32 rounds once: there are no fused multiply-adds. It has nothing of the
package; sizes are read from the weights, as the operators do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

UNITS, DEPTH = 16, 4  # of a block of packed weights
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
JOINED = {"lstm": 4, "gru": 2, "rnn_tanh": 1, "rnn_relu": 1}  # of these; a GRU's n takes both parts each for itself
STATES = {"lstm": 2, "gru": 1, "rnn_tanh": 1, "rnn_relu": 1}
ONE = np.float32(1)


# Weights


def quantized(weight, limit=127):
    """weight [rows, K] as int8 from -limit to limit, and the scale of each row, float32 [rows]."""
    weight = np.asarray(weight, np.float32)
    scale = np.abs(weight).max(1) / np.float32(limit)
    divisor = np.where(scale > 0, scale, ONE)[:, None]
    rounded = np.where(scale[:, None] > 0, np.rint(weight / divisor), 0)
    return np.clip(rounded, -limit, limit).astype(np.int8), scale


def packed(weight, gates):
    """int8 [gates * units, K] as [ceil(units / 16), gates, ceil(K / 4), 16, 4]."""
    rows, K = weight.shape
    units = rows // gates
    row, k = np.indices(weight.shape)
    (gate, unit), (step, j) = divmod(row, units), divmod(k, DEPTH)
    block, u = divmod(unit, UNITS)
    result = np.zeros((-(-units // UNITS), gates, -(-K // DEPTH), UNITS, DEPTH), np.int8)
    result[block, gate, step, u, j] = weight
    return result


def unpacked(weight, units, K):
    """What `packed` was given."""
    row, k = np.indices((weight.shape[1] * units, K))
    gate, unit = divmod(row, units)
    return weight[unit // UNITS, gate, k // DEPTH, unit % UNITS, k % DEPTH]


def sums(weight):
    """Of each row of int8 [rows, K] its sum, then the largest element without its sign, [rows + 1]; int16 where K times
    127 is not beyond that, else int32."""
    largest = np.abs(weight.astype(np.int32)).max()
    found = np.append(weight.sum(1, dtype=np.int32), largest)
    return found.astype(np.int16 if weight.shape[1] <= 258 else np.int32)


def bias(cell, of_input, of_hidden):
    """Two of [gates * H] as one: of joined gates the sum, of others the input's; then the others' of the hidden state.

    Arrays of float32.
    """
    first = JOINED[cell] * (len(of_input) // GATES[cell])
    return np.concatenate([of_input[:first] + of_hidden[:first], of_input[first:], of_hidden[first:]])


class Direction(NamedTuple):
    """One direction's weights: of weight_ih, weight_hh and, with a projection, weight_hr [rows, K], scales and sums."""

    ih: tuple
    hh: tuple
    bias: np.ndarray | None  # as `bias` makes it
    hr: tuple | None


def directions(cell, weights, input_size):
    """The weights of the operator, unpacked, for each direction."""
    G = GATES[cell]

    def parts(own):
        has_bias, projects = len(own) in (7, 10), len(own) in (9, 10)
        assert len(own) == 6 + has_bias + 3 * projects
        w_ih, w_hh, scale_ih, scale_hh, sum_ih, sum_hh = own[:6]
        H = len(scale_ih) // G
        R = len(own[-2]) if projects else H
        hr = (unpacked(own[-3], R, H), *own[-2:]) if projects else None
        ih, hh = unpacked(w_ih, H, input_size), unpacked(w_hh, H, R)
        return Direction((ih, scale_ih, sum_ih), (hh, scale_hh, sum_hh), own[6] if has_bias else None, hr)

    # 6 to 10 tensors a direction: of 12 to 20 there are two.
    D = 1 if len(weights) < 12 else 2
    each = len(weights) // D
    return [parts(weights[d * each : (d + 1) * each]) for d in range(D)]


# Products


def quantized_rows(values):
    """values [rows, K] as integers 0..255, and of each row its scale and zero point."""
    low = np.minimum(np.float32(0), values.min(1, initial=np.float32(0)))
    high = np.maximum(np.float32(0), values.max(1, initial=np.float32(0)))
    extent = high - low
    is_wide = extent > np.float32(2.0**-100)
    divisor = np.where(is_wide, extent, ONE)
    inverse = np.where(is_wide, np.float32(255) / divisor, np.float32(0))
    scale = np.where(is_wide, extent / np.float32(255), np.float32(0))
    zero = np.rint(-low * inverse)
    q = np.minimum(np.rint(values * inverse[:, None]) + zero[:, None], np.float32(255))
    is_finite = np.isfinite(values).all(1)
    scale = np.where(is_finite, scale, np.float32(np.nan))
    q, zero = np.where(is_finite[:, None], q, 0), np.where(is_finite, zero, 0)
    return q.astype(np.int32), scale, zero.astype(np.int32)


def product(values, weight, scale, total):
    """values [rows, K] by the weight's rows, float32 [rows, len(weight)]."""
    q, scale_of_row, zero = quantized_rows(values)
    acc = q @ weight.astype(np.int32).T - zero[:, None] * total[:-1]
    assert acc.dtype == np.int32
    return acc.astype(np.float32) * (scale_of_row[:, None] * scale)


# csrc/cpu/kernel/short_math.h, quotients.h

LOG2_E = np.float32(1.44269504088896340736)
ROUND = np.float32(12582912.0 + 127.0)
POLYNOMIAL = np.array(
    [0.6931471805599454, 0.24022349038020355, 0.0555038101379658, 0.009666368515385883, 0.0013381302537283154],
    np.float32,
)


def clamped(x, limit):
    limit = np.float32(limit)
    x = np.where(x > limit, limit, x)
    return np.where(x < -limit, -limit, x)


def reduced(x):
    """2^n and 2^r - 1, where x = n + r."""
    shifted = x + ROUND
    scale = (shifted.view(np.uint32) << np.uint32(23)).view(np.float32)
    r = x - (shifted - ROUND)
    c = POLYNOMIAL
    low, high = r * c[1] + c[0], r * c[3] + c[2]
    return scale, ((r * r * c[4] + high) * (r * r) + low) * r


def below_sigmoid(x):
    """Of sigmoid as a quotient of 1."""
    scale, fraction = reduced(clamped(x, 87) * -LOG2_E)
    return scale * fraction + (scale + ONE)


def tanh_parts(x):
    """tanh as a quotient: what is above and below the line."""
    scale, fraction = reduced(clamped(x, 10) * (2 * LOG2_E))
    expm1 = scale * fraction + (scale - ONE)
    return expm1, expm1 + np.float32(2)


def tanh(x):
    above, below = tanh_parts(x)
    return above / below


def sigmoid_times_tanh(x, y):
    """By one division."""
    above, below = tanh_parts(y)
    return above / (below_sigmoid(x) * below)


def sigmoid_times(x, y):
    return y / below_sigmoid(x)


# Layers


def step(cell, weights, from_input, states):
    """The states after a step, of rows [B, ...]; from_input: weight_ih by the input, without biases."""
    h = states[0]
    from_hidden = product(h, *weights.hh)
    G, joined = GATES[cell], JOINED[cell]
    x, y = np.split(from_input, G, 1), np.split(from_hidden, G, 1)
    if weights.bias is not None:
        biases = np.split(weights.bias, G + G - joined)
        x = [part + b for part, b in zip(x, biases[:G], strict=True)]
        y[joined:] = [part + b for part, b in zip(y[joined:], biases[G:], strict=True)]
    sums = [b + a for a, b in zip(x[:joined], y[:joined])]
    if cell == "lstm":
        i, f, g, o = sums
        c = sigmoid_times(f, states[1]) + sigmoid_times_tanh(i, g)
        h = sigmoid_times_tanh(o, c)
        return [h if weights.hr is None else product(h, *weights.hr), c]
    if cell == "gru":
        r, z = sums[:2]
        n = tanh(x[2] + sigmoid_times(r, y[2]))
        return [n + sigmoid_times(z, h - n)]
    if cell == "rnn_relu":
        return [np.where(sums[0] < 0, np.float32(0), sums[0])]
    return [tanh(sums[0])]


def layer(cell, input, initial, weights, batch_sizes=None, lengths=None, reset=None, reset_state=()):
    """What `fusedlstm::<cell>_layer_quantized` returns for these arguments, arrays in the place of tensors."""
    with np.errstate(all="ignore"):
        return _layer(cell, input, initial, weights, batch_sizes, lengths, reset, reset_state)


def _layer(cell, input, initial, weights, batch_sizes, lengths, reset, reset_state):
    parts = directions(cell, weights, input.shape[-1])
    D, H = len(parts), len(parts[0].ih[1]) // GATES[cell]
    R = H if parts[0].hr is None else len(parts[0].hr[1])
    if batch_sizes is None:
        T, B = input.shape[:2]
        runs = np.ones((T, B), bool) if lengths is None else np.arange(T)[:, None] < lengths
        dense = input
    else:
        T, B = len(batch_sizes), int(batch_sizes[0])
        runs = np.arange(B) < np.asarray(batch_sizes)[:, None]
        dense = np.zeros((T, B, input.shape[-1]), np.float32)
        dense[runs] = input
    sizes = [R, H][: STATES[cell]]
    states = list(initial) or [np.zeros((D, B, size), np.float32) for size in sizes]
    after_reset = list(reset_state) or [np.zeros((D, B, size), np.float32) for size in sizes]
    output = np.zeros((T, B, D * R), np.float32)
    last = [state.copy() for state in states]
    for d, own in enumerate(parts):
        now = [state[d] for state in states]
        for t in reversed(range(T)) if d == 1 else range(T):
            if reset is not None:
                now = [np.where(reset[t][:, None], new[d], state) for new, state in zip(after_reset, now)]
            following = step(cell, own, product(dense[t], *own.ih), now)
            now = [np.where(runs[t][:, None], new, state) for new, state in zip(following, now)]
            output[t, :, d * R : (d + 1) * R] = np.where(runs[t][:, None], now[0], np.float32(0))
        for place, state in enumerate(now):
            last[place][d] = state
    return (output if batch_sizes is None else output[runs]), last
