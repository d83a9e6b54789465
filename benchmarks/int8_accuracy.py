"""How far int8 results are from float64, by shape and number of steps: `python -m benchmarks.int8_accuracy`.

Prints a Markdown table. Errors are the root mean square of the difference from torch.nn's layer in float64 with the
weights before quantization, in percent of that of the result; of output and last states the largest. Weights are those
that torch.nn draws, input and initial states normal; each seed draws others. Mean over the seeds, and the largest.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from fusedlstm.cells import CELLS, LSTM

from .accuracy import Reference
from .cases import Case
from .contenders import CONTENDERS, FUSED_INT8, FUSED_INT8_FULL, ONNXRUNTIME_INT8, TORCH_INT8
from .options import cell_name, counts
from .report import markdown_line, markdown_table
from .workload import INT8, Workload

_STEPS = (10, 100, 1000)
_SHAPES = [
    *[Case("", 0, 1, H, H) for H in (64, 128, 256, 512)],
    Case("", 0, 8, 256, 256),
    Case("", 0, 1, 256, 256, num_layers=2),
    Case("", 0, 1, 256, 256, bidirectional=True),
]
_NAMES = (FUSED_INT8_FULL, FUSED_INT8, TORCH_INT8, ONNXRUNTIME_INT8)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.int8_accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cell", type=cell_name, default=LSTM.name, help=f"default: {LSTM.name}")
    parser.add_argument("--steps", type=counts, default=_STEPS, help="like 10,100 (default: 10,100,1000)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    arguments = parser.parse_args(argv)
    # Said by PyTorch whenever oneDNN is switched off, as for the float64 reference, on machines without Intel GPUs.
    warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
    for line in table(arguments.cell, _SHAPES, arguments.steps, arguments.seeds):
        print(line, flush=True)


def table(cell: str, shapes: Sequence[Case], steps: Sequence[int], seeds: int) -> Iterator[str]:
    """Its lines, as soon as each is known. A contender that computes nothing here has no column, but a last line that
    says why."""
    small = Workload(replace(shapes[0], T=1), "inference", INT8, torch.device("cpu"), CELLS[cell])
    excuses = {name: CONTENDERS[cell][name].why_not(small) for name in _NAMES}
    names = [name for name in _NAMES if excuses[name] is None]
    yield markdown_table([["B, I, H", "T", *(f"{name}, %" for name in names)]])
    for shape in shapes:
        for T in steps:
            of_seeds = [_errors(replace(small, case=replace(shape, T=T), seed=seed), names) for seed in range(seeds)]
            cells = [f"{sum(errors) / seeds:.2f} ({max(errors):.2f})" for errors in zip(*of_seeds, strict=True)]
            yield markdown_line([_label(shape), str(T), *cells])
    yield from (f"\n{name}: {why}" for name, why in excuses.items() if why)


def _errors(workload: Workload, names: Sequence[str]) -> list[float]:
    """In percent, one for each name."""
    reference = Reference(workload)
    return [100 * reference.error_of(CONTENDERS[workload.cell.name][name].build(workload)) for name in names]


def _label(shape: Case) -> str:
    text = f"{shape.B}, {shape.input_size}, {shape.hidden_size}"
    return text + f", {shape.num_layers} layers" * (shape.num_layers > 1) + ", bidirectional" * shape.bidirectional


if __name__ == "__main__":
    main()
