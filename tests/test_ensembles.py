"""Ensembles: layers of the same sizes with weights of their own, in one operator call."""

from dataclasses import replace

import pytest
import torch
from layers import draw, flat
from tolerance import between_calls
from torch.func import vmap

from benchmarks.cases import Case
from fusedlstm import reference
from fusedlstm._arguments import Differentiable, Incoming, LayerArguments
from fusedlstm.cells import LSTM
from fusedlstm.ops import OPERATORS

ops = OPERATORS["lstm"]
EVERY = [True] * len(Differentiable._fields)

SMALL = Case("small", 4, 3, 5, 7)
CASES = [
    SMALL,
    replace(SMALL, name="no-bias", bias=False),
    replace(SMALL, name="bidirectional", bidirectional=True),
    replace(SMALL, name="projection", proj_size=3, bidirectional=True),
    replace(SMALL, name="lengths", bidirectional=True, variable="lengths"),
    replace(SMALL, name="packed", bidirectional=True, variable="packed"),
    replace(SMALL, name="resets", resets=True),
    replace(SMALL, name="one-step", T=1, B=1),
    replace(SMALL, name="no-steps", T=0),
    replace(SMALL, name="no-rows", B=0),
    # Work enough for a team of threads.
    Case("team", 6, 9, 33, 66, proj_size=20, bidirectional=True),
    Case("team-resets", 8, 8, 64, 48, resets=True),
]


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw_ensemble(case, M, device, dtype):
    """The arguments of `lstm_layer` for M members, and gradients for its results."""
    drawn = draw(case, members=M, reset_state=case.resets, device=device, dtype=dtype)
    return drawn.layer, drawn.incoming


def run_operators(arguments, incoming, needs):
    """All results of the three operators."""
    results = ops.layer(*arguments)
    output, _, gates, cell_states = results
    gradients = ops.backward(*incoming, *arguments, output, gates, cell_states, needs)
    return [*flat(results), *flat(ops.inference(*arguments)), *flat(gradients)]


