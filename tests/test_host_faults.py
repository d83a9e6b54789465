"""Faults planted in the host code of the CUDA kernels, each of which the emulated tests must notice.

As test_cuda_faults.py plants them in the kernels: a fault is a change to the text of a source. One module has all of
them, and is the control of each while none is awake.
"""

import functools
import re
from dataclasses import dataclass, field

import emulator
import planted_faults
import pytest
import torch
from emulated_layer import EVERYTHING, Emulated, Layer
from test_cuda_faults import WRONG

from fusedlstm.cells import GRU, RNN_RELU

HOST_CODE = (
    "layer.cpp",
    "prepared_layer.cpp",
    "layer_forward.cpp",
    "layer_backward.cpp",
    "layer_gradients.cpp",
    "hidden_recurrence.cpp",
)
DEVICE_CODE = ("stream.cu", "projection.cu")  # all that is run of it, but for resident kernels
# It is compiled for float32 alone, as the layers are.
FLOAT_ALONE = [
    ("dtypes.h", f"return f({other}{{}});", "return f(float{});") for other in ("double", "BFloat16", "Float16")
]
LENGTHS = [4, 1, 3, 0, 2]
PACKED = {"lengths": [4, 3, 3, 2, 1], "packed": True, "directions": 2}
RESETS = {"resets": True, "reset_states": True}
GATED = {"cell": GRU}
PROJECTED = {"proj_size": 5}
UNWRITTEN = "which nothing has written"
OUTSIDE = "outside every buffer"
INPUT_GRADIENT = "d_x, d_from_input, layer.weight_ih[d]"
WEIGHT_GRADIENT = "p.multiply(grads.weight_hh[d], d_from_hidden.transposed(), previous[d])"
STATES_OF_MEMBER = "for (int i = 0; i < kMaxStates; ++i) each[i] = of_member(each[i], m);"
HIDDEN = 'workspace("hidden", layer.dtype, {layer.rows, D * H})'


@dataclass(frozen=True)
class Fault(planted_faults.Fault):
    transport: str = "stream"
    layer: dict = field(default_factory=dict)
    members: int = 1
    hidden: int = 21  # no multiple of 16 bytes


