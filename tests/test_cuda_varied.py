"""The CUDA kernels of recurrences with variants, on the emulated GPU: results and gradients against the reference."""

from types import SimpleNamespace

import emulated_varied
import emulator
import pytest
import torch
from recurrences import FEATURES, cases, changed, check, draw, results

from fusedlstm import _recurrence
from fusedlstm.cells import CELLS
from fusedlstm.reference_varied import recurrence

# Of each cell the case that has most.
FULL = {"lstm": "*all", "gru": "all", "rnn_tanh": "reset", "rnn_relu": "lengths"}
full = pytest.mark.parametrize(("cell", "name"), FULL.items(), ids=FULL)


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    """Operators that run the CUDA kernels."""
    monkeypatch.setattr(_recurrence, "_OPERATORS", emulated_varied.operators())


def of_float32(cell, name, *sizes):
    return changed(draw(cell, FEATURES[name], *sizes), lambda _, tensor: tensor.float())


def kernels(cell):
    return lambda a: emulated_varied.run(CELLS[cell], a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@cases
def test_values_and_gradients(cell, name, dtype):
    """More units than a warp has threads, fewer, and one."""
    for sizes in [(5, 3, 37), (4, 2, 7), (2, 2, 1)]:
        check(emulated_varied.run, cell, name, *sizes, dtype)


@full
def test_more_units_than_threads(cell, name):
    check(emulated_varied.run, cell, name, 2, 2, 520, torch.float32)


@full
def test_every_order_of_threads_gives_the_same_bits(cell, name):
    emulated_varied.assert_same_bits_in_every_order(cell, of_float32(cell, name, 4, 3, 70))


@full
def test_activations_as_wrong_as_the_hardware_may_be(cell, name):
    with emulator.options(emulator.module(), approximation=1):
        check(emulated_varied.run, cell, name, 5, 3, 37, torch.float32, device_type="cuda")


@full
def test_keeps_what_the_cpu_keeps(cell, name):
    """Also zeros where rows are not run: results of either device may go to backward of the reference's caller."""
    a = draw(cell, FEATURES[name], 5, 3, 9)._replace(keeps=True)
    found = _recurrence._OPERATORS[cell].recurrence(*a)
    expected = getattr(torch.ops.fusedlstm, f"{cell}_recurrence").default(*a)
    for own, of_cpu in zip((found[0], *found[1], *found[2]), (expected[0], *expected[1], *expected[2]), strict=True):
        torch.testing.assert_close(own, of_cpu, rtol=1e-11, atol=1e-13)


@full
def test_inference_keeps_nothing(cell, name):
    a = draw(cell, FEATURES[name], 3, 2, 5)
    output, last, kept = _recurrence._OPERATORS[cell].recurrence(*a)
    expected = recurrence(CELLS[cell], *a)
    torch.testing.assert_close((output, last), expected, rtol=1e-11, atol=1e-13)
    assert kept == []


def test_both_passes_are_told_whether_tf32_may_be_used(monkeypatch):
    told, own = [], emulated_varied.EmulatedRecurrence(CELLS["gru"])

    def told_at(place, operator):
        def run(*arguments):
            told.append(arguments[place])
            return operator(*arguments)

        return run

    recorded = SimpleNamespace(recurrence=told_at(-1, own.recurrence), backward=told_at(-3, own.backward))
    monkeypatch.setattr(_recurrence, "_OPERATORS", {"gru": recorded})
    for allowed in (True, False):
        results(kernels("gru"), of_float32("gru", "mask", 3, 2, 5)._replace(allow_tf32=allowed))
    assert told == [True, True, False, False]
    products = own.products_with_tf32  # one a step and pass, and those of the input and of gradients
    assert products == [True] * 10 + [False] * 10


@pytest.mark.parametrize("cell", CELLS)
def test_empty(cell):
    for sizes in [(0, 3, 5), (4, 0, 5), (0, 0, 5)]:
        a = draw(cell, ("zoneout", "mask", "bias"), *sizes)
        found, expected = results(kernels(cell), a), results(lambda a: recurrence(CELLS[cell], *a), a)
        assert all(torch.equal(value, expected[what]) for what, value in found.items())


def test_lengths_that_nobody_has_checked():
    """They stay on the device; none may lead out of bounds."""
    a = draw("lstm", FEATURES["*all"], 4, 3, 7)
    wild, right = (results(kernels("lstm"), a._replace(lengths=torch.tensor(lengths)))
                   for lengths in ([-5, 2, 2**40], [0, 2, 4]))  # fmt: skip
    assert all(torch.equal(value, right[what]) for what, value in wild.items())


def test_nan_stays_in_its_row():
    a = of_float32("lstm", "*all", 4, 3, 37)
    clean = results(kernels("lstm"), a)
    a.input[1, 2, 5] = float("nan")
    found = results(kernels("lstm"), a)
    assert found["output"][1, 2].isnan().all()
    for name in ("output", "d_input"):
        assert torch.equal(found[name][:, :2], clean[name][:, :2])


def test_a_launch_that_fails_is_named():
    a = of_float32("gru", "bias", 3, 2, 5)
    with (
        emulator.options(emulator.module(), launch_errors=[0, 719]),
        pytest.raises(RuntimeError, match=r"fusedlstm: varied forward step: .*"),
    ):
        emulated_varied.run(CELLS["gru"], a)


def test_sizes_too_large_for_the_kernels_are_refused():
    emu = emulator.module()
    host = emu.Host(emu.Fallback("H200", 0), "")
    for sizes in ({"steps": 2**20, "batch": 2**11, "hidden": 1}, {"steps": 1, "batch": 1, "hidden": 2**30}):
        r = emu.VariedRecurrence()
        r.cell, r.dtype = "gru", "float32"
        for name, size in sizes.items():
            setattr(r, name, size)
        with pytest.raises(RuntimeError, match=r"expected steps \* batch and rows of weight_hh below 2\^31"):
            host.run_varied_forward(r, emu.VariedResults())
        with pytest.raises(RuntimeError, match=r"expected steps \* batch and rows of weight_hh below 2\^31"):
            host.run_varied_backward(r, emu.VariedIncoming(), emu.VariedGradients())
