"""Two LSTM cells of different sizes in a loop written by hand.

A loop over cells is the way when a step needs something no layer does. Here the second cell also
reads what it answered the step before, so the two cells cannot run as stacked layers. The task:
follow the running sum of a random signal, modulo a wrap at +-1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from examples.side_by_side import CELLS, Training, options, plot_losses, report, run_each


class TwoCells(nn.Module):
    """Signal [T, B, 1] to answers [T, B, 1]: a cell of 48 units, then one of 24 with feedback."""

    def __init__(self, cell_class: type[nn.Module]):
        super().__init__()
        self.reader = cell_class(1, 48)
        self.writer = cell_class(48 + 1, 24)
        self.answer = nn.Linear(24, 1)

    def forward(self, signal: Tensor) -> Tensor:
        reader_state = writer_state = None  # zeros
        answer = torch.zeros_like(signal[0])
        answers = []
        for value in signal:
            reader_state = self.reader(value, reader_state)
            seen = torch.cat((reader_state[0], answer), dim=-1)
            writer_state = self.writer(seen, writer_state)
            answer = self.answer(writer_state[0])
            answers.append(answer)
        return torch.stack(answers)


def wrapped_sum(signal: Tensor) -> Tensor:
    """The running sum over time, wrapped into [-1, 1)."""
    return (signal.cumsum(0) + 1) % 2 - 1


def train(cell_class: type[nn.Module], updates: int = 300, device: str = "cpu") -> Training:
    """Adam, a new batch of signals each update; the score is the loss on signals not seen."""
    model = TwoCells(cell_class).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def draw_signal() -> Tensor:
        return 0.1 * torch.randn(20, 32, 1).to(device)

    result = Training()
    for _ in range(updates):
        signal = draw_signal()
        loss = mse_loss(model(signal), wrapped_sum(signal))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        result.losses.append(loss.item())
    with torch.no_grad():
        signal = draw_signal()
        result.score = mse_loss(model(signal), wrapped_sum(signal)).item()
    return result


def main(argv: list[str] | None = None) -> dict[str, Training]:
    arguments = options(__doc__, argv)
    updates = 5 if arguments.quick else 300
    results = run_each(CELLS, lambda cell: train(cell, updates, arguments.device))
    report(results, "test loss")
    if arguments.plot:
        plot_losses(results, arguments.plot, "Two cells in a loop", "update")
    return results


if __name__ == "__main__":
    main()
