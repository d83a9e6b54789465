"""A language model of words after AWD-LSTM (Merity et al. 2018), with its dropouts and without.

The text is Python's own manual, as `help()` shows it: some topics of it train the model, others validate it. On so
little text a model soon knows its training words by heart: from then on each epoch makes it worse in other topics.
What AWD-LSTM drops, one mask a sequence each, puts that off:

- whole words of the embedding,
- elements of weight_hh: `weight_dropout` of FusedLSTM,
- units between the layers: variational dropout, which is the same at every step.

All runs start from equal weights and take equal steps. The embedding is the matrix of the scores too (tied weights).
Of the paper's recipe, Adam stands for averaged SGD, and segments of the text all have the same length.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, embedding

from examples.side_by_side import Training, options, run_each, show_progress
from fusedlstm import FusedLSTM

_COLUMNS, _STEPS = 10, 35
_UNKNOWN = "<unknown>"

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Dropouts:
    """Probabilities: of words of the embedding, of elements of weight_hh, of units before, between and after layers."""

    words: float = 0.0
    weights: float = 0.0
    units: float = 0.0


DROPOUTS = {
    "no dropout": Dropouts(),
    "weight dropout": Dropouts(weights=0.5),
    "all dropouts": Dropouts(words=0.1, weights=0.5, units=0.3),
}


def columns(words: list[str], number_of: dict[str, int]) -> Tensor:
    """The numbers of the words as [T, _COLUMNS], the text running down one column after the other."""
    numbers = torch.tensor([number_of.get(word, number_of[_UNKNOWN]) for word in words])
    return numbers[: len(words) // _COLUMNS * _COLUMNS].view(_COLUMNS, -1).T.contiguous()


def texts(length: int) -> tuple[Tensor, Tensor, int]:
    """Training words [T, B], `length` in all; validation words [T, B] of other topics; how many the model knows."""
    parts: tuple[list[str], list[str]] = [], []
    for place, topic in enumerate(sorted(topics)):
        parts[place % 5 == 0].extend(re.findall(r"\w+|[^\w\s]|\n\n", topics[topic].lower()))
    training, validation = parts[0][:length], parts[1][: length // 2]
    # A word that the model meets once is one that it does not know: it learns from these what unknown words are like.
    known = [word for word, count in Counter(training).items() if count > 1]
    number_of = {word: number for number, word in enumerate([_UNKNOWN, *known])}
    return columns(training, number_of), columns(validation, number_of), len(number_of)


def variational_dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Dropout of x [T, B, H] with one mask [B, H] for all steps."""
    return x * dropout(x.new_ones(x.shape[1:]), probability, training)


class LanguageModel(nn.Module):
    """Words [T, B] to the scores of each one's next [T, B, words], and the states to go on from."""

    def __init__(self, words: int, drop: Dropouts, size: int = 128, layers: int = 2):
        super().__init__()
        self.drop = drop
        self.embedding = nn.Parameter(torch.empty(words, size).normal_(std=size**-0.5))
        self.layers = nn.ModuleList(FusedLSTM(size, size, weight_dropout=drop.weights) for _ in range(layers))
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, words: Tensor, states: list[State | None]) -> tuple[Tensor, list[State]]:
        kept = dropout(self.embedding.new_ones(len(self.embedding), 1), self.drop.words, self.training)
        x = variational_dropout(embedding(words, kept * self.embedding), self.drop.units, self.training)
        next_states = []
        for layer, state in zip(self.layers, states, strict=True):
            x, state = layer(x, state)
            x = variational_dropout(x, self.drop.units, self.training)
            next_states.append(state)
        return x @ self.embedding.T + self.bias, next_states


@dataclass
class Course(Training):
    """A training run, and the validation loss of each epoch."""

    validation: list[float] = field(default_factory=list)


def run_through(model: LanguageModel, text: Tensor, optimizer: torch.optim.Optimizer | None = None) -> float:
    """Mean loss over the text [T, B], segment by segment with the states carried; trains if given an optimizer."""
    model.train(optimizer is not None)
    states: list = [None] * len(model.layers)
    total = 0.0
    with torch.set_grad_enabled(model.training):
        for words, following in zip(text[:-1].split(_STEPS), text[1:].split(_STEPS), strict=True):
            scores, states = model(words, states)
            loss = cross_entropy(scores.flatten(0, 1), following.flatten())
            total += loss.item() * len(words)
            if optimizer:
                states = [(h.detach(), c.detach()) for h, c in states]
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
    return total / (len(text) - 1)


def train(drop: Dropouts, length: int = 20_000, epochs: int = 15, device: str = "cpu") -> Course:
    """The score is the smallest validation loss of all epochs."""
    *parts, words = texts(length)
    training, validation = (part.to(device) for part in parts)
    model = LanguageModel(words, drop).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    course = Course()
    for epoch in range(epochs):
        course.losses.append(run_through(model, training, optimizer))
        course.validation.append(run_through(model, validation))
        show_progress(f"epoch {epoch + 1} of {epochs}: validation loss {course.validation[-1]:.3f}")
    course.score = min(course.validation)
    return course


def report(courses: dict[str, Course]) -> None:
    """Prints the runs beside each other by epoch: losses in nats a word, and the perplexity of the validation."""
    print(f"{'':5}" + "".join(f"{name:>24}" for name in courses))
    print("epoch" + f"{'train':>8}{'valid':>8}{'ppl':>8}" * len(courses))
    for epoch, losses in enumerate(zip(*(zip(c.losses, c.validation) for c in courses.values())), 1):
        print(f"{epoch:5}" + "".join(f"{seen:8.3f}{other:8.3f}{math.exp(other):8.1f}" for seen, other in losses))
    print(f"{'':18}{'best validation loss':>22}{'in epoch':>10}{'perplexity':>12}{'seconds':>9}")
    for name, course in courses.items():
        best = 1 + course.validation.index(course.score)
        print(f"{name:18}{course.score:22.3f}{best:10}{math.exp(course.score):12.1f}{course.seconds:9.1f}")


def plot(courses: dict[str, Course], path: Path) -> None:
    """Training and validation loss by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for (name, course), color in zip(courses.items(), ("C3", "C1", "C0"), strict=True):
        epochs = range(1, len(course.losses) + 1)
        axes.plot(epochs, course.validation, color=color, label=f"{name}, validation")
        axes.plot(epochs, course.losses, ":", color=color, label=f"{name}, training")
    axes.set(xlabel="epoch", ylabel="loss in nats a word", title="Words of Python's manual")
    axes.legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"plot: {path}")


def main(argv: list[str] | None = None) -> dict[str, Course]:
    arguments = options(__doc__, argv)
    length, epochs = (3000, 3) if arguments.quick else (20_000, 15)
    courses = run_each(DROPOUTS, lambda drop: train(drop, length, epochs, arguments.device))
    report(courses)
    if arguments.plot:
        plot(courses, arguments.plot)
    return courses


if __name__ == "__main__":
    main()