FAULTS = [
    Fault("steps of the wrong direction", "prepared_layer.h", "return d == 0 ? position : layer.steps - 1 - position;",
          "return position;", rf"{UNWRITTEN}|{WRONG}", layer=PACKED),
    Fault("packed rows looked for where dense ones are", "prepared_layer.h",
          "layer.batch_sizes ? offsets_[static_cast<size_t>(step)] : step * layer.batch", "step * layer.batch",
          rf"{OUTSIDE}|{UNWRITTEN}|{WRONG}", layer=PACKED),
    Fault("lengths of packed rows a step too long", "prepared_layer.cpp", "b < layer.rows_at(step)",
          "b < layer.rows_at(step > 0 ? step - 1 : 0)", rf"{OUTSIDE}|{UNWRITTEN}|race|{WRONG}", layer=PACKED),
    Fault("projection given back before the recurrence", "layer_forward.cpp",
          "project_input(p, d, pre_gates[d], a);",
          'project_input(p, d, Buffer(host, "early", layer.acc_dtype(), pre_gates[d].shape()), a);', OUTSIDE),
    Fault("weights given back before the launch", "prepared_layer.h",
          "a.weight_hh[d] = resident_weight(d, plan.shape.pass == Pass::kBackward, memory.weights[d]).data;",
          "{ Buffer early; a.weight_hh[d] = resident_weight(d, plan.shape.pass == Pass::kBackward, early).data; }",
          OUTSIDE, transport="local"),
    Fault("padding of the weights not cleared", "prepared_layer.cpp", "if (pitch != H) host.zero(memory);", "",
          UNWRITTEN, transport="local"),
    Fault("weights not transposed", "prepared_layer.h",
          "resident_weight(d, plan.shape.pass == Pass::kBackward, memory.weights[d])",
          "resident_weight(d, false, memory.weights[d])",
          WRONG, transport="local"),
    Fault("batch-first projection read as time-first", "layer_forward.cpp", "a.pre_gates_stride_t = width;",
          "a.pre_gates_stride_t = layer.batch * width;", rf"{OUTSIDE}|{WRONG}", layer={"batch_first": True}),
    Fault("previous state not reset", "stream.cu", "is_reset(rows, clock, t)", "false",
          WRONG, layer=RESETS),
    Fault("previous state of the other direction", "stream.cu",
          "row_of(rows, clock.previous(t), own.b) * rows.D + d", "row_of(rows, clock.previous(t), own.b) * rows.D",
          WRONG, layer=PACKED),
    Fault("padding taken for input", "layer_gradients.cpp", "if (!layer.has_idle_rows()) return all;", "return all;",
          WRONG, layer={"lengths": LENGTHS}),
    Fault("running rows end too late", "stream.cu", "t < length", "t <= length", WRONG, layer={"lengths": LENGTHS}),
    Fault("hidden states of the wrong gate", "stream.cu", "(row * kSizes.saved + k) * H",
          "(row * kSizes.saved + (k + 3) % 4) * H", WRONG,
          layer=PROJECTED),
    Fault("idle rows not cleared", "prepared_layer.cpp", "if (layer.has_idle_rows()) host.zero(memory);", "", UNWRITTEN,
          layer={"lengths": LENGTHS}),
    Fault("sums of reset states not cleared", "layer_backward.cpp", "p.host.zero(r.d_reset_state[i]);", "", UNWRITTEN,
          layer=RESETS),
    Fault("one direction's input gradient lost", "layer_gradients.cpp",
          f"p.multiply_add({INPUT_GRADIENT})", f"p.multiply({INPUT_GRADIENT})", WRONG, layer={"directions": 2}),
    Fault("second bias forgotten", "layer_gradients.cpp", "if (!bias_hh.data) return;", "return;", WRONG),
    Fault("lengths of the first member", "layer.cpp", "one.lengths += m * batch;", "", WRONG,
          layer={"lengths": LENGTHS}, members=2),
    Fault("states of the first member", "layer.cpp", STATES_OF_MEMBER,
          STATES_OF_MEMBER.replace("m)", "0)"), WRONG, members=2),
    Fault("input's gradient from what n's reset scales", "layer_gradients.cpp",
          f"p.multiply({INPUT_GRADIENT})", f"p.multiply({INPUT_GRADIENT.replace('from_input', 'from_hidden')})", WRONG,
          layer=GATED),
    Fault("weight_hh's gradient from the input's part", "layer_gradients.cpp",
          WEIGHT_GRADIENT, WEIGHT_GRADIENT.replace("from_hidden", "from_input"), WRONG,
          layer=GATED),
    Fault("biases taken to have one gradient", "layer_gradients.cpp", "cell.apart() == 0 && bias_ih.data",
          "bias_ih.data != nullptr", WRONG, layer=GATED),
    Fault("only what is joined has memory of its own", "layer_backward.cpp", "cell.apart() > 0", "cell.apart() < 0",
          rf"race|{WRONG}", layer=GATED),
    Fault("direct gradient of h not kept", "stream.cu", "hidden.keep(now.t, direct);", "", WRONG, layer=GATED),
    Fault("relu's slope at 0", "cell.h", "h <= V{}", "h < V{}", WRONG, layer={"cell": RNN_RELU}),
    Fault("one member's gradients left out", "layer_backward.cpp", "m < layer.members", "m < layer.members - 1",
          WRONG, members=2),
    Fault("W_hh taken for the effective weight", "prepared_layer.cpp", "weight = effective;", "", OUTSIDE,
          transport="local", layer=PROJECTED),
    Fault("effective weight given back before the launch", "prepared_layer.cpp", "memory = std::move(effective);", "",
          OUTSIDE, transport="local", layer=PROJECTED, hidden=24),
    Fault("hidden starts from h", "hidden_recurrence.cpp", "rows.initial[0] = rows.reset_state[0] = nullptr;", "",
          rf"{OUTSIDE}|{WRONG}", transport="local", layer=PROJECTED),
    Fault("reset states do not enter", "hidden_recurrence.cpp", "layer.reset ? layer.reset_state[0] : View()", "View()",
          WRONG, transport="local", layer=PROJECTED | RESETS),
    Fault("hidden of idle rows not cleared", "hidden_recurrence.cpp", f"p.rows_{HIDDEN}", f"p.{HIDDEN}", UNWRITTEN,
          transport="local", layer=PROJECTED | {"lengths": LENGTHS}),
    Fault("gradients of hidden for those of a reset h", "hidden_recurrence.cpp", "a.d_reset_state[0] = nullptr;", "",
          rf"{OUTSIDE}|{WRONG}", transport="local", layer=PROJECTED | RESETS),
    Fault("initial state enters a reset step", "projection.cu", "!is_reset(rows, clock, first)", "true",
          WRONG, transport="local", layer=PROJECTED | RESETS),
    Fault("initial state enters at the first time", "projection.cu",
          "clock.d == 0 ? 0 : std::max(clock.length - 1, 0)", "0", WRONG, transport="local", layer=PROJECTED | PACKED),
    Fault("last output of a row without any", "projection.cu", "clock.length == 0", "false",
          rf"{OUTSIDE}|{WRONG}", transport="local", layer=PROJECTED | {"lengths": LENGTHS}),
    Fault("resets after the end forgotten", "projection.cu", "if (!rows.reset) return false;", "return false;", WRONG,
          transport="local", layer=PROJECTED | RESETS | {"lengths": LENGTHS}),
    Fault("gradient goes back through a reset", "projection.cu", "!is_reset(rows, clock, next)", "true",
          WRONG, transport="local", layer=PROJECTED | RESETS),
    Fault("gradient from the step before", "projection.cu", "d == 0 ? t + 1 : t - 1", "d == 0 ? t - 1 : t + 1", WRONG,
          transport="local", layer=PROJECTED | PACKED),
]  # fmt: skip


