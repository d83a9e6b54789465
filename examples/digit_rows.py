"""Handwritten digits read row by row: an image is a sequence of 8 rows of 8 pixels.

The 1797 real digits of scikit-learn; every fifth is kept for the test.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.side_by_side import LAYERS, MakeLayer, Training, hidden_of, options, plot_losses, report, run_each


class DigitClassifier(nn.Module):
    """Images [B, 8, 8] to class scores [B, 10], from the hidden state after the last row."""

    def __init__(self, make_layer: MakeLayer, hidden_size: int = 128):
        super().__init__()
        self.rows = make_layer(8, hidden_size, batch_first=True)
        self.classes = nn.Linear(hidden_size, 10)

    def forward(self, images: Tensor) -> Tensor:
        _, state = self.rows(images)
        return self.classes(hidden_of(state)[-1])


def digit_data(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images [N, 8, 8] in 0..1, labels [N], and which of them are for the test, bool [N]."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32, device=device)
    labels = torch.tensor(digits.target, device=device)
    return images, labels, torch.arange(len(labels), device=device) % 5 == 0


def fit(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> list[float]:
    """Adam on batches of 64; returns the mean loss of each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(labels)).to(labels.device).split(64):
            loss = cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / len(labels))
    return losses


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """The part of the images whose label has the highest score."""
    return (scores.argmax(1) == labels).float().mean().item()


def train(make_layer: MakeLayer, epochs: int = 20, device: str = "cpu") -> Training:
    """The score is the accuracy on the test images."""
    images, labels, test = digit_data(device)
    model = DigitClassifier(make_layer).to(device)
    losses = fit(model, images[~test], labels[~test], epochs)
    with torch.no_grad():
        return Training(losses, score=accuracy(model(images[test]), labels[test]))


def main(argv: list[str] | None = None) -> dict[str, Training]:
    arguments = options(__doc__, argv, takes_cell=True)
    epochs = 2 if arguments.quick else 20
    results = run_each(LAYERS[arguments.cell], lambda layer: train(layer, epochs, arguments.device))
    report(results, "test accuracy")
    if arguments.plot:
        plot_losses(results, arguments.plot, "Handwritten digits, row by row")
    return results


if __name__ == "__main__":
    main()