def assert_members_are_calls(arguments, incoming, needs, rtol=0.0):
    """rtol: of the largest element of a tensor; gradients of long cancelling sums have smaller ones."""
    M = arguments.initial[0].size(0)
    found = run_operators(arguments, incoming, needs)
    for m in range(M):
        expected = run_operators(reference.member(arguments, m), Incoming(*reference.of_member(incoming, m)), needs)
        for actual, one in zip(found, expected, strict=True):
            if one.shape == (0,):
                assert actual.shape == (0,)  # not needed
            else:
                assert actual.size(0) == M
                atol = rtol * one.abs().max().item() if one.numel() else 0.0
                torch.testing.assert_close(actual[m], one, rtol=0.0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("M", [1, 2, 3, 7])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_members_are_calls_bit_for_bit(case, M, dtype, device):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_members_are_calls(*draw_ensemble(case, M, device, dtype), EVERY, rtol=between_calls(device, dtype))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("M", [1, 2, 3, 7])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_members_by_threads_and_by_teams(case, M, threads):
    """Sums over rows are added in another order by teams."""
    assert_members_are_calls(*draw_ensemble(case, M, "cpu", torch.float64), EVERY, rtol=2e-13)


@pytest.mark.parametrize("plan", ["direct:rows", "direct:units", "packed:rows", "packed:units"])
def test_every_plan(plan):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ops.fusedlstm._cpu_force("", plan)
    try:
        for case in (CASES[3], CASES[-1]):
            assert_members_are_calls(*draw_ensemble(case, 3, "cpu", torch.float64), EVERY, rtol=2e-13)
    finally:
        torch.ops.fusedlstm._cpu_force("", "")
        torch.set_num_threads(before)


@pytest.mark.parametrize("place", range(len(EVERY)))
def test_one_gradient_is_needed(place, device):
    needs, rtol = [k == place for k in range(len(EVERY))], between_calls(device, torch.float64)
    for case in (CASES[3], CASES[6]):
        assert_members_are_calls(*draw_ensemble(case, 3, device, torch.float64), needs, rtol=rtol)
        nothing = Incoming(None, [None, None], None)
        arguments, _ = draw_ensemble(case, 2, device, torch.float64)
        assert_members_are_calls(arguments, nothing, needs, rtol=rtol)


def test_strides(device):
    """Members that share a tensor, in another dimension, and as parts of larger tensors."""

    def common(t):
        return t[:1].expand_as(t)

    def last(t):
        return t.movedim(0, -1).contiguous().movedim(-1, 0)

    def part(t):
        return torch.stack([t, t], 1)[:, 1]

    for case in (CASES[3], CASES[4], CASES[6]):
        arguments, incoming = draw_ensemble(case, 3, device, torch.float64)
        for change in (common, last, part):

            def changed(a, change=change):
                return list(map(changed, a)) if isinstance(a, (list, tuple)) else a if a is None else change(a)

            arranged, rtol = LayerArguments(*changed(arguments[:-1])), between_calls(device, torch.float64)
            assert_members_are_calls(arranged, Incoming(*changed(incoming)), EVERY, rtol=rtol)


@pytest.mark.parametrize("case", CASES[:9], ids=lambda case: case.name)
def test_near_reference(case, device):
    arguments, incoming = draw_ensemble(case, 2, device, torch.float64)
    results, expected = ops.layer(*arguments), reference.layer(LSTM, *arguments)
    for actual, e in zip(flat(results), flat(expected), strict=True):
        torch.testing.assert_close(actual, e, rtol=0, atol=1e-12)
    more = (*incoming, *arguments, results[0], *results[2:], EVERY)
    found, expected = ops.backward(*more), reference.layer_backward(LSTM, *more)
    for actual, e in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(actual, e, rtol=0, atol=1e-12)


def _replaced(name, value):
    def change(arguments):
        return arguments._replace(**{name: value(getattr(arguments, name))})

    return change


@pytest.mark.parametrize(
    "change, text",
    [
        (_replaced("input", lambda x: x[None]), "input with 3 dimensions, or one more for an ensemble, got 5"),
        (_replaced("input", lambda x: x[0]), r"expected weight_hh of size \[4 \* hidden_size, ...\], got \[2, 28, 7\]"),
        (_replaced("input", lambda x: x[:1]), r"expected weight_ih of size \[1, 28, 5\], got \[2, 28, 5\]"),
        (_replaced("initial", lambda s: [s[0][0], s[1]]), r"expected initial of size \[2, 1, 3, 7\], got \[1, 3, 7\]"),
        (_replaced("weight_ih", lambda w: [w[0][0]]), r"expected weight_ih of size \[2, 28, 5\], got \[28, 5\]"),
        (_replaced("weight_hh", lambda w: [w[0][:1]]), r"expected weight_hh of size \[2, 28, 7\], got \[1, 28, 7\]"),
        (
            _replaced("weight_hh", lambda w: [w[0][0]]),
            r"weight_hh of size \[members, 4 \* hidden_size, ...\], got \[28, 7\]",
        ),
        (_replaced("weight_hh", lambda w: [*w, *w]), "expected 1 weight_hh, got 2"),
        (_replaced("bias_ih", lambda w: [*w, *w]), "expected 0 or 1 bias_ih, got 2"),
        (_replaced("lengths", lambda _: torch.ones(3).long()), r"expected lengths of size \[2, 3\], got \[3\]"),
        (_replaced("lengths", lambda _: torch.tensor([[1, 2, 3], [4, 5, 0]])), "between 0 and 4, got 5 at index 4"),
        (_replaced("reset", lambda _: torch.ones(4, 3).bool()), r"expected reset of size \[2, 4, 3\], got \[4, 3\]"),
        (
            _replaced("batch_sizes", lambda _: torch.tensor([3, 1])),
            "packed input with 2 dimensions, or one more .* got 4",
        ),
    ],
)
def test_errors(change, text):
    arguments = draw_ensemble(SMALL, 2, "cpu", torch.float32)[0]
    with pytest.raises(RuntimeError, match=text):
        ops.layer(*change(arguments))


def test_errors_of_backward():
    arguments, incoming = draw_ensemble(SMALL, 2, "cpu", torch.float32)
    output, _, gates, cell_states = ops.layer(*arguments)
    kept = {"output": output, "saved": gates, "carried": cell_states}
    d_h_n, d_c_n = incoming.last
    for name, wrong in {
        "d_output": incoming._replace(output=incoming.output[:1]),
        "d_last": incoming._replace(last=[d_h_n, d_c_n[:1]]),
        "d_carried": incoming._replace(carried=incoming.carried[:1]),
    }.items():
        with pytest.raises(RuntimeError, match=rf"expected {name} of size \[2, .*, got \[1, "):
            ops.backward(*wrong, *arguments, *kept.values(), EVERY)
    with pytest.raises(RuntimeError, match="expected 2 d_last, got 1"):
        ops.backward(*incoming._replace(last=[d_h_n]), *arguments, *kept.values(), EVERY)
    for name in kept:
        wrong = kept | {name: kept[name][0]}
        with pytest.raises(RuntimeError, match=rf"expected {name} of size \[2, "):
            ops.backward(*incoming, *arguments, *wrong.values(), EVERY)


@pytest.mark.parametrize("case", CASES[:9], ids=lambda case: case.name)
def test_opcheck(case):
    arguments, incoming = draw_ensemble(case, 2, "cpu", torch.float64)
    output, _, gates, cell_states = ops.layer(*arguments)
    tests = ["test_schema", "test_faketensor"]
    torch.library.opcheck(ops.layer, arguments, test_utils=tests)
    torch.library.opcheck(ops.inference, arguments, test_utils=tests)
    more = (*incoming, *arguments, output, gates, cell_states, EVERY)
    torch.library.opcheck(ops.backward, more, test_utils=tests)


def test_batch_sizes_are_common():
    arguments, _ = draw_ensemble(CASES[5], 2, "cpu", torch.float64)
    first = reference.member(arguments, 0)
    with pytest.raises(NotImplementedError, match="batch_sizes common to all members"):
        vmap(lambda sizes: ops.layer(*first._replace(batch_sizes=sizes))[0])(torch.stack([first.batch_sizes] * 2))
