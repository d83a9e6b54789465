"""Export to ONNX, checked with onnxruntime."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from fusedlstm import FusedLSTM

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# The exporter's own.
pytestmark = [
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


def _export(model, inputs):
    from fusedlstm.onnx import translation_table

    T, B = Dim("T", min=1), Dim("B", min=1)
    shapes = [{0: T, 1: B}, {1: B}, {1: B}, {0: B}][: len(inputs)]
    return torch.onnx.export(
        model,
        tuple(inputs),
        dynamo=True,
        dynamic_shapes=tuple(shapes),
        custom_translation_table=translation_table(),
        verbose=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, with_lengths, grad",
    [
        ({}, False, True),
        ({"num_layers": 2, "bidirectional": True, "bias": False}, False, False),
        ({"num_layers": 2, "bidirectional": True}, True, False),
    ],
    ids=["plain", "stack", "lengths"],
)
def test_one_node_per_layer(options, with_lengths, grad, tmp_path):
    model = Model(**options).eval()
    L = options.get("num_layers", 1)
    rows = L * (2 if options.get("bidirectional") else 1)
    with torch.set_grad_enabled(grad):
        program = _export(model, _inputs(5, 2, rows, with_lengths))
    nodes = [node.op_type for node in program.model.graph]
    assert nodes.count("LSTM") == L
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for T, B in [(5, 2), (1, 1), (40, 7)]:
        inputs = _inputs(T, B, rows, with_lengths)
        names = [i.name for i in session.get_inputs()]
        found = session.run(None, dict(zip(names, (t.numpy() for t in inputs))))
        for actual, expected in zip(found, model(*inputs)):
            np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=0, atol=2e-6)


def test_projection_is_refused():
    from fusedlstm.onnx import translation_table

    inputs = [torch.randn(5, 2, 3), torch.randn(1, 2, 2), torch.randn(1, 2, 4)]
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        torch.onnx.export(
            Model(proj_size=2).eval(),
            tuple(inputs),
            dynamo=True,
            custom_translation_table=translation_table(),
            verbose=False,
        )
    cause = caught.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert "without proj_size" in str(cause)
