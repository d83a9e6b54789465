"""Layers abreast on the emulated GPU: bit for bit those of layers one by one, in all orders that the events allow."""

import emulator
import pytest
import torch
from emulated_host import assert_equal
from emulated_stack import EmulatedStack, new_layers, run_one_by_one

from fusedlstm.cells import GRU, LSTM, RNN_RELU

ORDERS = (0, 1, 2, 3, 4, 5)  # see tests/emulator/streams.h
T = 7  # no multiple of any number of parts here

OPTIONS = {
    "plain": {},
    "packed": {"lengths": [7, 7, 4, 2, 1], "packed": True},
    "lengths": {"lengths": [3, 0, 7, 1, 5]},
    "resets": {"resets": True, "reset_states": True},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "gru": {"cell": GRU},
    "gru, packed": {"cell": GRU, "lengths": [7, 6, 4, 2, 1], "packed": True},
    "gru, resets": {"cell": GRU, "resets": True, "reset_states": True},
    "rnn": {"cell": RNN_RELU, "lengths": [3, 0, 7, 1, 5]},
}


def layers(count=3, **options):
    return new_layers(T, 5, options.pop("H", 20), count, **options)


def assert_same(found, expected):
    for own, other in zip(found, expected, strict=True):
        assert_equal(own, other)


# What the rows are decides on nothing that is waited for: each meets some of the orders.
@pytest.mark.parametrize(
    ("options", "orders", "other"),
    [(options, ORDERS[k % 3 :: 3], ("local/2x4", "local/1x1")[k % 2]) for k, options in enumerate(OPTIONS)],
)
def test_abreast_is_one_by_one(options, orders, other):
    """Forward and backward, in every order, all layers at once, in groups and one by one."""
    emu = emulator.module()
    expected = run_one_by_one(emu, layers(**OPTIONS[options]), "local")
    for request, order in (*(("local/3x3", order) for order in orders), (other, orders[0])):
        stack = EmulatedStack(emu, layers(**OPTIONS[options]), request)
        with emulator.options(emu, stream_order=order):
            assert_same(stack.run(), expected)
        assert stack.host.live == 0 and not stack.host.warnings


@pytest.mark.parametrize(
    ("transport", "H", "dtype"), [("cluster", 40, torch.bfloat16), ("grid", 20, torch.float16)], ids=["cluster", "grid"]
)
def test_every_transport(transport, H, dtype):
    emu, options = emulator.module(), {"H": H, "dtype": dtype, "lengths": [7, 7, 4, 2, 1], "packed": True}
    expected = run_one_by_one(emu, layers(2, **options), transport)
    stack = EmulatedStack(emu, layers(2, **options), f"{transport}/2x3")
    with emulator.options(emu, stream_order=2, seed=3):
        assert_same(stack.run(), expected)
    assert f"{transport} " in stack.runs[0].fallback.last_plan(False) and stack.choice().plan.abreast == 2


@pytest.mark.parametrize("cell", [LSTM, GRU], ids=lambda cell: cell.name)
def test_cell_states_are_exact_at_the_border(cell):
    """In 16 bits: they are in float32 within a launch, and stay so between two."""
    emu, options = emulator.module(), {"cell": cell, "dtype": torch.bfloat16}
    expected = run_one_by_one(emu, layers(**options), "local")
    assert_same(EmulatedStack(emu, layers(**options), "local/3x7").run(), expected)


@pytest.mark.parametrize("order", ORDERS)
def test_inference(order):
    """Memory of a part is used again by the next, and nothing is kept."""
    emu = emulator.module()
    expected = EmulatedStack(emu, layers(), "local/1x1").forward(training=False)
    stack = EmulatedStack(emu, layers(), "local/3x3")
    with emulator.options(emu, stream_order=order):
        assert_same(stack.forward(training=False), expected)
    assert stack.host.live == 0


@pytest.mark.parametrize("alone", [{"proj_size": 7}, {"dtype": torch.float64}], ids=str)
def test_steps_of_their_own_do_not_run_abreast(alone):
    emu = emulator.module()
    stack = EmulatedStack(emu, layers(**alone), "/3x3")
    assert stack.choice().plan.abreast == stack.choice(backward=True).plan.abreast == 1
    assert_same(stack.run(), run_one_by_one(emu, layers(**alone), ""))


