"""The operators of one step, `<cell>_cell` and its kin: those of a layer in other shapes, and what usual calls run."""

import itertools

import pytest
import torch
from instruction_sets import FLOAT_ISAS
from steps import assert_steps_near, moving_steps

import fusedlstm
from fusedlstm import _run_cell
from fusedlstm._arguments import one_step
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS

every_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
CLASSES = {
    "lstm": fusedlstm.FusedLSTMCell,
    "gru": fusedlstm.FusedGRUCell,
    "rnn_tanh": fusedlstm.FusedRNNCell,
    "rnn_relu": lambda *sizes: fusedlstm.FusedRNNCell(*sizes, nonlinearity="relu"),
}
B, I, H = 3, 5, 7


@pytest.fixture(params=FLOAT_ISAS)
def every_isa(request):
    torch.ops.fusedlstm._cpu_force(request.param, "")
    yield
    torch.ops.fusedlstm._cpu_force("", "")


def _step(cell, has_bias=True, dtype=torch.float64):
    """Arguments of `<cell>_cell`."""
    torch.manual_seed(0)
    sizes = [(cell.gates * H, I), (cell.gates * H, H), *[(cell.gates * H,)] * (2 if has_bias else 0)]
    states = [torch.randn(B, H, dtype=dtype) for _ in cell.states]
    return torch.randn(B, I, dtype=dtype), states, [torch.randn(size, dtype=dtype) for size in sizes], False


@pytest.mark.parametrize("has_bias", [True, False])
@every_cell
def test_are_those_of_a_layer(cell, has_bias):
    of, step = OPERATORS[cell.name], _step(cell, has_bias)
    layer = one_step(*step)
    output, last, *kept = of.layer(*layer)
    last_of_step, kept_of_step = of.cell(*step)
    for actual in (last_of_step, of.cell_inference(*step)):
        assert all(torch.equal(a, e[0]) for a, e in zip(actual, last, strict=True))
    assert all(torch.equal(a, e) for a, e in zip(kept_of_step, [output, *kept], strict=True))

    d_last = [torch.randn_like(state) for state in last_of_step]
    d_last[-1] = None if len(d_last) > 1 else d_last[-1]
    d_layer = [None if d is None else d[None] for d in d_last]
    found = of.backward(None, d_layer, None, *layer, output, *kept, [True] * 8)
    expected = [found[0][0], *(state[0] for state in found[1]), *itertools.chain(*found[2:7])]
    count = 1 + len(cell.states) + len(step[2])
    actual = of.cell_backward(d_last, *step, kept_of_step, [True] * count)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    # Only what is asked for, but for states, which come together.
    for place in range(count):
        needs = [place == other for other in range(count)]
        for other, gradient in enumerate(of.cell_backward(d_last, *step, kept_of_step, needs)):
            together = {place, other} <= set(range(1, 1 + len(cell.states)))
            assert gradient.numel() == 0 if other != place and not together else torch.equal(gradient, expected[other])


@every_cell
def test_opcheck(cell):
    of, step = OPERATORS[cell.name], _step(cell)
    kinds = "test_schema", "test_faketensor"
    torch.library.opcheck(of.cell, step, test_utils=kinds)
    torch.library.opcheck(of.cell_inference, step, test_utils=kinds)
    last, kept = of.cell(*step)
    needs = [True] * (1 + len(cell.states)) + [True, False, False, True]
    torch.library.opcheck(of.cell_backward, (last, *step, kept, needs), test_utils=kinds)


def test_refuse_what_does_not_fit():
    of, (x, states, weights, _) = OPERATORS["lstm"], _step(CELLS["lstm"])
    for arguments, text in (
        ((x[None], states, weights), "input of a step with 2 dimensions, got 3"),
        ((x, [states[0], states[1][0]], weights), "states of a step with 2 dimensions, got 1"),
        ((x, states[:1], weights), "2 initial states, got 1"),
        ((x, states, weights[:3]), "2 or 4 weights of a step, got 3"),
        ((x, states, [weights[1], weights[1], *weights[2:]]), r"weight_ih of size \[28, 5\]"),
    ):
        with pytest.raises(RuntimeError, match=text):
            of.cell_inference(*arguments, False)
    _, kept = of.cell(x, states, weights, False)
    with pytest.raises(RuntimeError, match="7 needs, got 2"):
        of.cell_backward(states, x, states, weights, False, kept, [True, True])
    with pytest.raises(RuntimeError, match="3 tensors that a step kept, got 2"):
        of.cell_backward(states, x, states, weights, False, kept[:2], [True] * 7)


