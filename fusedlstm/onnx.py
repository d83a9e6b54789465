"""What `torch.onnx.export` makes of a layer: one `LSTM` node.

    torch.onnx.export(model, args)

Sizes may be dynamic. `lengths` becomes the node's `sequence_lens`. Needs the packages onnx and onnxscript. With
dynamo=False, PyTorch's older exporter translates its own LSTM, which functional.py runs for it instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

_INSTEAD = {
    "proj_size": "export a model without projections",
    "packed input": "give the layer padded input and lengths=",
    "lengths with dynamo=False": "export with dynamo=True",
    "reset": "export one step, and reset the state from call to call",
    "cell states and gates of all steps": "export one step, with FusedLSTMCell",
    "an ensemble": "export its members one by one",
}


def refuse(used: dict[str, bool]) -> None:
    """Raises NotImplementedError for the first of the features, by the names of `_INSTEAD`, that is used."""
    for feature, is_used in used.items():
        if is_used:
            raise NotImplementedError(f"Expected a model without {feature}, got one that has it: {_INSTEAD[feature]}")


def layer(
    input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
    batch_sizes, lengths, reset, reset_h, reset_c, allow_tf32,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """output, h_n and c_n of `ops.lstm_layer`, and its arguments, in operations that the exporter knows.

    Raises:
        NotImplementedError: the call uses what an ONNX LSTM cannot express.
    """
    refuse(
        {
            "proj_size": bool(weight_hr),
            "packed input": batch_sizes is not None,
            "reset": reset is not None,
            "an ensemble": input.dim() != 3,
        }
    )
    T, B, _ = input.shape
    D, _, H = h_0.shape
    biases = torch.cat([_stacked(bias_ih, H), _stacked(bias_hh, H)], dim=1) if bias_ih else None
    sequence_lens = None if lengths is None else lengths.to(torch.int32)
    y, h_n, c_n = torch.onnx.ops.symbolic_multi_out(
        "LSTM",
        (input, _stacked(weight_ih, H), _stacked(weight_hh, H), biases, sequence_lens, h_0, c_0),
        attrs={"hidden_size": H, "direction": "bidirectional" if D == 2 else "forward"},
        dtypes=[input.dtype] * 3,
        shapes=[(T, D, B, H), (D, B, H), (D, B, H)],
    )
    return y.transpose(1, 2).reshape(T, B, D * H), h_n, c_n


def _stacked(directions, H) -> Tensor:
    """All directions in one tensor, and from this library's gate order i, f, g, o to ONNX's i, o, f, g."""
    # Slices and not chunk: the exporter folds them into the weights.
    return torch.stack([torch.cat([w[k * H : k * H + H] for k in (0, 3, 1, 2)]) for w in directions])