def test_layers_overlap():
    """No recurrence waits for more than it needs: the last one for all parts of one layer, and one of each other."""
    emu, count, parts = emulator.module(), 3, 5
    stack = EmulatedStack(emu, layers(count), f"local/{count}x{parts}")
    out = stack.forward()
    assert emu.longest_chain() == parts + count - 1
    stack.backward(out)
    assert emu.longest_chain() == parts + count - 1


def test_nothing_is_waited_for_twice():
    """Each recurrence waits for its product; the current stream for all parts of each layer, once each."""
    emu, count, parts = emulator.module(), 3, 5
    stack = EmulatedStack(emu, layers(count), f"local/{count}x{parts}")
    out = stack.forward()
    assert emu.waits() == 2 * count * parts
    stack.backward(out)
    assert emu.waits() == 2 * count * parts


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_refused_kernel_is_asked_for_once(backward):
    """By no layer of the groups to come, which run one after another by what replaces it."""
    emu = emulator.module()
    stack = EmulatedStack(emu, layers(4), "/2x2")
    out = stack.forward()
    with emulator.options(emu, launch_errors=[701]):
        stack.backward(out) if backward else stack.forward()
    (warning,) = stack.host.warnings
    assert "device 0 refuses" in warning and "abreast" not in stack.runs[0].fallback.last_plan(backward)


def test_grids_abreast_fit_together():
    """5 tiles of 7 CTAs occupy most of a T4's 40 SMs; with half as many rows two layers do not need more than there
    are."""
    emu, options = emulator.module(), {"dtype": torch.float16, "packed": True, "lengths": [2] + [1] * 39}
    wide = EmulatedStack(emu, new_layers(2, 40, 100, 2, **options), "grid:16x8/2x2", "T4")
    narrow = EmulatedStack(emu, new_layers(2, 16, 100, 2, dtype=torch.float16), "grid:16x8/2x2", "T4")
    assert wide.choice().plan.abreast == 1 and narrow.choice().plan.abreast == 2
    with emulator.options(emu, sm_count=40):
        for stack in (wide, narrow):
            stack.forward(training=False)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("launches_before", [0, 4])
def test_refused_launch(launches_before, backward):
    """Whatever was launched by then, the layers run one after another by the next best kernel; one warning says so."""
    emu = emulator.module()
    expected = run_one_by_one(emu, layers(), "stream")
    stack = EmulatedStack(emu, layers(), "/3x3")
    errors = [0] * launches_before + [701] + [0] * 1000
    with emulator.options(emu, launch_errors=[] if backward else errors):
        out = stack.forward()
    with emulator.options(emu, launch_errors=errors if backward else []):
        gradients = stack.backward(out)
    for own, gradient, other in zip(out, gradients, expected):
        for name, value in (own | gradient).items():
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-4)
    (warning,) = stack.host.warnings
    assert "device 0 refuses" in warning and stack.host.live == 0


def test_refused_launch_of_a_forced_kernel():
    emu = emulator.module()
    stack = EmulatedStack(emu, layers(), "local/3x3")
    with (
        emulator.options(emu, launch_errors=[0, 701]),
        pytest.raises(RuntimeError, match=r"lstm local float32.*3 layers abreast in 3 parts"),
    ):
        stack.forward()
    assert stack.host.live == 0


def test_last_plan_says_how_the_stack_ran():
    stack = EmulatedStack(emulator.module(), layers(), "local/3x3")
    stack.run()
    for backward in (False, True):
        assert "3 layers abreast in 3 parts" in stack.runs[0].fallback.last_plan(backward)


def test_stack_without_steps():
    """The states pass through."""
    stack = EmulatedStack(emulator.module(), new_layers(0, 5, 20, 2), "local/2x2")
    for run, own in zip(stack.runs, stack.forward(), strict=True):
        assert torch.equal(own["h_n"], run.layer.t["h_0"]) and torch.equal(own["c_n"], run.layer.t["c_0"])
