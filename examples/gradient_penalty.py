"""Gradients of gradients: a Wasserstein critic of sequences with a gradient penalty (WGAN-GP).

The critic tells sine waves from the output of a generator. Its gradient with respect to its input
is held at length one, so the loss contains a gradient and training differentiates it once more.
cuDNN's nn.LSTM refuses that on a GPU; FusedLSTM does it on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.side_by_side import LSTMS, Training, options, plot_losses, report, run_each
from examples.sine_forecast import sine_waves

_STEPS = 32
_PENALTY = 10.0


class SequenceScore(nn.Module):
    """Sequences [T, B, 1] to one number each [B]: the critic."""

    def __init__(self, lstm_class: type[nn.Module], hidden_size: int = 32):
        super().__init__()
        self.lstm = lstm_class(1, hidden_size)
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, sequences: Tensor) -> Tensor:
        output, _ = self.lstm(sequences)
        return self.score(output.mean(0)).squeeze(-1)


class SequenceSource(nn.Module):
    """Noise [T, B, 4] to sequences [T, B, 1]: the generator."""

    def __init__(self, lstm_class: type[nn.Module], hidden_size: int = 32):
        super().__init__()
        self.lstm = lstm_class(4, hidden_size)
        self.value = nn.Linear(hidden_size, 1)

    def forward(self, noise: Tensor) -> Tensor:
        output, _ = self.lstm(noise)
        return self.value(output)


def gradient_lengths(critic: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """Length of the critic's gradient [B] at random points between real and made sequences."""
    mixture = torch.rand(1, real.shape[1], 1, device=real.device)
    between = (mixture * real + (1 - mixture) * made).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return gradient.square().sum((0, 2)).sqrt()


def train(lstm_class: type[nn.Module], updates: int = 60, device: str = "cpu") -> Training:
    """Three steps of the critic for one of the generator; the score is the mean gradient length,
    which the penalty draws to 1."""
    critic = SequenceScore(lstm_class).to(device)
    source = SequenceSource(lstm_class).to(device)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
    source_optimizer = torch.optim.Adam(source.parameters(), lr=1e-3, betas=(0.5, 0.9))

    def make(count: int = 32) -> Tensor:
        return source(torch.randn(_STEPS, count, 4).to(device))

    result = Training()
    for _ in range(updates):
        for _ in range(3):
            real, made = sine_waves(32, _STEPS).to(device), make().detach()
            lengths = gradient_lengths(critic, real, made)
            loss = critic(made).mean() - critic(real).mean()
            loss = loss + _PENALTY * (lengths - 1).square().mean()
            critic_optimizer.zero_grad()
            loss.backward()
            critic_optimizer.step()
        result.losses.append(loss.item())
        result.score = lengths.mean().item()
        source_optimizer.zero_grad()
        (-critic(make()).mean()).backward()
        source_optimizer.step()
    return result


def main(argv: list[str] | None = None) -> dict[str, Training]:
    arguments = options(__doc__, argv)
    updates = 2 if arguments.quick else 60
    results = run_each(LSTMS, lambda lstm: train(lstm, updates, arguments.device))
    report(results, "gradient length")
    if arguments.plot:
        plot_losses(results, arguments.plot, "Critic with gradient penalty", "update")
    return results


if __name__ == "__main__":
    main()
