"""The fused layer, torch.nn's and the others: how each computes a workload, or why it does not.

`nn.LSTM` (`nn.GRU`, `nn.RNN`) stands for what its users write for the case: the module; a PackedSequence where
sequences have different lengths; a loop of one-step calls where the state is reset inside them; a
loop over nn.LSTMCell where the case is one of single steps; its own loop over steps where second derivatives are
asked for, which those of oneDNN and cuDNN lack.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fusedlstm import freeze, quantize
from fusedlstm.cells import CELLS, LSTM, Cell

from . import int8_peers, onnx_runtime, openvino_runtime
from .workload import INT8, Batch, Model, Workload, fused_class, hx_of, states_of


def fused_name(cell: Cell, precision: str = "float32") -> str:
    """Of the contender that is ours."""
    return FUSED_INT8 if precision == INT8 else fused_class(cell.layer).__name__


def baseline_name(cell: Cell) -> str:
    """Of the one that it replaces."""
    return f"nn.{cell.layer.__name__}"


@dataclass(frozen=True)
class Contender:
    """`why_not`: the reason this workload is out of reach, or None; asked before `build`."""

    name: str
    build: Callable[[Workload], Model]
    why_not: Callable[[Workload], str | None] = lambda workload: None


def _build_fused(workload: Workload, prepare: Callable[[nn.Module], nn.Module] = lambda module: module) -> Model:
    cell = workload.cell
    if workload.case.by_step:
        return _loop_over(prepare(workload.one_step(fused_class(cell.cell))))
    module = prepare(workload.layer(fused_class(cell.layer)))
    variable, resets = workload.case.variable, workload.case.resets

    def forward(batch: Batch):
        if variable == "packed":
            return _run_packed(module, batch)
        options = {}
        if variable == "lengths":
            options["lengths"] = batch.lengths
        if resets:
            options["reset"] = batch.reset
        output, hx = module(batch.input, hx_of(batch.states), **options)
        return output, *states_of(hx)

    stored_bytes = sum(value.nbytes for value in module.state_dict().values())
    return Model(forward, dict(module.named_parameters()), stored_bytes)


def _no_frozen(workload: Workload) -> str | None:
    if workload.training:
        return "inference only"
    return None if workload.device.type == "cpu" else "nothing is prepared but on a CPU"


def build_torch(
    workload: Workload, native: bool = False, prepare: Callable[[nn.Module], nn.Module] = lambda module: module
) -> Model:
    """torch.nn's layer. `native`: PyTorch's own loop over steps, without oneDNN or cuDNN."""
    if workload.case.by_step:
        return _loop_over(prepare(workload.one_step(workload.cell.cell)))
    module = prepare(workload.layer(workload.cell.layer))
    native = native or workload.mode == "second-order"
    run = _run_plain
    if workload.case.variable:
        run = _run_packed
    elif workload.case.resets:
        run = _run_with_resets
    backends = torch.backends
    libraries = backends.cudnn if workload.device.type == "cuda" else backends.mkldnn

    def forward(batch: Batch):
        with libraries.flags(enabled=False) if native else nullcontext():
            return run(module, batch)

    return Model(forward, dict(module.named_parameters()))


def _run_plain(module: nn.Module, batch: Batch):
    output, hx = module(batch.input, hx_of(batch.states))
    return output, *states_of(hx)


def _run_packed(module: nn.Module, batch: Batch):
    # lengths on the CPU and the sort are what packing asks for; they are part of its price.
    packed = pack_padded_sequence(batch.input, batch.lengths.cpu(), enforce_sorted=False)
    output, hx = module(packed, hx_of(batch.states))
    output, _ = pad_packed_sequence(output, total_length=batch.input.shape[0])
    return output, *states_of(hx)


def _run_with_resets(module: nn.Module, batch: Batch):
    """The loop of recurrent PPO programs: one call a step, the state masked before it."""
    outputs, hx = [], hx_of(batch.states)
    keep = (~batch.reset).to(batch.input.dtype).unsqueeze(-1)
    for step, kept in zip(batch.input.split(1), keep, strict=True):
        output, hx = module(step, hx_of([state * kept for state in states_of(hx)]))
        outputs.append(output)
    return torch.cat(outputs), *states_of(hx)


def _loop_over(cell: nn.Module) -> Model:
    def forward(batch: Batch):
        outputs, states = _run_steps(cell, batch.input.unbind(0), [state[0] for state in batch.states])
        return torch.stack(outputs), *(state.unsqueeze(0) for state in states)

    return Model(forward, {f"{name}_l0": value for name, value in cell.named_parameters()})


def _run_steps(step: Callable, inputs: Iterable[Tensor], states: Sequence[Tensor]):
    """The loop that users write around a cell: the outputs of all steps, and the last states."""
    outputs, hx = [], hx_of(states)
    has_tuple = isinstance(hx, tuple)
    for x in inputs:
        hx = step(x, hx)
        outputs.append(hx[0] if has_tuple else hx)
    return outputs, states_of(hx)


def _build_cell_loop(workload: Workload, compiled: bool = False) -> Model:
    """The loop a user writes with torch.nn's cell; `compiled`: with torch.compile on the step."""
    case, one_step = workload.case, getattr(torch, f"{workload.cell.name}_cell")
    parameters = {name: value.clone().requires_grad_(workload.training) for name, value in workload.state_dict.items()}

    def step(x: Tensor, hx, weight_ih, weight_hh, bias_ih, bias_hh):
        return one_step(x, hx, weight_ih, weight_hh, bias_ih, bias_hh)

    if compiled:
        step = torch.compile(step, dynamic=False)

    def forward(batch: Batch):
        sequence, last = batch.input, []
        for layer in range(case.num_layers):
            directions = []
            for direction in range(case.directions):
                suffix = f"_l{layer}" + ("_reverse" if direction else "")
                names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                weights = {name: parameters.get(name + suffix) for name in names}
                index = layer * case.directions + direction
                steps = sequence.unbind(0)[:: -1 if direction else 1]
                outputs, states = _run_steps(partial(step, **weights), steps, [state[index] for state in batch.states])
                directions.append(torch.stack(outputs[::-1] if direction else outputs))
                last.append(states)
            sequence = torch.cat(directions, dim=-1)
        return sequence, *(torch.stack(states) for states in zip(*last, strict=True))

    return Model(forward, parameters)


