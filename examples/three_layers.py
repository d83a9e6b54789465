"""RNN, LSTM and GRU side by side, as tutorials introduce them: what goes in, what comes out.

Three layers of PyTorch with the same sizes (10 features, 20 hidden units, 2 layers, batch first), and the fused ones
with the same weights. The output has h of the last layer at every step, the state what each layer ends with: h, and
for the LSTM c beside it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import nn

from examples.side_by_side import GRUS, LSTMS, RNNS

INPUT_SIZE, HIDDEN_SIZE, LAYERS = 10, 20, 2
BATCH, STEPS = 3, 5


@dataclass
class Comparison:
    """Shapes of the fused layer's results, its number of weights, and how far its values are from torch.nn's."""

    output: tuple[int, ...]
    states: list[tuple[int, ...]]
    weights: int
    difference: float


def compare(plain: nn.Module, fused: nn.Module) -> Comparison:
    """Gives both the same weights and the same sequences."""
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(BATCH, STEPS, INPUT_SIZE)
    expected, actual = _tensors(*plain(x)), _tensors(*fused(x))
    output, *states = (tuple(tensor.shape) for tensor in actual)
    return Comparison(
        output,
        states,
        weights=sum(parameter.numel() for parameter in fused.parameters()),
        difference=max((a - e).abs().max().item() for a, e in zip(actual, expected, strict=True)),
    )


def _tensors(output, state):
    return [output, *(state if isinstance(state, tuple) else [state])]


def main(argv: list[str] | None = None) -> dict[str, Comparison]:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    torch.manual_seed(0)
    results = {}
    for classes in (RNNS, LSTMS, GRUS):
        plain, fused = (make(INPUT_SIZE, HIDDEN_SIZE, LAYERS, batch_first=True) for make in classes.values())
        results[" ".join(classes)] = compare(plain, fused)
    print(f"input [batch, steps, features]: {[BATCH, STEPS, INPUT_SIZE]}")
    print(f"{'':19}{'output':14}{'h_n':13}{'c_n':13}{'weights':>8}{'largest difference':>20}")
    for name, result in results.items():
        shapes = [str(list(shape)) for shape in (result.output, *result.states)]
        output, h_n, c_n = [*shapes, "-"][:3]
        print(f"{name:19}{output:14}{h_n:13}{c_n:13}{result.weights:8}{result.difference:20.1e}")
    return results


if __name__ == "__main__":
    main()
