"""Export to ONNX: one `LSTM` node per layer.

    torch.onnx.export(
        model, args, dynamo=True, custom_translation_table=fusedlstm.onnx.translation_table()
    )

Sizes may be dynamic. `lengths` becomes the node's `sequence_lens`. What the node cannot express
(projections, resets, packed input, cell states of all steps, 16-bit accumulation rules) is refused.
Needs the package onnxscript.
"""

from __future__ import annotations

from collections.abc import Callable

from fusedlstm import ops

_DIRECTIONS = {1: "forward", 2: "bidirectional"}


def translation_table() -> dict[Callable, Callable]:
    """What `torch.onnx.export(..., custom_translation_table=...)` takes for fusedlstm's operators.

    Raises:
        ImportError: onnxscript is not installed.
        NotImplementedError (during the export): the model uses what an ONNX LSTM cannot express.
    """
    from onnxscript import opset18 as op

    def inference(
        input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
        batch_sizes=None, lengths=None, reset=None, reset_h=None, reset_c=None, allow_tf32=False,
    ):  # fmt: skip
        refused = {"proj_size": weight_hr, "packed input": batch_sizes is not None}
        refused["reset"] = reset is not None
        for feature, is_used in refused.items():
            if is_used:
                raise NotImplementedError(f"Expected a model without {feature}, as ONNX LSTM has none")
        H = weight_hh[0].shape[1]
        bias = None
        if bias_ih:
            both = [op.Concat(reordered(b_ih, H), reordered(b_hh, H), axis=0) for b_ih, b_hh in zip(bias_ih, bias_hh)]
            bias = stacked(both)
        y, h_n, c_n = op.LSTM(
            input,
            stacked([reordered(w, H) for w in weight_ih]),
            stacked([reordered(w, H) for w in weight_hh]),
            bias,
            None if lengths is None else op.Cast(lengths, to=6),  # 6: int32
            h_0,
            c_0,
            hidden_size=H,
            direction=_DIRECTIONS[len(weight_ih)],
        )
        # [T, D, B, H] to [T, B, D*H]; 0 keeps a dimension.
        output = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        return output, h_n, c_n

    def training(*args, **kwargs):
        # ONNX has neither gates nor cell states of all steps. Only a model that returns them reads
        # these two: an empty tensor makes it fail instead of giving wrong values.
        nothing = op.Constant(value_floats=[])
        return *inference(*args, **kwargs), nothing, nothing

    def reordered(weight, H):
        """From this library's gate order i, f, g, o to ONNX's i, o, f, g."""
        # Slices and not Split: the exporter folds them into the weights.
        parts = [
            op.Slice(weight, op.Constant(value_ints=[k * H]), op.Constant(value_ints=[k * H + H])) for k in (0, 3, 1, 2)
        ]
        return op.Concat(*parts, axis=0)

    def stacked(directions):
        axis = op.Constant(value_ints=[0])
        return op.Concat(*(op.Unsqueeze(w, axis) for w in directions), axis=0)

    return {ops.lstm_layer_inference: inference, ops.lstm_layer: training}
