"""A world model after DreamerV3 (Hafner et al. 2023): a recurrent state-space model, and what it imagines.

The world is a ball that flies through a box and bounces off its walls. What is observed is its place, with noise, and
in a part of the steps nothing at all; balls are replaced by others every now and then. The model's state has two parts:
h is what a GRU with DreamerV3's layer norm makes of all z before; z is random, drawn at each step from

- the posterior, of the observation, where there is one,
- the prior, of h, which learns to foretell the posterior: this is how the model imagines.

DreamerV3's posterior sees h too, so that every step waits for the draw before it. Without that (as in R2I, Samsami et
al. 2024) training is one call of the GRU for all steps, with `reset` where balls begin; imagining is a call for each
step. z is Gaussian and not categorical: rounding then moves a draw a little, but never to another category, and both
implementations of the GRU can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import layer_norm, linear, softplus

from examples.side_by_side import MakeLayer, Training, options, report, run_each, show_progress
from fusedlstm import FusedGRU

_SEEN, _AHEAD = 40, 20
_NOISE = 0.05
_FREE_NATS = 1.0


class LoopGRU(nn.GRU):
    """The GRU of DreamerV3 written out: nn.GRU's parameters without biases, and the gain of a norm."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size, bias=False)
        self.gain_l0 = nn.Parameter(torch.ones(3 * hidden_size))

    def forward(self, input: Tensor, hx: Tensor | None = None, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = input.new_zeros(input.shape[1], self.hidden_size) if hx is None else hx[0]
        outputs = []
        for step, x in enumerate(input):
            if reset is not None:
                h = h * ~reset[step, :, None]
            sums = linear(x, self.weight_ih_l0) + linear(h, self.weight_hh_l0)
            r, z, n = layer_norm(sums, self.gain_l0.shape, self.gain_l0, eps=1e-3).chunk(3, dim=-1)
            update = torch.sigmoid(z - 1)
            h = update * torch.tanh(torch.sigmoid(r) * n) + (1 - update) * h
            outputs.append(h)
        return torch.stack(outputs), h[None]


GRUS: dict[str, MakeLayer] = {
    "loop": LoopGRU,
    "FusedGRU": partial(FusedGRU, bias=False, layer_norm=True, layer_norm_eps=1e-3),
}


def balls(steps: int, count: int, replaced: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Places [T, B, 2] in a box from -1 to 1; observations [T, B, 3]; where another ball begins [T, B].

    An observation is the place with noise and 1, or zeros. `replaced`: probability of another ball at a step.
    """
    begins = torch.rand(steps, count) < replaced
    begins[0] = True
    step = torch.arange(steps)[:, None]
    first = torch.where(begins, step, 0).cummax(0).values
    rows = torch.arange(count)
    start, speed = 4 * torch.rand(steps, count, 2)[first, rows], 0.2 * torch.rand(steps, count, 2)[first, rows] - 0.1
    # A reflected way is a straight one folded at the walls.
    places = ((start + speed * (step - first)[..., None]) % 4 - 2).abs() - 1
    seen = (torch.rand(steps, count, 1) < 0.7) | begins[..., None]
    observed = places + _NOISE * torch.randn_like(places)
    return places, torch.cat((observed, torch.ones_like(observed[..., :1])), -1) * seen, begins


class WorldModel(nn.Module):
    """h [..., H] by the GRU, z [..., Z] by prior or posterior, and the place [..., 2] that both stand for."""

    def __init__(self, make_gru: MakeLayer, hidden_size: int = 128, latent_size: int = 8, width: int = 64):
        super().__init__()
        self.memory = make_gru(latent_size + 1, hidden_size)
        self.posterior = _perceptron(2, width, 2 * latent_size)
        self.prior = _perceptron(hidden_size, width, 2 * latent_size)
        self.place = _perceptron(hidden_size + latent_size, width, 2)

    def observe(self, observations: Tensor, begins: Tensor) -> tuple[Tensor, Tensor, Normal]:
        """h before each observation [T, B, H], z of each with a 1, or zeros [T, B, Z + 1], and the posteriors."""
        posterior = _normal(self.posterior(observations[..., :2]))
        seen = observations[..., 2:]
        z = torch.cat((posterior.rsample() * seen, seen), -1)
        before = torch.cat((torch.zeros_like(z[:1]), z[:-1])) * ~begins[..., None]
        h, _ = self.memory(before, reset=begins)
        return h, z, posterior

    def loss(self, observations: Tensor, begins: Tensor) -> Tensor:
        """What places are off by, in deviations of the noise, and how far prior and posterior are apart."""
        h, z, posterior = self.observe(observations, begins)
        prior = _normal(self.prior(h))
        off = (self.place(torch.cat((h, z[..., :-1]), -1)) - observations[..., :2]) / _NOISE
        # The prior learns more from the posterior than the other way round.
        apart = _distance(_fixed(posterior), prior) + 0.1 * _distance(posterior, _fixed(prior))
        seen = observations[..., 2]
        return ((0.5 * off.square().sum(-1) + apart) * seen).sum() / seen.sum()

    @torch.no_grad()
    def imagine(self, observations: Tensor, begins: Tensor, steps: int) -> Tensor:
        """Places [steps, B, 2] after the observations, with the likeliest z of the prior at each step."""
        h, z, _ = self.observe(observations, begins)
        h, z, places = h[-1:], z[-1:], []
        for _ in range(steps):
            h, _ = self.memory(z, h)
            mean = _normal(self.prior(h)).mean
            places.append(self.place(torch.cat((h, mean), -1)))
            z = torch.cat((mean, torch.ones_like(mean[..., :1])), -1)
        return torch.cat(places)


def _perceptron(inputs: int, width: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, outputs))


def _normal(numbers: Tensor) -> Normal:
    mean, deviation = numbers.chunk(2, dim=-1)
    return Normal(mean, softplus(deviation) + 0.1, validate_args=False)


def _fixed(normal: Normal) -> Normal:
    """The same, but no gradient goes through it."""
    return Normal(normal.mean.detach(), normal.stddev.detach(), validate_args=False)


def _distance(one: Normal, other: Normal) -> Tensor:
    """KL divergence [T, B]; less than `_FREE_NATS` of it does not count."""
    return kl_divergence(one, other).sum(-1).clamp_min(_FREE_NATS)


@dataclass
class Imagination(Training):
    """A training run, and the mean squared error of imagined places by steps ahead [_AHEAD]."""

    errors: Tensor = field(default_factory=lambda: torch.empty(0))


def train(make_gru: MakeLayer, test: tuple[Tensor, Tensor, Tensor], updates: int, device: str = "cpu") -> Imagination:
    """Adam on new balls in each update; the score is the error of the test's imagined steps, averaged."""
    model = WorldModel(make_gru).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    result = Imagination()
    for update in range(updates):
        _, observations, begins = (data.to(device) for data in balls(_SEEN, 32, replaced=0.02))
        loss = model.loss(observations, begins)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        result.losses.append(loss.item())
        show_progress(f"update {update + 1} of {updates}: loss {result.losses[-1]:.3f}")
    places, observations, begins = (data.to(device) for data in test)
    imagined = model.imagine(observations[:_SEEN], begins[:_SEEN], _AHEAD)
    result.errors = (imagined - places[_SEEN:]).square().mean((1, 2)).cpu()
    result.score = result.errors.mean().item()
    return result


def baselines(test: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """Errors, as those of `Imagination`, of what needs no model."""
    places, observations, _ = test
    seen, places = observations[:_SEEN], places[_SEEN:]
    last = torch.where(seen[..., 2] > 0, torch.arange(_SEEN)[:, None], 0).amax(0)
    guesses = {
        "last observed place": seen[last, torch.arange(seen.shape[1]), :2],
        "middle of the box": torch.zeros(2),
    }
    return {name: (guess - places).square().mean((1, 2)) for name, guess in guesses.items()}


def plot(results: dict[str, Imagination], guesses: dict[str, Tensor], path: Path) -> None:
    """Errors by steps ahead."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    steps = range(1, _AHEAD + 1)
    for (name, result), style in zip(results.items(), ("-", "--"), strict=True):
        axes.plot(steps, result.errors.sqrt(), style, label=f"imagined, {name}")
    for name, errors in guesses.items():
        axes.plot(steps, errors.sqrt(), ":", label=name)
    axes.set(xlabel="steps ahead", ylabel="root mean square error, in half widths of the box", title="Imagined balls")
    axes.set_xticks([1, *steps[4::5]])
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"plot: {path}")


def main(argv: list[str] | None = None) -> dict[str, Imagination]:
    arguments = options(__doc__, argv)
    updates, count = (5, 20) if arguments.quick else (400, 200)
    torch.manual_seed(1)
    test = balls(_SEEN + _AHEAD, count)
    results = run_each(GRUS, lambda gru: train(gru, test, updates, arguments.device))
    report(results, "imagined error")
    guesses = baselines(test)
    ahead = (1, 5, 10, 20)
    print(f"{'squared error, steps ahead':28}" + "".join(f"{step:10}" for step in ahead) + f"{'mean':>10}")
    for name, errors in {**{name: result.errors for name, result in results.items()}, **guesses}.items():
        print(f"{name:28}" + "".join(f"{errors[step - 1]:10.4f}" for step in ahead) + f"{errors.mean():10.4f}")
    if arguments.plot:
        plot(results, guesses, arguments.plot)
    return results


if __name__ == "__main__":
    main()
