"""What callers may pass to the layers: every check, with the exception types and texts of PyTorch's own.

Where those check nothing and read out of bounds, or fail by accident, there is an exception that says what was
expected and what was got. Nothing is converted or moved to make a call fit.
"""

from __future__ import annotations

import numbers
from itertools import pairwise

import torch
from torch import Tensor

from fusedlstm import _int8
from fusedlstm._out_of_memory import refuse_if_out_of_memory
from fusedlstm._private_torch import are_transforms_active, is_any_autocast_enabled
from fusedlstm._sizes import Sizes, weights_of
from fusedlstm.cells import Cell

_DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_INDEX_DTYPES = frozenset(
    (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
)


def sizes_of(cell: Cell, weights, bidirectional) -> Sizes:
    """The sizes that the first layer's weights imply."""
    D, name, G = 2 if bidirectional else 1, cell.layer.__name__, cell.gates
    if len(weights) == 0 or len(weights) % D:
        raise ValueError(f"{name}: Expected weights for each layer and each of {D} directions, got {len(weights)}")
    first = weights[0]
    counts = (2, 3, 4, 5) if cell.has_projection else (2, 4)
    if len(first) not in counts:
        expected = "2 to 5" if cell.has_projection else "2 or 4"
        raise ValueError(f"{name}: Expected {expected} tensors in weights[0], got {len(first)}")
    if not all(isinstance(tensor, Tensor) for tensor in first):
        raise TypeError(f"{name}: Expected tensors in weights[0], got {[type(t) for t in first]}")
    if first[0].dim() != 2:
        raise RuntimeError(
            f"{name}: Expected weight_ih_l0 of shape [{_rows_text(cell)}, input_size], got {list(first[0].shape)}"
        )
    proj_size = first[-1].shape[0] if len(first) % 2 else 0
    GH, I = first[0].shape
    for row, layer in enumerate(weights):
        if len(layer) != len(first):
            raise RuntimeError(f"{name}: Expected {len(first)} tensors in weights[{row}], got {len(layer)}")
    return Sizes(cell.name, I, GH // G, proj_size, len(weights) // D, D, len(first) > 3)


def checked_number(name: str, value) -> float:
    """`value`, of an argument of this name, as a number of Python: NumPy's are no constants to compilers."""
    if type(value) in (float, int):
        return value
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name}: Expected a number, got {type(value).__name__}")
    return float(value)


def checked_probability(name: str, value) -> float:
    """The same of a probability."""
    value = checked_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name}: Expected a probability of at least 0 and below 1, got {value}")
    return value


def _rows_text(cell: Cell) -> str:
    return "hidden_size" if cell.gates == 1 else f"{cell.gates} * hidden_size"


def check_tensors(x, hx, weights, sizes, B, is_int8=False):
    """Checks a call's tensors, of which `weights` are all in a row; is_int8: as those of `_int8.tensors_of`."""
    check_input(x, weights[0], sizes, is_int8)
    (check_int8_weights if is_int8 else check_weights)(weights, sizes, x)
    if hx is not None:
        check_states(hx, sizes, B, x, "hidden")


def refuse(error, *call):
    """Raises what PyTorch does, in place of the exception `error` that is being handled; or nothing."""
    refuse_if_out_of_memory(error)
    try:
        check_tensors(*call)
    except Exception as refusal:
        raise refusal from None


def check_input(x, weight, sizes, is_int8=False):
    name, input_size = sizes.name, sizes.input_size
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name}: Expected weight_ih_l0 to be a Tensor, got {type(weight).__name__}")
    if x.dtype is not (torch.float32 if is_int8 else weight.dtype):
        # nn.LSTM of packed input, and all layers under autocast, leave it to their products to fail.
        is_checked = (x.dim() == 3 or sizes.cell != "lstm") and not is_any_autocast_enabled()
        _refuse_dtype(x, weight, ValueError if is_checked else RuntimeError, is_int8)
    if x.dtype not in _DTYPES:
        raise RuntimeError(f"{name}: Expected dtype float32, float64, bfloat16 or float16, got {x.dtype}")
    if x.device != weight.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, "
            f"found input tensor at {x.device} and parameter tensor at {weight.device}"
        )
    if x.size(-1) != input_size:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {x.size(-1)}")


def check_cell_input(x, weight, input_size, is_int8=False):
    if x.size(1) != input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {x.size(1)} expected {input_size}")
    if x.dtype is not (torch.float32 if is_int8 else weight.dtype) and not is_any_autocast_enabled():
        _refuse_dtype(x, weight, RuntimeError, is_int8)


def _refuse_dtype(x, weight, error, is_int8):
    if is_int8:
        raise error(
            f"RNN input dtype ({x.dtype}) does not match the dtype in which quantized layers compute (torch.float32). "
            "Convert input: input.to(torch.float32)"
        )
    raise error(
        f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
        f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
    )