def _no_cell_loop(workload: Workload) -> str | None:
    case = workload.case
    if case.by_step:
        return "the case is a loop over a cell already"
    if case.proj_size or case.variable or case.resets or case.dropout:
        return f"the {workload.cell.cell.__name__} loop of the suite has no projection, lengths, resets or dropout"
    if case.T * case.num_layers * case.directions > 10_000:
        return "too many steps for a Python loop"
    return None


_LSTM_ONLY = "not available: LSTM only"  # in this suite


def _build_haste(workload: Workload) -> Model:
    import haste_pytorch

    case = workload.case
    module = haste_pytorch.LSTM(case.input_size, case.hidden_size, zoneout=0.0, dropout=0.0)
    module.to(workload.device)
    module.from_native_weights(*workload.state_dict.values())
    module.train(workload.training)

    def forward(batch: Batch):
        output, states = module(batch.input, batch.states)
        return output, *states

    return Model(forward, dict(module.named_parameters()))


def _no_haste(workload: Workload) -> str | None:
    if workload.cell is not LSTM:
        return _LSTM_ONLY
    if importlib.util.find_spec("haste_pytorch") is None:
        return "haste_pytorch is not installed"
    return _not_one_plain_layer(workload) or (
        None if workload.precision in ("float32", "float64") else "haste's LSTM computes float32 and float64 only"
    )


def _build_flashrnn(workload: Workload) -> Model:
    """FlashRNN leaves the input product to its caller and takes weights of one head here."""
    from flashrnn import flashrnn

    hidden = workload.case.hidden_size
    leaves = {name: value.clone().requires_grad_(workload.training) for name, value in workload.state_dict.items()}
    w_ih, w_hh, b_ih, b_hh = leaves.values()

    def forward(batch: Batch):
        steps, size = batch.input.shape[:2]
        product = nn.functional.linear(batch.input, w_ih).view(steps, size, 4, 1, hidden)
        states, last = flashrnn(
            product.transpose(0, 1),
            w_hh.view(4, 1, hidden, hidden),
            (b_ih + b_hh).view(4, 1, hidden),
            states=torch.stack(batch.states).view(2, size, 1, 1, hidden),
            function="lstm",
            backend="cuda_fused",
            dtype=workload.precision,
        )
        # states: (h, c), batch, step, head, unit
        h_n, c_n = (value.reshape(1, size, hidden) for value in last)
        return states[0].reshape(size, steps, hidden).transpose(0, 1), h_n, c_n

    return Model(forward, leaves)


