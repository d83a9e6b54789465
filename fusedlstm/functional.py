"""`lstm` and `lstm_cell` for those who hold the weights themselves; the modules are built on them.

The bookkeeping around layers: dropout, packing, batch_first, lengths, resets. What callers pass is
checked by _checks.py; the work is in the operators (ops.py), one call per layer.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from itertools import chain

import torch
from torch import _VF, Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from fusedlstm import _autograd, _checks, _library, _transforms, ops, reference


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: tuple[Tensor, Tensor] | None = None,
    return_cell_states: bool = False,
    return_gates: bool = False,
):
    """Run a stack of LSTM layers.

    Sizes: T steps, B batch, I input features, H hidden units, R features of h (the projection's
    size, or H), D directions, L layers. All tensors have one dtype (float32, float64, bfloat16 or
    float16) and one device, unless said otherwise; any strides; none is modified.

    Args:
        input: [T, B, I]; [B, T, I] with `batch_first`; [T, I] for one sequence; or a PackedSequence.
            T = 0 and B = 0 are allowed.
        hx: (h_0, c_0), [D*L, B, R] and [D*L, B, H] (without B for one sequence), or None for zeros.
        weights: for each layer, forward then reverse direction: weight_ih [4H, I], weight_hh
            [4H, R], then bias_ih [4H], bias_hh [4H] or neither, then weight_hr [R, H] where there
            is a projection. `nn.LSTM.all_weights` is such a list.
        bidirectional: each layer has two directions, side by side in its output.
        batch_first: for `input`, `output`, `reset` and the states of all steps.
        dropout: probability, applied between layers when `training`.
        lengths: integer [B] on any device, 0..T in any order. Steps past the end are not run:
            output is 0 there, h_n and c_n are those of the last step, and the reverse direction
            starts at each sequence's own end. Values are checked on the CPU only (no waiting for
            a GPU); on other devices those above T count as T.
        reset: bool [T, B]; where true, the state is replaced before that step. One direction only.
        reset_state: (h, c) like hx; what a reset puts in place. Zeros when None.
        return_cell_states: also return c of all steps, [D*L, T, B, H], differentiable, in float32
            for 16-bit inputs (packed input: [D*L, rows, H]).
        return_gates: also return the activated gates i, f, g, o of all steps, [D*L, T, B, 4H],
            without gradient.

    Returns:
        output, (h_n, c_n), and what the last two arguments ask for, in this order. output is
        [T, B, D*R] (or as `input` is arranged), h_n and c_n are shaped like hx.

    Raises:
        ValueError, RuntimeError, TypeError: as nn.LSTM does, saying what was expected and got.

    Equivalent to:
        m = nn.LSTM(...)  # with these weights
        m(input, hx)
    """
    sizes = _checks.sizes_of(weights, bidirectional)
    return run(
        input, hx, list(chain.from_iterable(weights)), sizes, batch_first, dropout, training,
        lengths, reset, reset_state, return_cell_states, return_gates,
    )  # fmt: skip


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run one step of one layer.

    Args:
        input: [B, I], or [I].
        hx: (h, c), each [B, H] (or [H]), or None for zeros.
        weight_ih, weight_hh, bias_ih, bias_hh: [4H, I], [4H, H], [4H], [4H].

    Returns:
        (h, c) after the step, shaped like hx.

    Raises:
        ValueError, RuntimeError, TypeError: as nn.LSTMCell does, saying what was expected and got.

    Equivalent to:
        i, f, g, o = (input @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh();  h = o.sigmoid() * c.tanh()
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"LSTMCell: Expected input to be a Tensor, got {type(input).__name__}")
    if input.dim() not in (1, 2):
        raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if (bias_ih is None) != (bias_hh is None):
        raise RuntimeError("LSTMCell: Expected both bias_ih and bias_hh or neither, got one")
    weights = [weight_ih, weight_hh] if bias_ih is None else [weight_ih, weight_hh, bias_ih, bias_hh]
    H, I = weight_hh.shape[-1], weight_ih.shape[-1]
    is_batched = input.dim() == 2
    x = input if is_batched else input.unsqueeze(0)
    if hx is not None:
        hx = _checks.checked_pair(hx, "LSTMCell")
        hx = _checks.checked_cell_state(hx, x, is_batched, H)
    _checks.check_cell_input(x, weight_ih)
    h, c = _step(x, hx, weights, (I, H, 0, 1, 1, bias_ih is not None))
    return (h, c) if is_batched else _without_first(h, c)


def _step(x, hx, weights, sizes):
    """One step of one layer: from [B, features] to [B, H] each."""
    H = sizes[1]
    is_compiling = torch.compiler.is_compiling()

    def as_layer():
        return x.unsqueeze(0), None if hx is None else [state.unsqueeze(0) for state in hx]

    if not (is_compiling or torch._C._is_any_autocast_enabled()):
        differentiable = [*weights, x, *(hx or ())] if torch.is_grad_enabled() else []
        cell = _CELLS.get(_operator(x, differentiable, H, False, None, None, is_compiling))
        if cell is not None:
            h, c = (x.new_zeros(x.size(0), H),) * 2 if hx is None else hx
            try:
                return cell(x, h, c, weights, x.is_cuda and x.dtype is torch.float32 and _is_tf32_on(True))
            except Exception:
                _checks.refuse(*as_layer(), weights, sizes, x.size(0))
                raise
    _, states = run(*as_layer(), weights, sizes, is_cell=True)
    return _without_first(*states)


def _without_first(h, c):
    """The states without their first dimension, as tensors of their own; graphs have no use for that."""
    return (h.squeeze(0), c.squeeze(0)) if torch.compiler.is_compiling() else (h.squeeze_(0), c.squeeze_(0))


def run(
    input, hx, weights, sizes, batch_first=False, dropout=0.0, training=False,
    lengths=None, reset=None, reset_state=None, return_cell_states=False, return_gates=False, is_cell=False,
    packing=None,
):  # fmt: skip
    """`lstm` with all weights in a row, and the sizes (see _checks.py) that they are checked against.

    packing: where `input` is the data of a PackedSequence, the other three of its fields.
    """
    batch_sizes = sorted_indices = unsorted_indices = None
    if isinstance(input, PackedSequence):
        input, *packing = input
    is_packed = packing is not None
    if is_packed:
        x = input
        batch_sizes, sorted_indices, unsorted_indices = packing
        _checks.check_packed(x, batch_sizes, lengths=lengths, reset=reset, reset_state=reset_state)
        is_batched = True
    else:
        x, is_batched = _time_major(input, batch_first)
    if hx is not None:
        hx = _checks.checked_pair(hx, "LSTM")
        if not is_packed or hx[0].dim() != 3 or hx[1].dim() != 3:
            hx = _checks.batched_state(hx, is_batched)
    if torch._C._is_any_autocast_enabled():
        x, hx, weights, reset_state = _autocast(x, hx, weights, reset_state, is_cell)

    input_size, H, P, L, D, bias = sizes
    shape = x.shape
    B = shape[1] if batch_sizes is None else _checks.first_batch_size(batch_sizes, sorted_indices, hx)
    try:
        if lengths is not None or reset is not None or reset_state is not None:
            lengths, reset, reset_state = _row_states(
                x, lengths, reset, reset_state, sizes, B, is_batched, batch_first
            )  # fmt: skip
        differentiable = [*weights, x, *(hx or ()), *(reset_state or ())] if torch.is_grad_enabled() else []
        wants_states, is_compiling = return_cell_states or return_gates, torch.compiler.is_compiling()
        operator = _operator(x, differentiable, H, wants_states, lengths, reset, is_compiling)
        # Kernels check all that they are given, and that it fits together; but they do not know `sizes`.
        fits = (
            len(weights) == L * D * ((4 if bias else 2) + (1 if P else 0))
            and weights[1].shape == (4 * H, P or H)
            and shape[-1] == input_size
        )
        if is_compiling or not fits or operator not in _KERNELS:
            _checks.check_tensors(x, hx, weights, sizes, B)
        if sorted_indices is not None and hx is not None:
            _checks.check_state(hx, sizes, B, x, "hidden")
            hx = [state.index_select(1, sorted_indices) for state in hx]
        states = _states_of_layers(x, hx, reset_state, sizes, B)
        rows = batch_sizes, lengths, reset
        asked = (4, return_cell_states), (3, return_gates)
        wanted = [place for place, is_asked in asked if is_asked] if wants_states else ()
        allow_tf32 = x.is_cuda and x.dtype is torch.float32 and _is_tf32_on(is_cell)
        output, h_n, c_n, *steps = _stack(
            operator, x, states, weights, sizes, rows, allow_tf32, dropout if training else 0, wanted
        )
        if type(output) is not Tensor or output.is_meta:  # a fake kernel may have run, which checks little
            _checks.check_tensors(x, hx, weights, sizes, B)
    except Exception:
        _checks.refuse(x, hx, weights, sizes, B)
        raise

    if is_packed:
        output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        if unsorted_indices is not None:
            h_n, c_n = h_n.index_select(1, unsorted_indices), c_n.index_select(1, unsorted_indices)
    else:
        output = _arranged(output, 0, is_batched, batch_first)
        if steps:
            steps = [_arranged(s.view(L * D, *shape[:2], s.size(-1)), 1, is_batched, batch_first) for s in steps]
        if not is_batched:
            h_n, c_n = h_n.squeeze(1), c_n.squeeze(1)
    return output, (h_n, c_n), *steps


def _states_of_layers(x, hx, reset_state, sizes, B):
    """h_0, c_0, reset_h and reset_c, each for all layers; the first two are zeros where there is no hx."""
    _, H, P, L, D, _ = sizes

    def of_layers(state):
        return [state] if L == 1 else state.chunk(L)

    if hx is None:
        c_0 = x.new_zeros(D, B, H)
        h_0 = x.new_zeros(D, B, P) if P else c_0
        initial = [h_0] * L, [c_0] * L
    else:
        initial = [of_layers(state) for state in hx]
    if reset_state is None:
        nothing = [None] * L
        return *initial, nothing, nothing
    return *initial, *[of_layers(state) for state in reset_state]


def _stack(operator, x, states, weights, sizes, rows, allow_tf32, dropout, wanted):
    """All layers: output of the last; of all, layer by layer, h_n, c_n and the results at the places `wanted`."""
    _, _, P, L, D, bias = sizes
    h_0, c_0, reset_h, reset_c = states
    each = len(weights) // L
    kept = []
    for layer in range(L):
        kinds = _by_kind(weights[layer * each : (layer + 1) * each], D, bias, P)
        result = operator(x, h_0[layer], c_0[layer], *kinds, *rows, reset_h[layer], reset_c[layer], allow_tf32)
        x = result[0]
        kept.append(result[1:3] + tuple([result[place] for place in wanted]) if wanted else result[1:3])
        if dropout != 0 and layer < L - 1:
            x = torch.dropout(x, dropout, True)
    return x, *(kept[0] if L == 1 else map(torch.cat, zip(*kept)))


def _by_kind(weights, D, bias, P):
    """One layer's weights as the operator takes them: of each kind those of all directions, none of absent kinds."""
    kinds = len(weights) // D
    lists = [*(zip(weights) if D == 1 else zip(weights[:kinds], weights[kinds:]))]
    if not bias:
        lists[2:2] = (), ()
    if not P:
        lists.append(())
    return lists


