"""Int8 inference: the classifiers of digits and of sentences, trained, before and after `fusedlstm.quantize`.

Prints the size of each as it is saved, the time for all test data in one call and for one alone, and what becomes of
the scores and of the accuracy. Between the two stands the float32 model after `fusedlstm.freeze`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

import fusedlstm
from examples import digit_rows, text_classification
from examples.side_by_side import LAYERS, MakeLayer, quick_parser

Data = tuple[Tensor, ...]  # what a model takes, then the labels


@dataclass
class Measured:
    """A model in one form; milliseconds of a call with all test data and with the first; scores of all test data."""

    kilobytes: float
    milliseconds: tuple[float, float]
    scores: Tensor
    accuracy: float


def trained_on_digits(make_layer: MakeLayer, quick: bool) -> tuple[nn.Module, Data]:
    """The model and its test data, images [360, 8, 8] first."""
    images, labels, test = digit_rows.digit_data("cpu")
    model = digit_rows.DigitClassifier(make_layer, hidden_size=256)
    digit_rows.fit(model, images[~test], labels[~test], epochs=1 if quick else 12)
    return model, (images[test], labels[test])


def trained_on_sentences(make_layer: MakeLayer, quick: bool) -> tuple[nn.Module, Data]:
    """As above; words [T, 1000] first, then lengths [1000]."""
    model = text_classification.SentenceClassifier(make_layer)
    text_classification.fit(model, *text_classification.sentences(2000, seed=1), epochs=1 if quick else 5)
    return model, text_classification.sentences(1000, seed=2)


def measure(model: nn.Module, accuracy: Callable[..., float], data: Data, first: Data, calls: int) -> Measured:
    """`data`: as the model and `accuracy` take it; `first`: the inputs of a call with one sequence."""
    *inputs, labels = data
    with torch.inference_mode():
        scores = model(*inputs)
        return Measured(
            sum(value.nbytes for value in model.state_dict().values()) / 1000,
            (_milliseconds(model, inputs, calls), _milliseconds(model, first, 10 * calls)),
            scores,
            accuracy(scores, labels),
        )


def _milliseconds(model: nn.Module, inputs: Sequence[Tensor], calls: int) -> float:
    """The median of as many calls."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        model(*inputs)
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds)


def compare(
    model: nn.Module, accuracy: Callable[..., float], data: Data, first: Data, calls: int
) -> dict[str, Measured]:
    """The model as it is, frozen, and with int8 weights; arguments as those of `measure`."""
    model.eval()
    forms = {
        "float32": model,
        "frozen": fusedlstm.freeze(copy.deepcopy(model)),
        "int8": fusedlstm.quantize(copy.deepcopy(model)),
    }
    return {form: measure(module, accuracy, data, first, calls) for form, module in forms.items()}


def report(name: str, layer: str, results: dict[str, Measured]) -> None:
    float32, int8 = results["float32"], results["int8"]
    print(f"{name}, {layer:18}{'kB':>8}{'ms, all':>10}{'ms, one':>10}{'test accuracy':>16}")
    for form, result in results.items():
        every, one = result.milliseconds
        print(f"{form:{len(name) + 20}}{result.kilobytes:8.1f}{every:10.3f}{one:10.3f}{result.accuracy:16.4f}")
    difference = (int8.scores - float32.scores).square().mean().sqrt() / float32.scores.square().mean().sqrt()
    print(
        f"int8 against float32: scores {100 * difference:.2f} % apart (root mean square), accuracy "
        f"{100 * (int8.accuracy - float32.accuracy):+.2f} points\n"
    )


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Measured]]:
    arguments = quick_parser(__doc__, takes_cell=True).parse_args(argv)
    layer, make_layer = list(LAYERS[arguments.cell].items())[1]
    calls = 1 if arguments.quick else 20
    torch.manual_seed(0)
    model, data = trained_on_digits(make_layer, arguments.quick)
    digits = compare(model, digit_rows.accuracy, data, (data[0][:1],), calls)
    report("digits", layer, digits)
    torch.manual_seed(0)
    model, data = trained_on_sentences(make_layer, arguments.quick)
    words, lengths, _ = data
    first = words[: lengths[0], :1].contiguous(), lengths[:1]
    sentences = compare(model, text_classification.accuracy, data, first, calls)
    report("sentences", layer, sentences)
    return {"digits": digits, "sentences": sentences}


if __name__ == "__main__":
    main()
