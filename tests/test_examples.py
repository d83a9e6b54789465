"""Every example runs in its short form, and both layers give the same result in it."""

import importlib
import math
from pathlib import Path

import pytest
import torch

from examples.side_by_side import LAYERS

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TRAININGS = [
    "cell_loop",
    "digit_rows",
    "gradient_penalty",
    "next_item",
    "recurrent_a2c",
    "sine_forecast",
    "text_classification",
    "world_model",
]
OTHER_CELLS = [("digit_rows", "gru"), ("digit_rows", "rnn_relu"), ("text_classification", "rnn")]
OTHERS = ["language_model", "onnx_export", "quantize", "three_layers"]


@pytest.fixture(autouse=True)
def _one_thread():
    # Layers this small gain nothing from more threads, and other tests run beside these.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_example_is_tested():
    found = {path.stem for path in EXAMPLES.glob("*.py")} - {"__init__", "side_by_side"}
    assert found == {*TRAININGS, *OTHERS}


@pytest.mark.parametrize(
    "name, cell",
    [(name, []) for name in TRAININGS] + [(name, ["--cell", cell]) for name, cell in OTHER_CELLS],
    ids=lambda value: value if isinstance(value, str) else "".join(value[1:]),
)
def test_training_agrees(name, cell, tmp_path, capsys):
    """The loss curves are as close as rounding leaves them after so few updates. Figures do not ask the cell."""
    figure = tmp_path / "figure.png"
    chosen = cell or ["--plot", str(figure)]
    results = importlib.import_module(f"examples.{name}").main([*chosen, "--quick"])
    if cell:
        assert list(results) == list(LAYERS[cell[1]])
    torch_run, fused_run = results.values()
    torch.testing.assert_close(fused_run.losses, torch_run.losses, rtol=1e-4, atol=1e-6)
    assert len(set(torch_run.losses)) == len(torch_run.losses), "the loss does not move"
    assert math.isfinite(fused_run.score)
    assert fused_run.score == pytest.approx(torch_run.score, rel=1e-2, abs=1e-6)
    assert cell or figure.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in results)


def test_language_model_learns(tmp_path, capsys):
    """From epoch to epoch, and the slower the more is dropped."""
    figure = tmp_path / "figure.png"
    courses = importlib.import_module("examples.language_model").main(["--quick", "--plot", str(figure)])
    for course in courses.values():
        assert course.losses == sorted(course.losses, reverse=True)
        assert course.score == min(course.validation) < course.losses[0]
    plain, _, every = courses.values()
    assert all(dropped > whole for dropped, whole in zip(every.losses, plain.losses, strict=True))
    assert figure.read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert all(name in lines[0] for name in courses) and max(map(len, lines[:-1])) <= 80


@pytest.mark.slow
def test_dropouts_lower_the_validation_loss():
    example, courses = importlib.import_module("examples.language_model"), []
    for name in ("no dropout", "all dropouts"):
        torch.manual_seed(0)
        courses.append(example.train(example.DROPOUTS[name], length=5000, epochs=18))
    plain, every = courses
    assert plain.score > every.score + 0.06
    assert plain.validation[-1] > plain.score + 0.1, "it does not overfit"


@pytest.mark.slow
def test_imagined_balls_beat_guesses():
    example = importlib.import_module("examples.world_model")
    torch.manual_seed(5)
    test = example.balls(60, 200)
    imagined = example.train(example.GRUS["FusedGRU"], test, updates=320)
    guesses = torch.stack([*example.baselines(test).values()])
    assert imagined.score < 0.3 * guesses.mean(1).min()
    assert (imagined.errors < guesses).all()


def test_three_layers_agree(capsys):
    results = importlib.import_module("examples.three_layers").main([])
    shapes = {name: (result.output, result.states) for name, result in results.items()}
    state = (2, 3, 20)
    assert shapes == {
        "nn.RNN FusedRNN": ((3, 5, 20), [state]),
        "nn.LSTM FusedLSTM": ((3, 5, 20), [state, state]),
        "nn.GRU FusedGRU": ((3, 5, 20), [state]),
    }
    # Both round two layers' sums of 30 terms of size one in float32.
    assert all(result.difference < 1e-5 for result in results.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name in results)


@pytest.mark.parametrize("cell", [cell for cell in LAYERS if cell != "rnn"])  # which is rnn_tanh
def test_quantized_models_agree(cell, capsys):
    results = importlib.import_module("examples.quantize").main(["--quick", "--cell", cell])
    for forms in results.values():
        float32, frozen, int8 = forms.values()
        torch.testing.assert_close(frozen.scores, float32.scores, rtol=1e-4, atol=1e-5)
        # Each product is off by 1 % of what it adds to a gate, about, and no two in the same way.
        assert 0 < (int8.scores - float32.scores).norm() / float32.scores.norm() < 0.03
        # A quarter of the layer, and the embedding and the classifier as they were.
        assert 0.25 < int8.kilobytes / float32.kilobytes < 0.4
        assert frozen.kilobytes == float32.kilobytes
    printed = capsys.readouterr().out
    assert f"digits, {list(LAYERS[cell])[1]}" in printed and "int8 against float32: scores" in printed


@pytest.mark.slow
def test_quantized_models_are_as_accurate(monkeypatch):
    """How far the scores of each cell are apart, test_quantized_models_agree says."""
    example = importlib.import_module("examples.quantize")
    monkeypatch.setattr(example, "_milliseconds", lambda *_: math.nan)  # which test_quantized_models_agree measures
    for forms in example.main([]).values():
        assert forms["float32"].accuracy > 0.9
        assert forms["int8"].accuracy >= forms["float32"].accuracy - 0.005


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_onnx")
def test_onnx_export_agrees(capsys):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    example = importlib.import_module("examples.onnx_export")
    results = example.main(["--quick"])
    fused = results["FusedLSTM"]
    assert fused.lstm_nodes == 1
    # Scores are of size one; both runtimes round about 128-term sums in float32.
    assert fused.difference < 1e-5
    assert fused.accuracy == pytest.approx(results["nn.LSTM"].accuracy, abs=1e-2)
    assert "FusedLSTM: 1 LSTM node" in capsys.readouterr().out
    for option in ("--plot", "--device"):  # it draws nothing and runs on the CPU: neither is taken and ignored
        with pytest.raises(SystemExit):
            example.main(["--quick", option, "cpu"])
        assert f"unrecognized arguments: {option}" in capsys.readouterr().err