def _operator(x, differentiable, H, wants_states, lengths, reset, is_compiling):
    """What runs a layer: the cheapest operator that serves the call, or the reference."""
    is_transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    # A hidden size of 0, as nn.LSTMCell allows: nothing for a kernel to do.
    if H == 0 or (is_transformed and _transforms.need_reference(is_compiling)):
        return reference.lstm_layer
    if not x.is_cpu and not x.is_meta and _lacks_kernels(x.device):
        is_plain = not (is_transformed or wants_states) and lengths is None and reset is None
        return _torch_layer if is_plain else reference.lstm_layer
    # What is recorded for later must serve both with and without gradients; and of the two, only
    # lstm_layer can be called by AOTInductor, see _autograd.py. vmap hides what requires gradients.
    is_traced = torch._C._get_tracing_state() is not None
    is_exported = is_compiling and torch.compiler.is_exporting()
    if (is_traced or (is_exported and wants_states)) and _is_in_onnx_export():
        return _onnx_layer(wants_states, lengths, reset)
    if is_traced:
        _warn_of_converters()
    if is_transformed and _transforms.is_differentiating():
        return _autograd.transformed_layer
    if wants_states or is_traced or is_exported or (is_transformed and differentiable):
        return ops.lstm_layer
    if not (differentiable and any(tensor.requires_grad for tensor in differentiable)):
        return ops.lstm_layer_inference
    # Compilers, and whoever overrides operators, must see the operator itself.
    if is_compiling or torch.overrides.has_torch_function(differentiable):
        return ops.lstm_layer
    # Inference mode records nothing, whatever grad mode is inside.
    return ops.lstm_layer_inference if torch.is_inference_mode_enabled() else _autograd.layer