def check_weights(weights, sizes, x):
    expected, dtype, device = weights_of(sizes), x.dtype, x.device
    if len(weights) != len(expected):
        L, D = sizes.num_layers, sizes.directions
        raise RuntimeError(
            f"{sizes.name}: Expected {len(expected) // (L * D)} weights for each of {L} layers x {D} directions, "
            f"got {len(weights)}"
        )
    for tensor, (name, shape) in zip(weights, expected):
        if (
            not isinstance(tensor, Tensor)
            or tensor.shape != shape
            or tensor.dtype is not dtype
            or tensor.device != device
        ):
            _refuse_weight(tensor, sizes.name, name, shape, dtype, device)


def check_int8_weights(weights, sizes, x):
    expected = _int8.tensors_of(sizes)
    if len(weights) != len(expected):
        raise RuntimeError(f"{sizes.name}: Expected {len(expected)} tensors of quantized weights, got {len(weights)}")
    for tensor, (name, shape, dtype) in zip(weights, expected):
        if (
            not isinstance(tensor, Tensor)
            or tensor.shape != shape
            or tensor.dtype is not dtype
            or tensor.device != x.device
        ):
            _refuse_weight(tensor, sizes.name, name, shape, dtype, x.device)
    if x.device.type != "cpu":
        raise RuntimeError(
            f"{sizes.name}: Expected quantized layers and their input on the CPU, where alone they run, got them on "
            f"{x.device}; call model.cpu(), or fusedlstm.dequantize(model) first"
        )


def _refuse_weight(tensor, owner, name, shape, dtype, device):
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{owner}: Expected {name} to be a Tensor, got {type(tensor).__name__}")
    raise RuntimeError(
        f"{owner}: Expected {name} of shape {list(shape)}, {dtype}, on {device}, "
        f"got {list(tensor.shape)}, {tensor.dtype}, on {tensor.device}"
    )


def checked_states(hx, cell: Cell, owner, name="hx") -> list:
    """A state as users pass it, a tensor or a tuple of them, as a list of as many tensors as the cell has states."""
    if len(cell.states) == 1:
        if not isinstance(hx, Tensor):
            raise TypeError(f"{owner}: Expected {name} to be a Tensor, got {type(hx).__name__}")
        return [hx]
    names = ", ".join(cell.states)
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"{owner}: Expected {name} to be a tuple ({names}), got {type(hx).__name__}")
    if len(hx) != len(cell.states):
        operator = cell.name if owner == cell.layer.__name__ else f"{cell.name}_cell"
        raise RuntimeError(f"{operator} expects two hidden states, got {len(hx)}")
    for place, tensor in enumerate(hx):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{owner}: Expected {name}[{place}] to be a Tensor, got {type(tensor).__name__}")
    return list(hx)


def batched_states(states, is_batched) -> list:
    """States with their batch dimension, also for one sequence."""
    dim = 3 if is_batched else 2
    if any(state.dim() != dim for state in states):
        kind = f"{'' if is_batched else 'un'}batched {dim}-D"
        _refuse_dims(states, kind, dim)
    return states if is_batched else [state.unsqueeze(1) for state in states]


def _refuse_dims(states, kind, dim):
    if len(states) == 1:
        raise RuntimeError(f"For {kind} input, hx should also be {dim}-D but got {states[0].dim()}-D tensor")
    dims = ", ".join(f"{state.dim()}-D" for state in states)
    raise RuntimeError(f"For {kind} input, hx and cx should also be {dim}-D but got ({dims}) tensors")


def check_dense(owner, tensor, name):
    if tensor.layout is not torch.strided:
        raise RuntimeError(f"{owner}: Expected a dense (strided) {name}, got {tensor.layout}")


def check_states(states, sizes, B, x, name):
    _, _, H, P, L, D, _ = sizes
    for place, tensor in enumerate(states):
        expected = (L * D, B, (P or H) if place == 0 else H)
        own = name if len(states) == 1 else f"{name}[{place}]"
        check_dense(sizes.name, tensor, own)
        if tensor.shape != expected:
            raise RuntimeError(f"Expected {own} size {expected}, got {list(tensor.shape)}")
        if tensor.device != x.device:
            raise RuntimeError(
                f"Input and hidden tensors are not at the same device, "
                f"found input tensor at {x.device} and {name} tensor at {tensor.device}"
            )
        if tensor.dtype is not x.dtype:
            raise RuntimeError(
                f"Input and hidden tensors must have the same dtype, expected {x.dtype}, got {tensor.dtype} for {own}"
            )


def checked_cell_states(states, x, is_batched, H, owner) -> list:
    """A cell's states as [B, H] tensors."""
    expected = (x.size(0), H) if is_batched else (H,)
    if any(state.shape != expected for state in states):
        _refuse_cell_states(states, x, is_batched, H, owner)
    return states if is_batched else [state.unsqueeze(0) for state in states]


