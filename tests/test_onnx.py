"""Export to ONNX, checked with onnxruntime."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

from fusedlstm import FusedLSTM, FusedLSTMCell

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [
    pytest.mark.usefixtures("cheap_onnx"),
    # The exporter's own.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
]


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.lstm = FusedLSTM(3, 4, **options)

    def forward(self, x, h, c, lengths=None):
        output, (h_n, c_n) = self.lstm(x, (h, c), lengths=lengths)
        return output, h_n, c_n


def _inputs(T, B, rows, with_lengths):
    inputs = [torch.randn(T, B, 3), torch.randn(rows, B, 4), torch.randn(rows, B, 4)]
    return inputs + [torch.randint(1, T + 1, (B,))] * with_lengths


def _export(model, inputs, **options):
    """By dynamo=True, with dynamic time and batch."""
    return torch.onnx.export(model, tuple(inputs), dynamo=True, verbose=False, **options)


def _dynamic_shapes(inputs):
    T, B = Dim("T", min=1), Dim("B", min=1)
    return ({0: T, 1: B}, {1: B}, {1: B}, {0: B})[: len(inputs)]


def _agree(file, model, sizes, inputs_of):
    """Whether onnxruntime finds in the file what the model computes, for inputs of all these sizes."""
    session = onnxruntime.InferenceSession(file)
    names = [i.name for i in session.get_inputs()]
    for T, B in sizes:
        inputs = inputs_of(T, B)
        found = session.run(None, dict(zip(names, (t.numpy() for t in inputs))))
        for actual, expected in zip(found, tree_leaves(model(*inputs))):
            np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=0, atol=2e-6)


def _cause(exception) -> str:
    """The text of the error that began it."""
    while exception.__cause__ is not None:
        exception = exception.__cause__
    return str(exception)


SIZES = [(5, 2), (1, 1), (40, 7)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, with_lengths, grad, of_program",
    [
        ({}, False, torch.enable_grad, False),
        ({"num_layers": 2, "bidirectional": True, "bias": False}, False, torch.no_grad, True),
        ({"num_layers": 2, "bidirectional": True}, True, torch.inference_mode, False),
    ],
    ids=["plain model", "stack program", "lengths model"],
)
def test_one_node_per_layer(options, with_lengths, grad, of_program, tmp_path):
    model = Model(**options).eval()
    L = options.get("num_layers", 1)
    rows = L * (2 if options.get("bidirectional") else 1)
    inputs = _inputs(5, 2, rows, with_lengths)
    shapes = _dynamic_shapes(inputs)
    with grad():
        if of_program:
            program = _export(torch.export.export(model, tuple(inputs), dynamic_shapes=shapes), ())
        else:
            program = _export(model, inputs, dynamic_shapes=shapes)
    nodes = [node.op_type for node in program.model.graph]
    assert nodes.count("LSTM") == L
    program.save(tmp_path / "model.onnx")
    _agree(tmp_path / "model.onnx", model, SIZES, lambda T, B: _inputs(T, B, rows, with_lengths))


class Padded(nn.Module):
    """Packs inside, as models do that are made for sequences of different lengths."""

    def __init__(self):
        super().__init__()
        self.lstm = FusedLSTM(3, 4, 2, bidirectional=True)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(self.lstm(packed)[0])[0]


def _full_lengths(T, B):
    """Lengths of which one is T: where all are shorter, pad_packed_sequence gives fewer steps."""
    return torch.randn(T, B, 3), torch.cat([torch.tensor([T]), torch.randint(1, T + 1, (B - 1,))])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Exporting a model to ONNX with a batch_size")
@pytest.mark.parametrize(
    "model, inputs_of",
    [
        (FusedLSTM(3, 4, 2, bidirectional=True, batch_first=True), lambda T, B: (torch.randn(T, B, 3),)),
        (FusedLSTM(3, 4, bias=False), lambda T, B: (torch.randn(T, B, 3),)),
        (FusedLSTMCell(3, 4), lambda T, B: (torch.randn(B, 3),)),
        (Padded(), _full_lengths),
    ],
    ids=["stack", "no bias", "cell", "packed"],
)
def test_the_exporter_of_traces(model, inputs_of, tmp_path):
    inputs = inputs_of(5, 2)
    axes = {"x": {0: "T", 1: "B"} if inputs[0].dim() == 3 else {0: "B"}, "lengths": {0: "B"}}
    names = list(axes)[: len(inputs)]
    file = tmp_path / "model.onnx"
    torch.onnx.export(model.eval(), inputs, file, dynamo=False, verbose=False, input_names=names, dynamic_axes=axes)
    _agree(file, model, SIZES, inputs_of)


class Options(nn.Module):
    """Calls a layer with options, which are made of its input."""

    def __init__(self, options_of, **module_options):
        super().__init__()
        self.lstm, self.options_of = FusedLSTM(3, 4, **module_options), options_of

    def forward(self, x):
        return self.lstm(x, **self.options_of(x))


REFUSED = {
    "proj_size": (Options(lambda x: {}, proj_size=2), "without projections"),
    "reset": (Options(lambda x: {"reset": x[..., 0] > 0}), "export one step"),
    "cell states and gates": (
        Options(lambda x: {"return_cell_states": True}),
        "export one step, with the cell of the layer",
    ),
    "lengths with dynamo=False": (Options(lambda x: {"lengths": x[0, :, 0].long()}), "dynamo=True"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "feature, dynamo",
    [
        ("proj_size", True),
        ("reset", True),
        ("reset", False),
        ("cell states and gates", True),
        ("cell states and gates", False),
        ("lengths with dynamo=False", False),
    ],
)
def test_what_onnx_lacks_is_refused_with_what_to_do(feature, dynamo, tmp_path):
    model, way_out = REFUSED[feature]
    with pytest.raises((torch.onnx.errors.OnnxExporterError, NotImplementedError)) as caught:
        torch.onnx.export(model.eval(), (torch.ones(5, 2, 3),), tmp_path / "m.onnx", dynamo=dynamo, verbose=False)
    assert f"without {feature}" in _cause(caught.value) and way_out in _cause(caught.value)


def test_packing_in_a_model_is_refused_with_what_to_do():
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        _export(Padded().eval(), (torch.ones(5, 2, 3), torch.tensor([5, 2])))
    assert "padded input and lengths=" in _cause(caught.value)


def test_a_program_with_variants_is_refused_with_what_to_do():
    """In words, as the model is, and not by the name of an operator that users never wrote."""
    program = torch.export.export(FusedLSTM(3, 4, layer_norm=True).eval(), (torch.ones(5, 2, 3),))
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        _export(program, ())
    assert "without layer_norm" in _cause(caught.value) and "with the plain cell" in _cause(caught.value)
