"""Second order of one step by its operators, `<cell>_cell_second_order` and `<cell>_cell_sums_backward`."""

import itertools

import pytest
import torch
from family import every
from tolerance import tolerance
from torch.utils.flop_counter import FlopCounterMode

from fusedlstm import _second_order_cell
from fusedlstm._second_order_cell import gradients_of_sums, second_order_of_cell
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS

every_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
B, I, H = 3, 5, 7


def _step(cell, has_bias=True, dtype=torch.float64):
    """What a step takes, in a row; what it keeps; gradients that arrive at its states, and at its gradients. Some of
    them not dense, as callers have them."""
    torch.manual_seed(0)
    sizes = [(B, I), *[(B, H)] * len(cell.states), (cell.gates * H, I), (cell.gates * H, H)]
    sizes += [(cell.gates * H,)] * (2 if has_bias else 0)
    tensors, cotangents = ([torch.randn(*size[::-1]).to(dtype).t() for size in sizes] for _ in range(2))
    if has_bias:
        cotangents[-1] = torch.randn(1).to(dtype).expand(cell.gates * H)
    rows = 1 + len(cell.states)
    kept = OPERATORS[cell.name].cell(tensors[0], tensors[1:rows], tensors[rows:], False)[1]
    return tensors, kept, [torch.randn(H, B).to(dtype).t() for _ in cell.states], cotangents


def _both_ways(monkeypatch, function, *arguments):
    """What a function returns where operators serve, and where they do not."""
    found = function(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr(_second_order_cell, "_has_operators", lambda _: False)
        return found, function(*arguments)


def _assert_near(found, expected):
    """Products of a few units and terms, in float64; the operators' own sums are in another order."""
    assert [one is None for one in found] == [one is None for one in expected]
    for actual, wanted in zip(found, expected, strict=True):
        if wanted is not None:
            torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def _parts(count):
    """All of some things, each alone, and all but each."""
    return [
        [True] * count,
        *([is_alone == (i == k) for i in range(count)] for k in range(count) for is_alone in (True, False)),
    ]


@pytest.mark.parametrize("has_bias", [True, False])
@every_cell
def test_second_order_is_that_of_products(cell, has_bias, monkeypatch):
    """For every part of the cotangents that arrive, and of the gradients that are asked for."""
    tensors, kept, d_states, cotangents = _step(cell, has_bias)
    states, count = len(d_states), len(tensors)
    all_asked = [True] * (states + count)
    cases = [(moves, all_asked, True) for moves in _parts(count)]
    cases += [([True] * count, asked, True) for asked in _parts(states + count)]
    cases += [([True] * count, all_asked, False)] * (states > 1)
    for (moves, asked, has_c), leaves in itertools.product(cases, [False, True][: 1 + (cell.saved == cell.sums)]):
        given = [u if one else None for u, one in zip(cotangents, moves)]
        arrive = d_states if has_c else [d_states[0], None]
        found, expected = _both_ways(
            monkeypatch, second_order_of_cell, cell, arrive, tensors, kept, given, asked, leaves
        )
        _assert_near(found, expected)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    "cell", [cell for cell in CELLS.values() if cell.saved == cell.sums], ids=lambda cell: cell.name
)
def test_gradients_with_sums_are_those_of_products(cell, has_bias, monkeypatch):
    tensors, kept, d_states, _ = _step(cell, has_bias)
    d_sums = torch.randn(1, cell.sums * H, B).double().mT
    for arrive in (d_states, [*d_states[:-1], None], [None] * len(d_states)):
        for asked in _parts(len(tensors)):
            found, expected = _both_ways(monkeypatch, gradients_of_sums, cell, arrive, d_sums, kept, tensors, asked)
            _assert_near(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@every_cell
def test_opcheck(cell, dtype):
    of, (tensors, kept, d_states, cotangents) = OPERATORS[cell.name], _step(cell, dtype=dtype)
    rows, kinds = 1 + len(d_states), ("test_schema", "test_faketensor")
    step = tensors[0], tensors[1:rows], tensors[rows:], False
    alone = [None] * rows + cotangents[rows:]
    needs = [True, False, *[True] * (len(d_states) + len(tensors) - 2)]
    for leaves, given in itertools.product([False, True][: 1 + (cell.saved == cell.sums)], (cotangents, alone)):
        torch.library.opcheck(of.cell_second_order, (d_states, *step, kept, given, needs, leaves), test_utils=kinds)
    if cell.saved == cell.sums:
        for arrive in (d_states, [None] * len(d_states)):
            arguments = arrive, kept[1], *step, kept, needs[len(d_states) :]
            torch.library.opcheck(of.cell_sums_backward, arguments, test_utils=kinds)


def test_refuse_what_does_not_fit():
    tensors, kept, d_states, cotangents = _step(CELLS["lstm"])
    of, (x, *others) = OPERATORS["lstm"], tensors
    states, weights = others[:2], others[2:]
    for arguments, text in (
        ((d_states[:1], x, states, weights, False, kept, cotangents), "2 states and gradients of them"),
        ((d_states, x[0], states, weights, False, kept, cotangents), "2 dimensions, got 1"),
        ((d_states, x, states, weights[:3], False, kept, cotangents), "2 or 4 weights of a step, got 3"),
        ((d_states, x, [x, x], weights, False, kept, cotangents), r"states of size \[3, 7\], got \[3, 5\]"),
        ((d_states, x, states, weights, False, kept, cotangents[1:]), "7 cotangents and 9 needs, got 6 and 9"),
        ((d_states, x, states, weights, False, kept, [x.t(), *cotangents[1:]]), r"cotangents of size \[3, 5\]"),
        ((d_states, x, states, weights, False, kept, [x.float(), *cotangents[1:]]), "cotangents of the input's dtype"),
        ((d_states, x, states, weights, False, kept[:2], cotangents), "3 tensors that a step kept"),
        (
            (d_states, x.int(), states, weights, False, kept, cotangents),
            "float32, float64, bfloat16 or float16, got int32",
        ),
    ):
        with pytest.raises(RuntimeError, match=text):
            of.cell_second_order(*arguments, [True] * 9, False)
    with pytest.raises(RuntimeError, match=r"d_sums of size \[3, 28\]"):
        of.cell_sums_backward(d_states, kept[0], x, states, weights, False, kept, [True] * 7)
    with pytest.raises(RuntimeError, match="7 needs, got 6"):
        of.cell_sums_backward(d_states, kept[1], x, states, weights, False, kept, [True] * 6)


def _penalty(module, x, states):
    """Gradients of the sum of all squared gradients of two steps, for all that has any."""
    leaves = [x.requires_grad_(), *(state.requires_grad_() for state in states), *module.parameters()]
    hx = tuple(states) if len(states) > 1 else states[0]
    hx = module(x, module(x, hx))
    h = hx[0] if len(states) > 1 else hx
    found = torch.autograd.grad(h.square().sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(one.square().sum() for one in found), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(1, 5, 7), (4, 33, 65), (19, 40, 24)], ids=str)
