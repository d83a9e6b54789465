"""The operators of GRU and RNN under every instruction set and plan of the CPU, against the reference.

The reference itself is held to torch.nn. What the modules make of them: test_family.py.
"""

from functools import cache, partial
from itertools import product

import pytest
import torch
from family import family
from instruction_sets import FLOAT_ISAS
from layers import differentiable, draw
from pairwise import pairwise
from tolerance import assert_near, tolerance

from benchmarks.cases import Case
from fusedlstm import reference
from fusedlstm._arguments import flat_tensors
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PLANS = ["direct", "packed", "direct:units", "packed:units"]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# The operators: every cell by every kernel, against the reference.

# Below, on and above vectors, folds and blocks, and tiles (of up to 8 rows): T, B, I, H, and whether there are two
# directions.
SIZES = [(1, 1, 5, 7), (1, 4, 33, 40), (3, 2, 17, 9, True), (6, 5, 4, 2), (5, 13, 3, 50, True), (4, 20, 30, 67)]
SIZES += [(2, 16, 9, 36)]
ROWS = {"plain": {}, "packed": {"variable": "packed"}, "lengths": {"variable": "lengths"}, "reset": {"resets": True}}


def case_of(rows, T, B, I, H, bidirectional=False):
    return Case(rows, T, B, I, H, bidirectional=bidirectional, **ROWS[rows])


SMALL = case_of("plain", 3, 2, 4, 5)


def results_and_gradients(operator, layer, incoming):
    output, last, saved, carried = operator(*layer)
    results, given = [output, *last], [incoming.output, *incoming.last]
    if incoming.carried is not None:
        results, given = [*results, carried], [*given, incoming.carried]
    given = [d.to(result.dtype) for d, result in zip(given, results)]
    return [*results, saved, *torch.autograd.grad(results, flat_tensors(layer), given)]


# A kernel is compiled for a cell and an instruction set; the plan and the row states are arguments of it.
@pairwise(
    kernel=list(product(["gru", "rnn_tanh", "rnn_relu"], FLOAT_ISAS)),
    plan=PLANS,
    rows=ROWS,
)
def test_every_kernel_near_the_reference(kernel, plan, rows, forced, two_threads):
    """Forward, inference and every gradient. Of 16 bits, where relu's corners make gradients jump, values only.

    Every dtype of a kernel meets every size, under one of the plans.
    """
    cell, isa = kernel
    forced(isa, plan)
    for place, sizes in enumerate(SIZES, PLANS.index(plan)):
        case = case_of(rows, *sizes[: 4 if rows == "reset" else 5])
        check_against_reference(CELLS[cell], case, DTYPES[place % len(DTYPES)])


@pairwise(kernel=list(product(["gru", "rnn_tanh"], FLOAT_ISAS)), dtype=DTYPES, of=["rows", "gates"])
def test_gradients_in_blocks(kernel, dtype, of, forced, two_threads):
    """More than 256 rows, over which gradients of weights are summed, and than 1024 gates, by which gradients go back.

    An odd number of gates, too, which pairs of 16 bits pad.
    """
    cell, isa = kernel
    forced(isa, "packed")
    sizes = (13, 21, 5, 20) if of == "rows" else (2, 5, 4, 343 if cell == "gru" else 1027)
    check_against_reference(CELLS[cell], case_of("plain", *sizes), dtype)


@cache
def drawn_and_expected(name, step, case, dtype):
    """A layer, and what the reference makes of it in float64; the same for every kernel."""
    cell = CELLS[name]._replace(step=step)
    drawn = draw(case, cell, reset_state=case.resets, dtype=dtype)
    exact = differentiable(drawn.layer, torch.float64)
    return drawn, results_and_gradients(partial(reference.layer, cell), exact, drawn.incoming)


