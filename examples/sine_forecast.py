"""Forecasting sine waves: trained to say the next value, then left to run on by itself.

The forecast feeds each prediction back as the next input, one step a call with the state carried,
which is how a trained recurrent model is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from examples.side_by_side import LSTMS, Training, options, report, run_each

_SEEN, _AHEAD = 100, 100


class Forecaster(nn.Module):
    """Values [T, B, 1] to the values one step later [T, B, 1], and the state to go on from."""

    def __init__(self, lstm_class: type[nn.Module], hidden_size: int = 50):
        super().__init__()
        self.lstm = lstm_class(1, hidden_size)
        self.value = nn.Linear(hidden_size, 1)

    def forward(self, values: Tensor, state: tuple[Tensor, Tensor] | None = None):
        output, state = self.lstm(values, state)
        return self.value(output), state

    @torch.no_grad()
    def forecast(self, values: Tensor, steps: int) -> Tensor:
        """The steps after the values, [steps, B, 1]."""
        predicted, state = self(values)
        last, forecast = predicted[-1:], [predicted[-1:]]
        for _ in range(steps - 1):
            last, state = self(last, state)
            forecast.append(last)
        return torch.cat(forecast)


def sine_waves(count: int, steps: int) -> Tensor:
    """[steps, count, 1]: random phases, periods of 20 to 30 steps."""
    periods = 20 + 10 * torch.rand(count)
    phases = 2 * math.pi * torch.rand(count)
    return torch.sin(2 * math.pi * torch.arange(steps)[:, None] / periods + phases)[..., None]


@dataclass
class Forecast(Training):
    """A training run and one wave with its forecast, for the figure."""

    wave: Tensor = field(default_factory=lambda: torch.empty(0))
    forecast: Tensor = field(default_factory=lambda: torch.empty(0))


def train(lstm_class: type[nn.Module], updates: int = 600, device: str = "cpu") -> Forecast:
    """Adam, new waves each update; the score is the mean squared error over the steps ahead."""
    test = sine_waves(8, _SEEN + _AHEAD).to(device)
    model = Forecaster(lstm_class).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    result = Forecast()
    for _ in range(updates):
        waves = sine_waves(32, _SEEN + 1).to(device)
        # Noise on what is read makes the model trust several steps and not the last one, as it
        # must when it reads its own predictions.
        noisy = waves[:-1] + 0.1 * torch.randn(_SEEN, 32, 1).to(device)
        predicted, _ = model(noisy)
        loss = mse_loss(predicted, waves[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        result.losses.append(loss.item())
    forecast = model.forecast(test[:_SEEN], _AHEAD)
    result.score = mse_loss(forecast, test[_SEEN:]).item()
    result.wave, result.forecast = test[:, 0, 0].cpu(), forecast[:, 0, 0].cpu()
    return result


def plot(results: dict[str, Forecast], path: Path) -> None:
    """The wave, and what each model made of its future."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
    wave = next(iter(results.values())).wave
    axes.plot(wave, color="0.6", label="true wave")
    for (name, result), style in zip(results.items(), ("-", "--"), strict=True):
        steps = range(_SEEN, _SEEN + _AHEAD)
        axes.plot(steps, result.forecast, style, label=f"{name}, error {result.score:.3g}")
    axes.axvline(_SEEN, color="black", linewidth=0.8)
    axes.set(xlabel="step", ylabel="value", title="Left: seen; right: forecast")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"plot: {path}")


def main(argv: list[str] | None = None) -> dict[str, Forecast]:
    arguments = options(__doc__, argv)
    updates = 5 if arguments.quick else 600
    results = run_each(LSTMS, lambda lstm: train(lstm, updates, arguments.device))
    report(results, "forecast error")
    if arguments.plot:
        plot(results, arguments.plot)
    return results


if __name__ == "__main__":
    main()
