"""The CUDA kernels that keep weight_hh on the chip for a recurrence with variants, on the emulated GPU."""

import emulated_varied
import emulator
import pytest
import torch
from recurrences import CASES, FEATURES, changed, check, draw, results

from fusedlstm import _recurrence
from fusedlstm.cells import CELLS
from fusedlstm.reference_varied import recurrence

# What there are kernels for.
RESIDENT = [(cell, name) for cell, name in CASES if cell == "lstm" or (cell == "gru" and "gain" in FEATURES[name])]
cases = pytest.mark.parametrize(("cell", "name"), RESIDENT, ids=[f"{cell}-{name}" for cell, name in RESIDENT])
# Of each cell the case that has most.
FULL = {"lstm": "*all", "gru": "all"}
full = pytest.mark.parametrize(("cell", "name"), FULL.items(), ids=FULL)


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """Operators that run the kernels, or fail; the LSTM's and the GRU's by name."""
    operators = emulated_varied.operators(request="local")
    monkeypatch.setattr(_recurrence, "_OPERATORS", operators)
    return operators


def of_float32(cell, name, *sizes):
    return changed(draw(cell, FEATURES[name], *sizes), lambda _, tensor: tensor.float())


def kernels(cell):
    return lambda a: emulated_varied.run(CELLS[cell], a)


def plan_of(own, cell="lstm"):
    """How the last pass with variants ran."""
    return own[cell].fallback.last_launched.varied


@cases
def test_values_and_gradients(cell, name, own):
    """Units that are no whole vector, fewer than a warp has threads, and one."""
    for sizes in [(5, 3, 37), (4, 2, 7), (2, 2, 1)]:
        check(emulated_varied.run, cell, name, *sizes, torch.float32)


@pytest.mark.parametrize(("cell", "name", "hidden"), [("lstm", "*all", 57), ("lstm", "*all", 128), ("gru", "all", 61),
                                                      ("gru", "norm", 160)])  # fmt: skip
def test_weights_in_shared_memory(cell, name, hidden):
    """Columns beyond those in registers: one, a vector and one, and as many as there are."""
    check(emulated_varied.run, cell, name, 3, 2, hidden, torch.float32)


@full
def test_they_are_the_kernels_on_the_chip(cell, name, own):
    a = of_float32(cell, name, 3, 2, 5)
    emulated_varied.run(CELLS[cell], a)
    assert plan_of(own, cell) == f"float32 {cell} forward kernel with variants, local"
    assert own[cell].products_with_tf32 == [False]  # that with the input, and none of a step
    results(kernels(cell), a)
    assert plan_of(own, cell) == f"float32 {cell} backward kernel with variants, local"
    assert own[cell].products_with_tf32 == [False] * 5  # and the gradients of the input and of both weights


@full
def test_every_order_of_threads_gives_the_same_bits(cell, name):
    emulated_varied.assert_same_bits_in_every_order(cell, of_float32(cell, name, 4, 3, 61))


@full
def test_what_it_keeps_is_what_single_steps_keep(cell, name):
    a = of_float32(cell, name, 5, 3, 9)._replace(keeps=True)
    found, expected = (
        emulated_varied.operators(request=request)[cell].recurrence(*a) for request in ("local", "stream")
    )
    for own, other in zip((found[0], *found[1], *found[2]), (expected[0], *expected[1], *expected[2]), strict=True):
        torch.testing.assert_close(own, other, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("cell", FULL)
def test_gradients_are_those_of_single_steps(cell, own):
    """Whichever kernels ran forward; with all variants, lengths or resets at once."""
    a = of_float32(cell, FULL[cell], 5, 3, 61)._replace(keeps=True)
    output, last, kept = own[cell].recurrence(*a)
    incoming = torch.ones_like(output), [torch.ones_like(state) for state in last]
    needs = True, True, True
    found, expected = (
        emulated_varied.operators(request=request)[cell].backward(*incoming, *a, kept, needs)
        for request in ("local", "stream")
    )
    for one, other in zip(found, expected, strict=True):
        pairs = zip(one, other, strict=True) if isinstance(one, list) else [(one, other)]
        for own_gradient, of_steps in pairs:
            scale = max(1.0, of_steps.abs().max().item()) if of_steps.numel() else 1.0
            torch.testing.assert_close(own_gradient, of_steps, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("cell", FULL)
def test_no_steps(cell):
    a = of_float32(cell, "norm", 0, 3, 5)
    _, last = emulated_varied.run(CELLS[cell], a)
    assert all(torch.equal(own, initial) for own, initial in zip(last, a.initial, strict=True))
    found = results(kernels(cell), a)
    expected = results(lambda a: recurrence(CELLS[cell], *a), a)
    assert all(torch.equal(value, expected[what]) for what, value in found.items())


def test_refused_kernel_is_replaced_with_one_warning(monkeypatch):
    monkeypatch.setattr(_recurrence, "_OPERATORS", operators := emulated_varied.operators(request=""))
    a, lstm = of_float32("lstm", "norm", 3, 2, 5), operators["lstm"]
    with emulator.options(emulator.module(), launch_errors=[701]):
        check_equal(emulated_varied.run(CELLS["lstm"], a), a)
    (warning,) = lstm.warnings
    assert "refuses the kernel of lstm with variants, local forward" in warning
    assert "instead of it runs: lstm with variants, stream forward" in warning and "has refused" in warning
    check_equal(emulated_varied.run(CELLS["lstm"], a), a)
    assert len(lstm.warnings) == 1 and plan_of(operators) == "float32 lstm forward kernel with variants"


def test_refused_kernel_of_one_pass_leaves_the_other(monkeypatch):
    monkeypatch.setattr(_recurrence, "_OPERATORS", operators := emulated_varied.operators(request=""))
    a, lstm = of_float32("lstm", "norm", 3, 2, 5), operators["lstm"]
    expected = results(kernels("lstm"), a)
    assert plan_of(operators) == "float32 lstm backward kernel with variants, local"
    for launches in ([0, 701], []):  # the second one is refused, which is backward's, and then known to be
        with emulator.options(emulator.module(), launch_errors=launches):
            found = results(kernels("lstm"), a)
        assert plan_of(operators) == "float32 lstm backward kernel with variants"
        for what, value in found.items():
            torch.testing.assert_close(value, expected[what], rtol=1e-4, atol=1e-5)
    (warning,) = lstm.warnings
    assert "refuses the kernel of lstm with variants, local backward" in warning
    emulated_varied.run(CELLS["lstm"], a)
    assert plan_of(operators) == "float32 lstm forward kernel with variants, local"


def check_equal(found, a):
    """What single steps come to."""
    expected = emulated_varied.operators()["lstm"].recurrence(*a)
    assert torch.equal(found[0], expected[0])


def test_forced_kernel_that_is_refused_is_an_error():
    a = of_float32("lstm", "norm", 3, 2, 5)
    with (
        emulator.options(emulator.module(), launch_errors=[701]),
        pytest.raises(RuntimeError, match="with variants"),
    ):
        emulated_varied.run(CELLS["lstm"], a)


def test_fault_is_an_error(monkeypatch):
    monkeypatch.setattr(_recurrence, "_OPERATORS", emulated_varied.operators(request=""))
    a = of_float32("lstm", "norm", 3, 2, 5)
    with emulator.options(emulator.module(), launch_errors=[719]), pytest.raises(RuntimeError, match="local forward"):
        emulated_varied.run(CELLS["lstm"], a)