@every
def test_against_float64(member, sizes, dtype):
    """Both gradients of two steps, by PyTorch: two times forward and back."""
    rows, features, hidden = sizes
    torch.manual_seed(0)
    fused, _ = member.pair_of_cells(features, hidden, dtype=dtype)
    _, plain = member.pair_of_cells(features, hidden, dtype=torch.float64)
    plain.load_state_dict(fused.state_dict())
    x, *states = (torch.randn(rows, n).to(dtype) / 2 for n in (features, *[hidden] * len(CELLS[member.cell].states)))
    exact = _penalty(plain, x.double(), [state.double() for state in states])
    allowed = 2 * tolerance(dtype, features + hidden + rows, steps=2)
    for actual, wanted in zip(_penalty(fused, x, states), exact, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=allowed * wanted.abs().max())


@every_cell
def test_flops_are_those_of_products(cell, monkeypatch):
    tensors, kept, d_states, cotangents = _step(cell)
    states, count = len(d_states), len(tensors)
    # Which the counter does not know.
    in_place = {torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1]}

    def flops(function, *arguments):
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            function(cell, d_states, *arguments)
        return counter.get_total_flops()

    for part in _parts(count):
        for moves, asked in ((part, [True] * count), ([True] * count, part)):
            given = [u if one else None for u, one in zip(cotangents, moves)]
            for leaves in [False, True][: 1 + (cell.saved == cell.sums)]:
                needs = [True] * states + asked
                found, expected = _both_ways(
                    monkeypatch, flops, second_order_of_cell, tensors, kept, given, needs, leaves
                )
                assert found == expected
        if cell.saved == cell.sums:
            found, expected = _both_ways(monkeypatch, flops, gradients_of_sums, kept[1], kept, tensors, part)
            assert found == expected
