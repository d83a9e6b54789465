"""Second order of independent steps: arguments of `<cell>_steps_second_order`, and what it returns, by transforms."""

import torch

ROWS = 3


def moving_steps(cell, hidden, dtype):
    """Arguments of `<cell>_steps_second_order` for some rows, and what it should return, by PyTorch's transforms."""
    torch.manual_seed(1)

    def draw(width):
        return torch.randn(ROWS, width * hidden, dtype=torch.float64).to(dtype).double()

    parts, states = [draw(cell.gates), draw(cell.gates)], [draw(1) for _ in cell.states]
    d_after, d_h_tangent = [draw(1) for _ in states], draw(1)
    moves = [draw(cell.gates), draw(cell.gates)], [draw(1) for _ in states]

    def step(parts, states):
        return cell.step(*parts, states)[0]

    def both(parts, states, d_after):
        after, gradients = torch.func.vjp(step, parts, states)
        return after, gradients(d_after)

    d_tangents = [d_h_tangent, *map(torch.zeros_like, d_after[1:])]
    (_, (d_sums, d_before)), (after_tangent, (d_sums_tangent, d_before_tangent)) = torch.func.jvp(
        both, (parts, states, d_after), (*moves, d_tangents)
    )
    after, saved = cell.step(*parts, states)
    sums, hidden_sums = moves[0] if cell.is_apart else (sum(moves[0]), None)
    arguments = states, after, saved, sums, hidden_sums, moves[1], d_after, d_h_tangent
    arguments = [
        [one.to(dtype) for one in each] if isinstance(each, list) else None if each is None else each.to(dtype)
        for each in arguments
    ]
    expected = [*after_tangent]
    for place in range(2 if cell.is_apart else 1):
        expected += [d_sums[place], d_sums_tangent[place]]
    used = range(0 if cell.takes_h else 1, len(states))
    return arguments, [*expected, *(d_before[i] for i in used), *(d_before_tangent[i] for i in used)]


def assert_steps_near(found, expected):
    """A handful of operations on values of a few units, where what is saved was rounded before."""
    for actual, wanted in zip(found, expected, strict=True):
        allowed = 64 * torch.finfo(actual.dtype).eps
        torch.testing.assert_close(actual.double(), wanted, rtol=allowed, atol=allowed * wanted.abs().max())
