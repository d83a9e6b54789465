"""What tests/layers.py draws, of every cell: one layer, whether called as an operator, a member or a module."""

from dataclasses import replace

import pytest
import torch
from layers import differentiable, draw, flat, leaves

from benchmarks.cases import Case
from fusedlstm import reference
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS

SMALL = Case("plain", 4, 3, 5, 7)
CASES = [
    SMALL,
    replace(SMALL, name="no-bias", bias=False),
    replace(SMALL, name="bidirectional", bidirectional=True),
    replace(SMALL, name="projection", proj_size=2, bidirectional=True),
    replace(SMALL, name="packed", variable="packed"),
    replace(SMALL, name="lengths", variable="lengths", bidirectional=True),
    replace(SMALL, name="resets", resets=True),
]
CALLS = [(cell, case) for cell in CELLS.values() for case in CASES if cell.has_projection or not case.proj_size]
of_every_cell = pytest.mark.parametrize("cell, case", CALLS, ids=[f"{cell.name}-{case.name}" for cell, case in CALLS])


@of_every_cell
def test_operator_takes_it(cell, case):
    """In float64 within what it may differ from the reference; gradients of the drawn results too."""
    drawn = draw(case, cell, reset_state=case.resets)
    output, _, saved, carried = results = OPERATORS[cell.name].layer(*drawn.layer)
    for actual, expected in zip(flat(results), flat(reference.layer(cell, *drawn.layer)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    more = *drawn.incoming, *drawn.layer, output, saved, carried, [True] * 8
    found, expected = OPERATORS[cell.name].backward(*more), reference.layer_backward(cell, *more)
    for actual, one in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(actual, one, rtol=0, atol=1e-12)


@of_every_cell
def test_module_has_its_weights(cell, case):
    if case.variable == "packed":
        return
    drawn = draw(case, cell, reset_state=case.resets)
    output, last, *_ = OPERATORS[cell.name].layer(*drawn.layer)
    layer, options = drawn.layer, {}
    if case.variable:
        options["lengths"] = layer.lengths
    if case.resets:
        states = layer.reset_state
        options |= {"reset": layer.reset, "reset_state": tuple(states) if len(states) > 1 else states[0]}
    hx = tuple(layer.initial) if len(layer.initial) > 1 else layer.initial[0]
    found, state = drawn.module()(layer.input, hx, **options)
    assert torch.equal(found, output)
    assert all(map(torch.equal, state if len(last) > 1 else [state], last))
    if not options:
        torch.testing.assert_close(drawn.module(cell.layer)(layer.input, hx)[0], output, rtol=0, atol=1e-12)


@of_every_cell
def test_ensemble_has_members(cell, case):
    together = draw(case, cell, members=3, reset_state=case.resets)
    alone = draw(case, cell, reset_state=case.resets)
    for m in range(3):
        one = together.member(m)
        for own, of_all, as_alone in zip(*map(flat, (one.layer, together.layer, alone.layer)), strict=True):
            assert own.shape == as_alone.shape
            assert own is of_all or torch.equal(own, of_all[m])
        for own, of_all in zip(flat(one.incoming), flat(together.incoming), strict=True):
            assert torch.equal(own, of_all[m])


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_dtypes_and_strides(cell):
    drawn = draw(SMALL, cell, dtype=torch.bfloat16, batch_first=True)
    assert {tensor.dtype for tensor in flat(drawn.layer)} == {torch.bfloat16}
    assert drawn.incoming.carried is None or drawn.incoming.carried.dtype == torch.float32
    for rows in (drawn.layer.input, drawn.incoming.output):
        assert rows.transpose(0, 1).is_contiguous() and not rows.is_contiguous()
    exact = differentiable(drawn.layer, torch.float64)
    assert len(leaves(exact)) == len(flat(exact)) == len(flat(drawn.layer))
    assert all(torch.equal(a, b.double()) for a, b in zip(flat(exact), flat(drawn.layer)))


def test_equal_seeds_draw_equal_layers():
    one, other = (draw(SMALL, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(map(torch.equal, flat(one.layer), flat(other.layer)))