# What checks its arguments by itself.
_KERNELS = (ops.lstm_layer_inference, _autograd.layer, ops.lstm_layer)
# The same for one step between tensors of a cell's shapes, where that is faster.
_CELLS = {ops.lstm_layer_inference: _autograd.cell_inference, _autograd.layer: _autograd.cell}


@functools.cache
def _lacks_kernels(device: torch.device) -> bool:
    """Whether PyTorch's own LSTM must run on this device; says why, once."""
    reason = _library.why_no_kernels(device)
    if reason is not None:
        warnings.warn(f"FusedLSTM runs PyTorch's own LSTM: {reason}", RuntimeWarning, stacklevel=2)
    return reason is not None


# What torch.compiler.assume_constant_result does; calling it would import all of Dynamo, which takes seconds.
_lacks_kernels._dynamo_marked_constant = True


def _is_in_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()


# Dynamo takes PyTorch's for false.
_is_in_onnx_export._dynamo_marked_constant = True


def _onnx_layer(wants_states, lengths, reset):
    """What a trace holds for torch.onnx.export(dynamo=False), which knows PyTorch's own LSTM.

    Refuses what that lacks; and with dynamo=True the results that a translation of the operator cannot refuse.
    """
    from fusedlstm import onnx

    onnx.refuse(
        {
            "cell states and gates of all steps": wants_states,
            "lengths with dynamo=False": lengths is not None,
            "reset": reset is not None,
        }
    )
    return _torch_layer