@pytest.mark.parametrize("is_batched", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@every_cell
def test_usual_calls_run_them(cell, mode, with_state, is_batched, monkeypatch):
    """Not the way by a layer, which is several times as long."""
    module, (x, states, *_) = CLASSES[cell.name](I, H), _step(cell, dtype=torch.float32)
    hx = tuple(states) if is_batched else tuple(state[0] for state in states)
    hx = (hx if len(hx) > 1 else hx[0]) if with_state else None
    x = x if is_batched else x[0]
    by_layer = _run_cell._as_layer(cell.name, x, hx, tuple(module.parameters()))
    monkeypatch.setattr(_run_cell, "_as_layer", None)
    with mode():
        found = module(x, hx)
    # With gradients, a cell may run PyTorch's own step: its sums are in another order.
    allowed = 4 * torch.finfo(x.dtype).eps if cell.run_step and mode is torch.enable_grad else 0
    torch.testing.assert_close(found, by_layer, rtol=0, atol=allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_cell
def test_second_order_of_steps(cell, dtype, every_isa):
    """On each instruction set, of whole vectors and of parts."""
    for hidden in (1, 7, 16, 37):
        arguments, expected = moving_steps(cell, hidden, dtype)
        found = [t for results in OPERATORS[cell.name].steps_second_order(*arguments) for t in results]
        found = [t for t in found if t.dim() > 1]
        assert_steps_near(found, expected)


@every_cell
def test_second_order_of_steps_leaves_out_what_is_not_asked_for(cell):
    (before, after, saved, sums, hidden, moves, d_after, d_h), _ = moving_steps(cell, H, torch.float64)
    operator, nothing = OPERATORS[cell.name].steps_second_order, [None] * len(before)
    whole = operator(before, after, saved, sums, hidden, moves, d_after, d_h)
    tangents, *others = operator(before, after, saved, sums, hidden, moves, nothing, None)
    assert all(map(torch.equal, tangents, whole[0]))
    assert all(t.shape == (0,) for results in others for t in results)
    moved, d_sums, d_before, d_before_tangent = operator(before, after, saved, None, None, nothing, d_after, None)
    assert all(t.shape == (0,) for t in (*moved, *d_sums[1::2], *d_before_tangent))
    assert all(map(torch.equal, (*d_sums[::2], *d_before), (*whole[1][::2], *whole[2])))
    for arguments in (
        (before, after, saved, sums, hidden, moves, d_after, d_h),
        (before, after, saved, None, None, nothing, d_after, None),
        (before, after, saved, sums, hidden, moves, nothing, None),
    ):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
    for bad, text in (
        ((before[:-1], after, saved, sums, hidden, moves, d_after, d_h), "states before, after"),
        ((before, after, saved, sums[:, 1:], hidden, moves, d_after, d_h), "expected sums of size"),
        ((before, after, saved, sums.float(), hidden, moves, d_after, d_h), "sums of the dtype and on the device"),
        ((before, [a.half() for a in after], saved, sums, hidden, moves, d_after, d_h), "dtype float32 or float64"),
    ):
        with pytest.raises(RuntimeError, match=text):
            operator(*bad)
    if not cell.is_apart:
        with pytest.raises(RuntimeError, match="no hidden_sums for this cell"):
            operator(before, after, saved, sums, sums, moves, d_after, d_h)


def test_what_an_operator_refuses_is_said_once_and_in_torch_s_words():
    cell, x = CLASSES["lstm"](I, H), torch.randn(B, I)
    h = torch.randn(B, H)
    for hx, error, text in (
        ((None, h), TypeError, r"hx\[0\] to be a Tensor"),
        ((h, None), TypeError, r"hx\[1\] to be a Tensor"),
        ((h,), RuntimeError, "two hidden states, got 1"),
        ((h, h[:2]), RuntimeError, "batch size"),
        ((h, h.double()), RuntimeError, "same dtype"),
    ):
        with pytest.raises(error, match=text) as caught:
            cell(x, hx)
        assert caught.value.__suppress_context__


def test_what_fails_in_an_operator_is_not_hidden(monkeypatch):
    """A call that is right, and fails all the same, does not go another way."""

    def fails(*_):
        raise MemoryError("planted")

    monkeypatch.setattr(_run_cell, "run_step", fails)
    with pytest.raises(MemoryError, match="planted"):
        CLASSES["gru"](I, H)(torch.randn(B, I))
    assert CLASSES["gru"](I, 0)(torch.randn(B, I)).shape == (B, 0)
