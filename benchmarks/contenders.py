"""FusedLSTM, nn.LSTM and the others: how each computes a workload, or why it does not.

`nn.LSTM` stands for what its users write for the case: the module; a PackedSequence where
sequences have different lengths; a loop of one-step calls where the state is reset inside them; a
loop over nn.LSTMCell where the case is a cell; its own loop over steps where second derivatives are
asked for, which those of oneDNN and cuDNN lack.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .workload import Batch, Model, Workload

FUSED = "FusedLSTM"
BASELINE = "nn.LSTM"


@dataclass(frozen=True)
class Contender:
    """`why_not`: the reason this workload is out of reach, or None; asked before `build`."""

    name: str
    build: Callable[[Workload], Model]
    why_not: Callable[[Workload], str | None] = lambda workload: None


def _build_fused(workload: Workload) -> Model:
    import fusedlstm

    if workload.case.cell:
        return _loop_over(workload.cell(fusedlstm.FusedLSTMCell))
    module = workload.module(fusedlstm.FusedLSTM)
    variable, resets = workload.case.variable, workload.case.resets

    def forward(batch: Batch):
        if variable == "packed":
            return _run_packed(module, batch)
        options = {}
        if variable == "lengths":
            options["lengths"] = batch.lengths
        if resets:
            options["reset"] = batch.reset
        output, (h_n, c_n) = module(batch.input, (batch.h_0, batch.c_0), **options)
        return output, h_n, c_n

    return Model(forward, dict(module.named_parameters()))


def build_torch(workload: Workload, native: bool = False) -> Model:
    """nn.LSTM. `native`: PyTorch's own loop over steps, without oneDNN or cuDNN."""
    if workload.case.cell:
        return _loop_over(workload.cell(nn.LSTMCell))
    module = workload.module(nn.LSTM)
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
    output, (h_n, c_n) = module(batch.input, (batch.h_0, batch.c_0))
    return output, h_n, c_n


def _run_packed(module: nn.Module, batch: Batch):
    # lengths on the CPU and the sort are what packing asks for; they are part of its price.
    packed = pack_padded_sequence(batch.input, batch.lengths.cpu(), enforce_sorted=False)
    output, (h_n, c_n) = module(packed, (batch.h_0, batch.c_0))
    output, _ = pad_packed_sequence(output, total_length=batch.input.shape[0])
    return output, h_n, c_n


def _run_with_resets(module: nn.Module, batch: Batch):
    """The loop of recurrent PPO programs: one call a step, the state masked before it."""
    outputs, state = [], (batch.h_0, batch.c_0)
    keep = (~batch.reset).to(batch.input.dtype).unsqueeze(-1)
    for step, kept in zip(batch.input.split(1), keep, strict=True):
        output, state = module(step, (state[0] * kept, state[1] * kept))
        outputs.append(output)
    return torch.cat(outputs), *state


def _loop_over(cell: nn.Module) -> Model:
    def forward(batch: Batch):
        outputs, h, c = _run_steps(cell, batch.input.unbind(0), batch.h_0[0], batch.c_0[0])
        return torch.stack(outputs), h.unsqueeze(0), c.unsqueeze(0)

    return Model(forward, {f"{name}_l0": value for name, value in cell.named_parameters()})


def _run_steps(step: Callable, inputs: Iterable[Tensor], h: Tensor, c: Tensor):
    """The loop that users write around a cell: the outputs of all steps, and the last states."""
    outputs = []
    for x in inputs:
        h, c = step(x, (h, c))
        outputs.append(h)
    return outputs, h, c


def _build_cell_loop(workload: Workload, compiled: bool = False) -> Model:
    """The loop a user writes with nn.LSTMCell; `compiled`: with torch.compile on the step."""
    case = workload.case
    parameters = {name: value.clone().requires_grad_(workload.training) for name, value in workload.state_dict.items()}

    def step(x: Tensor, state: tuple[Tensor, Tensor], weight_ih, weight_hh, bias_ih, bias_hh):
        return torch.lstm_cell(x, state, weight_ih, weight_hh, bias_ih, bias_hh)

    if compiled:
        step = torch.compile(step, dynamic=False)

    def forward(batch: Batch):
        sequence, states = batch.input, []
        for layer in range(case.num_layers):
            directions = []
            for direction in range(case.directions):
                suffix = f"_l{layer}" + ("_reverse" if direction else "")
                names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                weights = {name: parameters.get(name + suffix) for name in names}
                index = layer * case.directions + direction
                steps = sequence.unbind(0)[:: -1 if direction else 1]
                outputs, h, c = _run_steps(partial(step, **weights), steps, batch.h_0[index], batch.c_0[index])
                directions.append(torch.stack(outputs[::-1] if direction else outputs))
                states.append((h, c))
            sequence = torch.cat(directions, dim=-1)
        h_n, c_n = (torch.stack(values) for values in zip(*states, strict=True))
        return sequence, h_n, c_n

    return Model(forward, parameters)


def _no_cell_loop(workload: Workload) -> str | None:
    case = workload.case
    if case.cell:
        return "the case is a loop over a cell already"
    if case.proj_size or case.variable or case.resets or case.dropout:
        return "the LSTMCell loop of the suite has no projection, lengths, resets or dropout"
    if case.T * case.num_layers * case.directions > 10_000:
        return "too many steps for a Python loop"
    return None


def _build_haste(workload: Workload) -> Model:
    import haste_pytorch

    case = workload.case
    module = haste_pytorch.LSTM(case.input_size, case.hidden_size, zoneout=0.0, dropout=0.0)
    module.to(workload.device)
    module.from_native_weights(*workload.state_dict.values())
    module.train(workload.training)

    def forward(batch: Batch):
        output, (h_n, c_n) = module(batch.input, (batch.h_0, batch.c_0))
        return output, h_n, c_n

    return Model(forward, dict(module.named_parameters()))


def _no_haste(workload: Workload) -> str | None:
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
            states=torch.stack((batch.h_0, batch.c_0)).view(2, size, 1, 1, hidden),
            function="lstm",
            backend="cuda_fused",
            dtype=workload.precision,
        )
        # states: (h, c), batch, step, head, unit
        h_n, c_n = (value.reshape(1, size, hidden) for value in last)
        return states[0].reshape(size, steps, hidden).transpose(0, 1), h_n, c_n

    return Model(forward, leaves)


def _no_flashrnn(workload: Workload) -> str | None:
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
    if case.variable or case.resets or case.dropout or case.cell:
        return "no lengths, resets, dropout or cells"
    return None


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(FUSED, _build_fused),
        Contender(BASELINE, build_torch),
        Contender("nn.LSTM native", lambda workload: build_torch(workload, native=True)),
        Contender("LSTMCell loop", _build_cell_loop, _no_cell_loop),
        Contender(
            "compiled LSTMCell loop",
            lambda workload: _build_cell_loop(workload, compiled=True),
            _no_cell_loop,
        ),
        Contender("haste", _build_haste, _no_haste),
        Contender("FlashRNN", _build_flashrnn, _no_flashrnn),
    )
}
PEERS = tuple(name for name in CONTENDERS if name != FUSED)