def _refuse_cell_states(states, x, is_batched, H, owner):
    for place, tensor in enumerate(states):
        if tensor.dim() not in (1, 2):
            own = "hidden" if len(states) == 1 else f"hx[{place}]"
            raise ValueError(f"{owner}: Expected {own} to be 1D or 2D, got {tensor.dim()}D instead")
    dim = 2 if is_batched else 1
    if any(state.dim() != dim for state in states):
        _refuse_dims(states, f"{'batched' if is_batched else 'unbatched'} {dim}-D", dim)
    for place, tensor in enumerate(states):
        if tensor.size(-1) != H:
            raise RuntimeError(f"hidden{place} has inconsistent hidden_size: got {tensor.size(-1)}, expected {H}")
        if is_batched and tensor.size(0) != x.size(0):
            raise RuntimeError(f"Input batch size {x.size(0)} doesn't match hidden{place} batch size {tensor.size(0)}")


def _is_readable(tensor) -> bool:
    """Whether values can be looked at: not while tracing or transforming, nor at a GPU's cost."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and not are_transforms_active()
    )


def check_packed(name, data, batch_sizes, **others):
    for option, other in others.items():
        if other is not None:
            raise ValueError(f"{name}: Expected no {option} with a PackedSequence, got one")
    if data.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
    check_dense(name, data, "PackedSequence")
    if batch_sizes.dtype is not torch.int64 and torch.compiler.is_exporting():
        # What PyTorch takes the result of pack_padded_sequence for.
        raise RuntimeError(
            f"{name}: Expected padded input and lengths= in torch.export, got a PackedSequence made inside the model, "
            f"where its batch_sizes are of {batch_sizes.dtype} instead of torch.int64"
        )
    if (
        batch_sizes.dim() != 1
        or batch_sizes.dtype != torch.int64
        or batch_sizes.device.type != "cpu"
        or batch_sizes.size(0) == 0
    ):
        raise RuntimeError(
            f"{name}: Expected batch_sizes to be a non-empty 1-D int64 tensor on the CPU, "
            f"got {list(batch_sizes.shape)}, {batch_sizes.dtype}, on {batch_sizes.device}"
        )
    if not _is_readable(batch_sizes):
        return
    counts = batch_sizes.tolist()
    if counts[-1] <= 0 or any(a < b for a, b in pairwise(counts)):
        raise RuntimeError(f"{name}: Expected batch_sizes to be positive and non-increasing, got {counts}")
    if sum(counts) != data.size(0):
        raise RuntimeError(
            f"{name}: Expected {sum(counts)} rows of packed data (the sum of batch_sizes), got {data.size(0)}"
        )


def first_batch_size(batch_sizes, indices, hx):
    """B of packed data; while tracing, where values cannot be read, from what else has this size."""
    if torch.jit.is_tracing():
        return batch_sizes[0]  # not int(), which would be a constant of the trace
    if torch.compiler.is_compiling():
        if hx is not None:
            return hx[0].size(1)
        if indices is not None:
            return indices.size(0)
        return batch_sizes[0].item()
    return int(batch_sizes[0])


def checked_lengths(name, lengths, x, is_batched):
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{name}: Expected lengths to be a Tensor, got {type(lengths).__name__}")
    if lengths.dtype not in _INDEX_DTYPES:
        raise TypeError(f"{name}: Expected lengths of an integer dtype, got {lengths.dtype}")
    T, B = x.size(0), x.size(1)
    expected = (B,) if is_batched else ()
    if lengths.shape != expected:
        raise RuntimeError(f"{name}: Expected lengths of shape {list(expected)}, got {list(lengths.shape)}")
    lengths = lengths.to(torch.int64)
    if lengths.numel() and _is_readable(lengths):
        low, high = (int(bound) for bound in lengths.aminmax())
        if low < 0 or high > T:
            raise ValueError(f"{name}: Expected lengths from 0 to {T}, got {low} to {high}")
    return lengths.reshape(B).to(x.device, non_blocking=True)


def checked_reset(name, reset, x, is_batched, batch_first):
    """reset as [T, B]."""
    if not isinstance(reset, Tensor):
        raise TypeError(f"{name}: Expected reset to be a Tensor, got {type(reset).__name__}")
    if reset.dtype is not torch.bool:
        raise TypeError(f"{name}: Expected reset of dtype torch.bool, got {reset.dtype}")
    T, B = x.size(0), x.size(1)
    expected = (T,) if not is_batched else (B, T) if batch_first else (T, B)
    if reset.shape != expected:
        raise RuntimeError(f"{name}: Expected reset of shape {list(expected)}, got {list(reset.shape)}")
    if reset.device != x.device:
        raise RuntimeError(f"{name}: Expected reset on {x.device}, got it on {reset.device}")
    if not is_batched:
        return reset.unsqueeze(1)
    return reset.transpose(0, 1) if batch_first else reset