# A trace takes what checks find as constants, and is none the worse for it; PyTorch does the same for its own checks.
warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module="fusedlstm")


def _warn_of_converters():
    """Says in time what the errors of converters do not: they name an operator that the user never wrote."""
    warnings.warn(
        "torch.jit.trace records fusedlstm's operators: the trace runs where fusedlstm is imported. Converters to "
        "other runtimes know PyTorch's own: give them fusedlstm.revert(model), or a trace of it",
        stacklevel=2,
    )


def _torch_layer(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, batch_sizes, *_):
    """PyTorch's own LSTM as a layer operator, for devices without kernels."""
    kinds = [kind for kind in (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr) if kind]
    flat = [tensor for direction in zip(*kinds) for tensor in direction]
    data = (input,) if batch_sizes is None else (input, batch_sizes)
    order = (False,) if batch_sizes is None else ()  # batch_first
    # training=True: cuDNN refuses a backward pass otherwise; there is no dropout in one layer.
    options = (bool(bias_ih), 1, 0.0, True, len(weight_ih) == 2)
    return _VF.lstm(*data, (h_0, c_0), flat, *options, *order)


def _is_tf32_on(is_cell) -> bool:
    """Whether the user lets nn.LSTM use TF32, or nn.LSTMCell, by either of PyTorch's two sets of switches.

    The one is cuDNN's, and on unless turned off; the other is two matrix products.
    """
    switch = torch.backends.cuda.matmul if is_cell else torch.backends.cudnn.rnn
    return switch.fp32_precision == "tf32"


# Dynamo cannot read the switches: a compiled graph keeps them as they were when it was made.
_is_tf32_on._dynamo_marked_constant = True


# Arrangement


def _time_major(input, batch_first):
    """The input as [T, B, I], and whether it has a batch dimension."""
    if not isinstance(input, Tensor):
        raise TypeError(f"LSTM: Expected input to be a Tensor or PackedSequence, got {type(input).__name__}")
    if input.layout is not torch.strided:
        raise RuntimeError(f"LSTM: Expected a dense (strided) input, got {input.layout}")
    dim = input.dim()
    if dim == 3:
        return (input.transpose(0, 1) if batch_first else input), True
    if dim != 2:
        raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {dim}D instead")
    return input.unsqueeze(1), False


def _arranged(tensor, time, is_batched, batch_first):
    """Undo `_time_major` for a tensor that has its time in dimension `time`, and batch next."""
    if not is_batched:
        return tensor.squeeze(time + 1)
    return tensor.transpose(time, time + 1) if batch_first else tensor


def _autocast(x, hx, weights, reset_state, is_cell):
    """Casts as autocast does for nn.LSTM and nn.LSTMCell: all to its dtype, except what is float64."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):
        return x, hx, weights, reset_state
    dtype = torch.get_autocast_dtype(device)
    if is_cell and x.is_cpu:
        # nn.LSTMCell is several operators on the CPU, of which those for the state are not cast but promoted.
        promoted = torch.promote_types(dtype, (x if hx is None else hx[1]).dtype)
        dtype = torch.float32 if promoted is torch.float32 else dtype

    def cast(tensor):
        is_eligible = isinstance(tensor, Tensor) and tensor.is_floating_point()
        return tensor.to(dtype) if is_eligible and tensor.dtype != torch.float64 else tensor

    hx, reset_state = (None if s is None else tuple(map(cast, s)) for s in (hx, reset_state))
    return cast(x), hx, list(map(cast, weights)), reset_state


def _row_states(x, lengths, reset, reset_state, sizes, B, is_batched, batch_first):
    """Checked lengths, reset and reset_state as the operator takes them."""
    if lengths is not None:
        lengths = _checks.checked_lengths(lengths, x, is_batched)
    if reset is None:
        if reset_state is not None:
            raise ValueError("LSTM: Expected reset with reset_state, got reset_state alone")
        return lengths, None, None
    if sizes[4] == 2:
        raise ValueError("LSTM: reset has no meaning with bidirectional=True, got both")
    if lengths is not None:
        raise ValueError("LSTM: Expected one of reset and lengths, got both")
    reset = _checks.checked_reset(reset, x, is_batched, batch_first)
    if reset_state is not None:
        reset_state = _checks.batched_state(_checks.checked_pair(reset_state, "LSTM", "reset_state"), is_batched)
        _checks.check_state(reset_state, sizes, B, x, "reset_state")
    return lengths, reset, reset_state
