"""What the papers say of one layer's steps, written out by hand: the oracle of layers with variants."""

import torch
from torch import sigmoid, tanh


def normalized(x, eps=1e-5):
    """By the definition, mean and variance written out."""
    mean = x.sum(-1, keepdim=True) / x.size(-1)
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.size(-1)
    return (x - mean) / (variance + eps).sqrt()


def lstm_step(p, x, h_product, c, eps):
    """h and c after a step. p: the parameters by kind; h_product: h as it enters the product with weight_hh."""
    biases = [p[name] for name in ("bias_ih", "bias_hh") if name in p]
    from_input, from_hidden = x @ p["weight_ih"].T, h_product @ p["weight_hh"].T
    if "gain_ih" in p:
        from_input, from_hidden = (
            normalized(from_input, eps) * p["gain_ih"], normalized(from_hidden, eps) * p["gain_hh"]
        )  # fmt: skip
    i, f, g, o = (from_input + from_hidden + sum(biases)).chunk(4, -1)
    w_i, w_f, w_o = p["weight_ch"].chunk(3) if "weight_ch" in p else (0, 0, 0)
    new = sigmoid(f + w_f * c) * c + sigmoid(i + w_i * c) * tanh(g)
    seen = new if "gain_c" not in p else normalized(new, eps) * p["gain_c"] + p.get("bias_c", 0)
    return sigmoid(o + w_o * new) * tanh(seen), new


def gru_step(p, x, h_product, h, eps):
    from_input, from_hidden = x @ p["weight_ih"].T, h_product @ p["weight_hh"].T
    b_ih, b_hh = p.get("bias_ih", 0), p.get("bias_hh", 0)
    if "gain" in p:
        r, z, n = (normalized(from_input + from_hidden, eps) * p["gain"] + b_ih + b_hh).chunk(3, -1)
        update = sigmoid(z - 1)
        return update * tanh(sigmoid(r) * n) + (1 - update) * h
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (from_input + b_ih).chunk(3, -1), (from_hidden + b_hh).chunk(3, -1)
    z, n = sigmoid(x_z + h_z), tanh(x_n + sigmoid(x_r + h_r) * h_n)
    return (1 - z) * n + z * h


def rnn_step(p, x, h_product, activation):
    return activation(
        x @ p["weight_ih"].T + h_product @ p["weight_hh"].T + p.get("bias_ih", 0) + p.get("bias_hh", 0)
    )  # fmt: skip


def run_loop(cell, p, x, mask, zoneout, eps):
    """Output and last states of one layer in one direction, from zeros.

    mask: [1 or T, B, H], or None; zoneout: of each state [1 or T, B or 1, H], or nothing.
    """
    B, H = x.size(1), p["weight_hh"].size(1)
    states = [x.new_zeros(B, H) for _ in range(2 if cell == "lstm" else 1)]
    outputs = []
    for t in range(len(x)):
        h = states[0]
        entering = h if mask is None else h * mask[t % len(mask)]
        if cell == "lstm":
            new = lstm_step(p, x[t], entering, states[1], eps)
        elif cell == "gru":
            new = (gru_step(p, x[t], entering, h, eps),)
        else:
            new = (rnn_step(p, x[t], entering, {"rnn_tanh": tanh, "rnn_relu": torch.relu}[cell]),)
        if zoneout:
            kept = [z[t % len(z)] for z in zoneout]
            new = [torch.where(z, old, fresh) if z.dtype is torch.bool else z * old + (1 - z) * fresh
                   for z, old, fresh in zip(kept, states, new)]  # fmt: skip
        states = list(new)
        outputs.append(states[0])
    return torch.stack(outputs), states