def layers(fault):
    """The members, with lengths of their own."""
    for seed in range(fault.members):
        options = fault.layer
        if options.get("lengths") is LENGTHS:
            options = options | {"lengths": LENGTHS[seed:] + LENGTHS[:seed]}
        yield Layer(4, 5, fault.hidden, seed=seed, **options)


def verdict(module, fault):
    """What a test would say: None, the error, or WRONG."""
    all_layers = list(layers(fault))
    run = Emulated(module, all_layers if fault.members > 1 else all_layers[0], fault.transport)
    try:
        out = run.forward()
        results = out | run.backward(out, EVERYTHING)
    except (module.EmulationError, RuntimeError) as error:
        return str(error)
    for m, layer in enumerate(all_layers):
        expected = layer.reference()
        for name, value in results.items():
            own = value[m] if fault.members > 1 else value
            if not torch.allclose(own.double(), expected[name], rtol=1e-4, atol=1e-4):
                return WRONG
    return None


@functools.cache
def module_with_faults():
    return planted_faults.module_with(FAULTS, {HOST_CODE: [], DEVICE_CODE: FLOAT_ALONE})


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_host_fault_is_noticed(fault):
    module = module_with_faults()
    assert verdict(module, fault) is None, "the host code as it is"
    with emulator.options(module, fault=FAULTS.index(fault) + 1):
        message = verdict(module, fault)
    assert message, f"{fault.name}: the host code ran as if nothing were wrong"
    assert re.search(fault.reported, message), f"{fault.name}: expected {fault.reported!r}, got {message!r}"