def check_against_reference(cell, case, dtype):
    drawn, expected = drawn_and_expected(cell.name, cell.step, case, dtype)
    layer = differentiable(drawn.layer)
    found = results_and_gradients(OPERATORS[cell.name].layer, layer, drawn.incoming)
    has_corners = cell.name == "rnn_relu" and dtype.itemsize == 2
    count = 2 + len(cell.states) + bool(cell.carried) if has_corners else len(expected)
    terms, rows = case.input_size + case.hidden_size, case.T * case.B
    for k, (actual, right) in enumerate(zip(found[:count], expected, strict=False)):
        assert actual.shape == right.shape and actual.dtype in (dtype, torch.float32)
        allowed = tolerance(dtype, terms + (rows if k > 2 else 0), case.T)
        allowed *= 2 if dtype is torch.float64 else 1  # the reference rounds too
        if dtype.itemsize == 2 and k > 2:  # slopes such as 1 - n^2 are of rounded n, as torch.nn's
            allowed *= 4
        size = max(1.0, right.abs().max().item()) if right.numel() else 1.0
        assert_near(actual / size, right / size, allowed, f"{cell.name} {dtype} {case} {k}")
    with torch.no_grad():
        output, last = OPERATORS[cell.name].inference(*layer)
    assert torch.equal(output, found[0])
    assert all(map(torch.equal, last, found[1 : 1 + len(last)]))


@pytest.mark.parametrize("broken", ["direct gradient of h lost", "bias of n outside the reset", "gates exchanged"])
def test_a_broken_reference_is_noticed(broken, monkeypatch):
    """The comparison has teeth: each of these differs from the kernels by more than it allows."""

    def step(from_input, from_hidden, states):
        if broken == "direct gradient of h lost":
            h = states[0]
            (after,), saved = CELLS["gru"].step(from_input, from_hidden, states)
            return [after - (z := saved.chunk(4, -1)[1]) * h + z * h.detach()], saved
        if broken == "gates exchanged":
            r, z, n = from_input.chunk(3, -1)
            return CELLS["gru"].step(torch.cat([z, r, n], -1), from_hidden, states)
        bias = torch.ones_like(from_hidden.chunk(3, -1)[2]) * 0.01
        return CELLS["gru"].step(from_input + torch.cat([0 * bias, 0 * bias, bias], -1), from_hidden, states)

    cell = CELLS["gru"]._replace(step=step)
    with pytest.raises(AssertionError):
        check_against_reference(cell, case_of("plain", 3, 2, 17, 9), torch.float32)


@family
def test_reference_is_torch(member):
    """In float64, layers and both directions: what all else rests on."""
    fused, plain = member.pair(5, 7, bidirectional=True, dtype=torch.float64)
    x, h = torch.randn(4, 3, 5, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    kinds = [list(kind) for kind in zip(*fused.all_weights)]
    output, last, *_ = reference.layer(CELLS[member.cell], x, [h], *kinds, [])
    for actual, expected in zip((output, *last), plain(x, h)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)


def test_operator_refuses_projections_and_a_second_state():
    layer = draw(SMALL, CELLS["gru"], dtype=torch.float32).layer
    with pytest.raises(RuntimeError, match="expected 1 initial states, got 2"):
        OPERATORS["gru"].layer(*layer._replace(initial=layer.initial * 2))
    projected = layer._replace(
        weight_hr=[torch.randn(2, 5)], weight_hh=[torch.randn(15, 2)], initial=[torch.randn(1, 2, 2)]
    )
    with pytest.raises(RuntimeError, match="expected no weight_hr for this cell"):
        OPERATORS["gru"].layer(*projected)


def test_every_cell_is_described_as_the_library_has_it():
    """The sizes in fusedlstm/cells are those of csrc/cells: an operator makes what its description says."""
    for cell in CELLS.values():
        _, last, saved, carried = OPERATORS[cell.name].layer(*draw(SMALL, cell, dtype=torch.float32).layer)
        assert (len(last), saved.shape[-1], carried.shape[-1]) == (len(cell.states), 5 * cell.saved, 5 * cell.carried)


@family
def test_opcheck(member):
    cell, operators = CELLS[member.cell], OPERATORS[member.cell]
    for rows in ROWS:
        layer = differentiable(draw(case_of(rows, 3, 4, 2, 5), cell, reset_state=rows == "reset").layer)
        tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
        torch.library.opcheck(operators.layer, layer, test_utils=tests)
        torch.library.opcheck(operators.inference, layer, test_utils=tests[:2])
