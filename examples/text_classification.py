"""Sentences of different lengths, read in both directions by two layers.

The sentences are generated: opinions joined by "and" and "but", each turned round by "not". What
follows the last "but" decides, so word order matters and a bag of words is wrong half the time.

torch.nn's layers read a PackedSequence: the lengths go to the CPU, the batch is sorted and copied. The fused ones
take the padded batch and `lengths`, as they are; the results are the same.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from examples.side_by_side import LAYERS, MakeLayer, Training, hidden_of, options, plot_losses, report, run_each

_GOOD = "good great lovely bright funny warm clever".split()
_BAD = "bad dull awful cold boring stupid loud".split()
_THINGS = "plot music acting ending film cast dialogue camera".split()
_WORDS = ["<pad>", "the", "is", "not", "and", "but", *_GOOD, *_BAD, *_THINGS]
_NUMBER_OF = {word: number for number, word in enumerate(_WORDS)}


def sentence(generator: random.Random) -> tuple[str, bool]:
    """A review of one to six opinions, and whether it is a good one."""
    words: list[str] = []
    score = 0
    for opinion in range(generator.randint(1, 6)):
        if opinion:
            joint = generator.choice(("and", "but"))
            words.append(joint)
            score = 0 if joint == "but" else score
        good, negated = generator.random() < 0.5, generator.random() < 0.3
        words += ["the", generator.choice(_THINGS), "is", *["not"] * negated]
        words.append(generator.choice(_GOOD if good else _BAD))
        # The first opinion after a "but" breaks ties.
        score = 2 * score + (1 if good != negated else -1)
    return " ".join(words), score > 0


def sentences(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Word numbers [T, count], lengths [count], labels [count]."""
    generator = random.Random(seed)
    drawn = [sentence(generator) for _ in range(count)]
    rows = [torch.tensor([_NUMBER_OF[word] for word in text.split()]) for text, _ in drawn]
    labels = torch.tensor([float(good) for _, good in drawn])
    return pad_sequence(rows), torch.tensor([len(row) for row in rows]), labels


class SentenceClassifier(nn.Module):
    """Words [T, B] and lengths [B] to the logit of "good" [B]."""

    def __init__(self, make_layer: MakeLayer, hidden_size: int = 48):
        super().__init__()
        self.embedding = nn.Embedding(len(_WORDS), 24)
        self.words = make_layer(24, hidden_size, num_layers=2, bidirectional=True)
        self.good = nn.Linear(2 * hidden_size, 1)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        vectors = self.embedding(words)
        if isinstance(self.words, (nn.LSTM, nn.GRU, nn.RNN)):
            packed = pack_padded_sequence(vectors, lengths.cpu(), enforce_sorted=False)
            _, state = self.words(packed)
        else:
            _, state = self.words(vectors, lengths=lengths)
        forward_end, backward_end = hidden_of(state)[-2:]
        return self.good(torch.cat((forward_end, backward_end), dim=-1)).squeeze(-1)


def fit(model: nn.Module, words: Tensor, lengths: Tensor, labels: Tensor, epochs: int) -> list[float]:
    """Adam on batches of 64; returns the mean loss of each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(labels)).to(labels.device).split(64):
            logits = model(words[:, batch], lengths[batch])
            loss = binary_cross_entropy_with_logits(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / len(labels))
    return losses


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The part of the sentences that are taken for what they are."""
    return ((logits > 0) == labels.bool()).float().mean().item()


def train(make_layer: MakeLayer, count: int = 2000, epochs: int = 8, device: str = "cpu") -> Training:
    """The score is the accuracy on other sentences."""
    model = SentenceClassifier(make_layer).to(device)
    losses = fit(model, *(data.to(device) for data in sentences(count, seed=1)), epochs)
    words, lengths, labels = (data.to(device) for data in sentences(500, seed=2))
    with torch.no_grad():
        return Training(losses, accuracy(model(words, lengths), labels))


def main(argv: list[str] | None = None) -> dict[str, Training]:
    arguments = options(__doc__, argv, takes_cell=True)
    count, epochs = (400, 2) if arguments.quick else (2000, 8)
    results = run_each(LAYERS[arguments.cell], lambda layer: train(layer, count, epochs, arguments.device))
    report(results, "test accuracy")
    if arguments.plot:
        plot_losses(results, arguments.plot, "Sentences of different lengths")
    return results


if __name__ == "__main__":
    main()
