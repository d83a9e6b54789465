"""Faults planted in what runs layers abreast, each of which the emulated tests must notice in one of the orders that
the events allow.
"""

import functools
import re

import emulator
import planted_faults
import pytest
import torch
from emulated_stack import EmulatedStack, new_layers, run_one_by_one
from test_cuda_faults import WRONG
from test_host_faults import OUTSIDE, UNWRITTEN, Fault

STACK_CODE = ("stack_forward.cpp", "stack_backward.cpp", "layer_forward.cpp")
ORDERS = range(7)
JOINED = "was not joined to the current one"
FORKED = "was not forked from the current one"

FAULTS = [
    Fault("a layer started before its input", "wavefront.h", "if (level > 0) join(level - 1);", "",
          rf"{UNWRITTEN}|{WRONG}"),
    Fault("a layer started before the last part of its input", "wavefront.h", "if (level > 0) join(level - 1);",
          "if (level > 0 && i + 1 < parts) join(level - 1);", rf"{UNWRITTEN}|{WRONG}"),
    Fault("memory of a part used again too early", "wavefront.h", "        join(level);", "", WRONG),
    Fault("a wait for the first part taken for one for all", "wavefront.h",
          "is_ahead_[static_cast<size_t>(level)] = true;",
          "is_ahead_[static_cast<size_t>(level)] = i == 0;", rf"{JOINED}|{OUTSIDE}|{UNWRITTEN}|{WRONG}"),
    Fault("a recurrence that waits for nothing", "wavefront.h", "wait(own.stream, own.may_begin);", "", FORKED),
    Fault("a recurrence that waits for the first product alone", "wavefront.h", "wait(own.stream, own.may_begin);",
          "if (i == 0) wait(own.stream, own.may_begin);", rf"{UNWRITTEN}|{WRONG}"),
    Fault("streams not joined", "wavefront.h", "level < levels()", "level < 1", rf"{JOINED}|{OUTSIDE}|{UNWRITTEN}"),
    Fault("one event for all layers", "wavefront.h", "wait(host_.stream, side(level).is_done);",
          "wait(host_.stream, side(0).is_done);", rf"{UNWRITTEN}|{WRONG}|event"),
    Fault("an event never recorded", "wavefront.h", 'check(cudaEventRecord(own.is_done, own.stream), "an event");',
          "", "a wait: "),
    Fault("one border for all states", "prepared_layer.h", "a.border[i] = states_[i].data;",
          "a.border[i] = states_[0].data;", WRONG),
    Fault("border given back before the launch", "stack_forward.cpp", "p.prepare_resident(plan, a, resident);",
          "Border(p, a); p.prepare_resident(plan, a, resident);", OUTSIDE),
    Fault("steps at a border run twice", "wavefront.h", "T * i / parts", "T * i / parts - (i > 0)",
          rf"{WRONG}|{UNWRITTEN}|{OUTSIDE}"),
    Fault("backward from the first step on", "stack_backward.cpp", "plan.parts - 1 - i", "i",
          rf"{WRONG}|{UNWRITTEN}"),
    Fault("input product looked for at the first step", "layer_forward.cpp",
          "static_cast<const char*>(pre_gates.data) - before", "static_cast<const char*>(pre_gates.data)",
          rf"{OUTSIDE}|{UNWRITTEN}|{WRONG}"),
    Fault("states before a part looked for in its first step", "stack_backward.cpp", "part.begin - 1",
          "part.begin", WRONG),
    Fault("gradient from the layer's own gates", "stack_backward.cpp", "levels[static_cast<size_t>(l - 1)]", "level",
          rf"{UNWRITTEN}|{WRONG}"),
]  # fmt: skip


def layers():
    return new_layers(7, 3, 20, 3, features=20)


@functools.cache
def expected():
    return run_one_by_one(emulator.module(), layers(), "local")


def verdict(module, order):
    """What a test would say: None, the error, or WRONG."""
    try:
        with emulator.options(module, stream_order=order):
            found = EmulatedStack(module, layers(), "local/3x3").run()
    except (module.EmulationError, RuntimeError) as error:
        return str(error)
    same = all(torch.equal(own[name], other[name]) for own, other in zip(found, expected()) for name in other)
    return None if same else WRONG


@functools.cache
def module_with_faults():
    return planted_faults.module_with(FAULTS, {STACK_CODE: []})


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_stack_fault_is_noticed(fault):
    module = module_with_faults()
    with emulator.options(module, fault=FAULTS.index(fault) + 1):
        message = next(filter(None, (verdict(module, order) for order in ORDERS)), None)
    assert message, f"{fault.name}: the layers ran as if nothing were wrong"
    assert re.search(fault.reported, message), f"{fault.name}: expected {fault.reported!r}, got {message!r}"


def test_no_fault_is_noticed_without_one():
    assert [verdict(module_with_faults(), order) for order in ORDERS] == [None] * len(ORDERS)


def test_grids_that_do_not_fit_together_are_noticed():
    """5 tiles of 7 CTAs on a T4's 40 SMs: those of one layer could wait for ever on SMs that another's need."""
    fault = Fault("room for any number", "plan_room.cpp", "d.sm_count / (ctas * tiles)", "d.sm_count", "")
    module = planted_faults.module_with([fault], {("plan_room.cpp",): []})
    stack = EmulatedStack(module, new_layers(2, 40, 100, 2, dtype=torch.float16), "grid:16x8/2x2", "T4")
    with emulator.options(module, fault=1):
        assert stack.choice().plan.abreast == 2
    with (
        emulator.options(module, sm_count=40, stream_order=1, fault=1),
        pytest.raises(module.EmulationError, match="cooperative grids of 70 CTAs may run at once, on 40 SMs"),
    ):
        stack.forward(training=False)
