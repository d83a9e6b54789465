"""What `torch.onnx.export` makes of a layer: one `LSTM`, `GRU` or `RNN` node.

    torch.onnx.export(model, args)

Sizes may be dynamic. `lengths` becomes the node's `sequence_lens`. Needs the packages onnx and onnxscript. With
dynamo=False, PyTorch's older exporter translates its own layers, which _choice.py takes for it instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusedlstm._arguments import LayerArguments
from fusedlstm.cells import Cell

_INSTEAD = {
    "proj_size": "export a model without projections",
    "packed input": "give the layer padded input and lengths=",
    "lengths with dynamo=False": "export with dynamo=True",
    "reset": "export one step, and reset the state from call to call",
    "cell states and gates of all steps": "export one step, with the cell of the layer",
    "an ensemble": "export its members one by one",
    **dict.fromkeys(
        ("recurrent_dropout", "zoneout", "layer_norm", "peephole"),
        "ONNX has no such layer, and only dropout is gone in evaluation; export one with the plain cell",
    ),
    "int8 weights": "export it as it was before fusedlstm.quantize, and give the file to "
    "onnxruntime.quantization.quantize_dynamic",
}


def refuse(used: dict[str, bool]) -> None:
    """Raises NotImplementedError for the first of the features, by the names of `_INSTEAD`, that is used."""
    for feature, is_used in used.items():
        if is_used:
            raise NotImplementedError(f"Expected a model without {feature}, got one that has it: {_INSTEAD[feature]}")


def layer(cell: Cell, layer: LayerArguments) -> tuple[Tensor, list[Tensor]]:
    """output and last states of `<cell>_layer`, in operations that the exporter knows.

    Raises:
        NotImplementedError: the call uses what the ONNX operator cannot express.
    """
    refuse(
        {
            "proj_size": bool(layer.weight_hr),
            "packed input": layer.batch_sizes is not None,
            "reset": layer.reset is not None,
            "an ensemble": layer.input.dim() != 3,
        }
    )
    T, B, _ = layer.input.shape
    D, _, H = layer.initial[0].shape
    operator, order, attributes = cell.onnx
    attributes = {name: value * D if isinstance(value, list) else value for name, value in attributes.items()}

    def stacked(directions) -> Tensor:
        """All directions in one tensor, and from PyTorch's order of gates to ONNX's."""
        # Slices and not chunk: the exporter folds them into the weights.
        return torch.stack([torch.cat([w[k * H : k * H + H] for k in order]) for w in directions])

    biases = torch.cat([stacked(layer.bias_ih), stacked(layer.bias_hh)], dim=1) if layer.bias_ih else None
    sequence_lens = None if layer.lengths is None else layer.lengths.to(torch.int32)
    y, *last = torch.onnx.ops.symbolic_multi_out(
        operator,
        (layer.input, stacked(layer.weight_ih), stacked(layer.weight_hh), biases, sequence_lens, *layer.initial),
        attrs={"hidden_size": H, "direction": "bidirectional" if D == 2 else "forward", **attributes},
        dtypes=[layer.input.dtype] * (1 + len(cell.states)),
        shapes=[(T, D, B, H), *[(D, B, H)] * len(cell.states)],
    )
    return y.transpose(1, 2).reshape(T, B, D * H), last
