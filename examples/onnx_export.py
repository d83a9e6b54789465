"""Export to ONNX: the digit classifier, trained, saved and run by onnxruntime without PyTorch.

FusedLSTM becomes one LSTM node, for every batch size. Needs the packages onnx, onnxscript and
onnxruntime.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import nn

from examples.digit_rows import DigitClassifier, digit_data, fit
from examples.side_by_side import LSTMS, quick_parser, run_each


@dataclass
class Export:
    """What the file holds, and how far its results are from PyTorch's."""

    lstm_nodes: int
    nodes: int
    kilobytes: float
    difference: float
    accuracy: float


def export(lstm_class: type[nn.Module], epochs: int, folder: Path) -> Export:
    """Trains, exports with the batch size left open, and runs the file on all test images."""
    images, labels, test = digit_data("cpu")
    model = DigitClassifier(lstm_class)
    fit(model, images[~test], labels[~test], epochs)
    path = folder / f"{lstm_class.__name__}.onnx"
    torch.onnx.export(
        model.eval(),
        (images[:3],),
        path,
        input_names=["images"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"images": images[test].numpy()})
    with torch.no_grad():
        expected = model(images[test])
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    return Export(
        lstm_nodes=nodes.count("LSTM"),
        nodes=len(nodes),
        kilobytes=path.stat().st_size / 1024,
        difference=(torch.from_numpy(scores) - expected).abs().max().item(),
        accuracy=(scores.argmax(1) == labels[test].numpy()).mean().item(),
    )


def main(argv: list[str] | None = None) -> dict[str, Export]:
    arguments = quick_parser(__doc__).parse_args(argv)
    epochs = 1 if arguments.quick else 10
    with tempfile.TemporaryDirectory() as folder:
        results = run_each(LSTMS, lambda lstm: export(lstm, epochs, Path(folder)))
    for name, result in results.items():
        print(
            f"{name}: {result.lstm_nodes} LSTM node of {result.nodes} nodes, {result.kilobytes:.0f} kB; in "
            f"onnxruntime test accuracy {result.accuracy:.4f}, scores within {result.difference:.1e} of PyTorch's"
        )
    return results


if __name__ == "__main__":
    main()
