"""What the examples share: their options, and running one program with torch.nn's class and with the fused one."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

import fusedlstm

# Anything that makes a layer of given sizes: a class, or one with options.
MakeLayer = Callable[..., nn.Module]

LSTMS: dict[str, MakeLayer] = {"nn.LSTM": nn.LSTM, "FusedLSTM": fusedlstm.FusedLSTM}
GRUS: dict[str, MakeLayer] = {"nn.GRU": nn.GRU, "FusedGRU": fusedlstm.FusedGRU}
RNNS: dict[str, MakeLayer] = {"nn.RNN": nn.RNN, "FusedRNN": fusedlstm.FusedRNN}
CELLS: dict[str, MakeLayer] = {"nn.LSTMCell": nn.LSTMCell, "FusedLSTMCell": fusedlstm.FusedLSTMCell}

# By the name of the cell.
LAYERS = {
    "lstm": LSTMS,
    "gru": GRUS,
    "rnn": RNNS,
    "rnn_tanh": RNNS,
    "rnn_relu": {name: partial(make, nonlinearity="relu") for name, make in RNNS.items()},
}

Choice, Result = TypeVar("Choice"), TypeVar("Result")


def quick_parser(description: str, takes_cell: bool = False) -> argparse.ArgumentParser:
    """--quick, which every example has; --cell if taken."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    if takes_cell:
        parser.add_argument("--cell", choices=LAYERS, default="lstm", help="of the layers (default: lstm)")
    return parser


def options(description: str, argv: list[str] | None = None, takes_cell: bool = False) -> argparse.Namespace:
    """--quick, --device and --plot, the same in every example that trains on a device and draws; --cell if taken."""
    parser = quick_parser(description, takes_cell)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="save a figure of the result")
    return parser.parse_args(argv)


@dataclass
class Training:
    """What a training run leaves: a loss for each epoch (or update), and one score at the end."""

    losses: list[float] = field(default_factory=list)
    score: float = float("nan")
    seconds: float = 0.0


def hidden_of(state: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """h of a layer's state, which an LSTM has beside c."""
    return state[0] if isinstance(state, tuple) else state


def run_each(choices: dict[str, Choice], run: Callable[[Choice], Result], seed: int = 0) -> dict[str, Result]:
    """Runs the program with each class, or other choice, from the same seed, so that all start from equal weights.

    Sets `seconds` on the results that have it.
    """
    results = {}
    for name, choice in choices.items():
        torch.manual_seed(seed)
        start = time.perf_counter()
        results[name] = run(choice)
        if isinstance(results[name], Training):
            results[name].seconds = time.perf_counter() - start
        show_progress()
    return results


def show_progress(text: str = "") -> None:
    """Writes over the terminal's last line; nothing where stderr is a file."""
    if sys.stderr.isatty():
        print(f"{text:<79}", end="\r", file=sys.stderr, flush=True)


def report(results: dict[str, Training], score_name: str) -> None:
    """Prints first and last loss, score and time, and how far apart the loss curves are."""
    print(f"{'':14}{'first loss':>12}{'last loss':>12}{score_name:>16}{'seconds':>9}")
    for name, result in results.items():
        first, last = result.losses[0], result.losses[-1]
        print(f"{name:14}{first:12.5f}{last:12.5f}{result.score:16.4f}{result.seconds:9.2f}")
    print(f"largest difference between the loss curves: {loss_difference(results):.2g}")


def loss_difference(results: dict[str, Training]) -> float:
    """Largest distance of two loss curves at the same epoch."""
    curves = torch.tensor([result.losses for result in results.values()], dtype=torch.float64)
    return (curves.amax(0) - curves.amin(0)).max().item()


def plot_losses(results: dict[str, Training], path: Path, title: str, step: str = "epoch") -> None:
    """The loss curves over each other; equal curves hide each other but for the dashes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for (name, result), style in zip(results.items(), ("-", "--"), strict=False):
        axes.plot(range(1, len(result.losses) + 1), result.losses, style, label=name)
    axes.set(xlabel=step, ylabel="training loss", title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"plot: {path}")