def _no_flashrnn(workload: Workload) -> str | None:
    if workload.cell is not LSTM:
        return _LSTM_ONLY
    if importlib.util.find_spec("flashrnn") is None:
        return "flashrnn is not installed"
    return _not_one_plain_layer(workload) or (
        None if workload.precision in ("bfloat16", "float16") else "FlashRNN's fused LSTM computes bfloat16 and float16"
    )


def _not_one_plain_layer(workload: Workload) -> str | None:
    case = workload.case
    if workload.device.type != "cuda":
        return "needs a CUDA device"
    if case.num_layers > 1 or case.bidirectional or case.proj_size or not case.bias:
        return "one layer in one direction, with bias and without projection, only"
    if case.variable or case.resets or case.dropout or case.by_step:
        return "no lengths, resets, dropout or cells"
    return None


def _contenders(cell: Cell) -> dict[str, Contender]:
    """Ours first, then its peers, with what each calls itself for the cell."""
    baseline, loop = baseline_name(cell), f"{cell.cell.__name__} loop"
    contenders = (
        Contender(fused_name(cell), _build_fused),
        Contender(baseline, build_torch),
        Contender(f"{baseline} native", partial(build_torch, native=True)),
        Contender(loop, _build_cell_loop, _no_cell_loop),
        Contender(f"compiled {loop}", partial(_build_cell_loop, compiled=True), _no_cell_loop),
        Contender(FROZEN, partial(_build_fused, prepare=freeze), _no_frozen),
        Contender(ONNXRUNTIME, onnx_runtime.build, onnx_runtime.why_not),
        Contender("OpenVINO", openvino_runtime.build, openvino_runtime.why_not),
        Contender("haste", _build_haste, _no_haste),
        Contender("FlashRNN", _build_flashrnn, _no_flashrnn),
        Contender(FUSED_INT8, partial(_build_fused, prepare=quantize), int8_peers.why_no_int8),
        Contender(
            FUSED_INT8_FULL,
            partial(_build_fused, prepare=partial(quantize, reduce_range=False)),
            int8_peers.why_no_int8,
        ),
        Contender(TORCH_INT8, partial(build_torch, prepare=int8_peers.torch_int8), int8_peers.why_no_torch_int8),
        Contender(ONNXRUNTIME_INT8, int8_peers.build_onnxruntime_int8, int8_peers.why_no_onnxruntime_int8),
    )
    return {contender.name: contender for contender in contenders}


FROZEN = "frozen"  # ours against itself: below 1 by what freezing saves
ONNXRUNTIME = "ONNX Runtime"
RUNTIMES = (ONNXRUNTIME, "OpenVINO")  # what models are deployed in, on a CPU

FUSED_INT8, TORCH_INT8, ONNXRUNTIME_INT8 = "fused_int8", "torch_int8", "onnxruntime_int8"
FUSED_INT8_FULL = "fused_int8 of full range"  # for its error
# Our float32 at its fastest, the int8 of others, and the float32 that GRU and RNN stay in ONNX Runtime.
INT8_PEERS = (FROZEN, TORCH_INT8, ONNXRUNTIME_INT8, ONNXRUNTIME)

# By the cell's name and the contender's.
CONTENDERS = {name: _contenders(cell) for name, cell in CELLS.items()}


def peers_of(cell: Cell, precision: str = "float32") -> tuple[str, ...]:
    """All contenders of a precision but ours; the one that it replaces first, where it replaces one."""
    if precision == INT8:
        return INT8_PEERS
    others = {fused_name(cell), FUSED_INT8, FUSED_INT8_FULL, TORCH_INT8, ONNXRUNTIME_INT8}
    return tuple(name for name in CONTENDERS[cell.name] if name not in others)
