"""All layers of a usual call by one operator: bit for bit what layer by layer gives, and as differentiable."""

from unittest import mock

import pytest
import torch
from family import LSTM, every, tensors_of
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

from fusedlstm import FusedLSTM, FusedLSTMCell, _autograd, _run, freeze, quantize
from fusedlstm.ops import OPERATORS

OPTIONS = {
    "one layer": {},
    "three layers": {"num_layers": 3},
    "both directions": {"num_layers": 2, "bidirectional": True},
    "one layer in both directions": {"bidirectional": True},
    "no bias": {"num_layers": 2, "bias": False},
    "batch first": {"num_layers": 2, "batch_first": True},
    "projection": {"num_layers": 3, "proj_size": 3, "bidirectional": True},
    "projection without bias": {"num_layers": 2, "proj_size": 3, "bias": False},
    "dropout that is off": {"num_layers": 2, "dropout": 0.5},
}


def variants(member):
    return [(name, options) for name, options in OPTIONS.items() if member is LSTM or "proj_size" not in options]


def by_layers():
    """A context in which calls run layer by layer, as those that are not usual do."""
    return mock.patch.multiple(_run, is_plain=lambda *_: False, is_eager=lambda *_: False)


def states_of(module, B, dtype):
    rows, R = module.num_layers * (1 + module.bidirectional), module.proj_size or module.hidden_size
    h = torch.randn(rows, B, R, dtype=dtype)
    return (h, torch.randn(rows, B, module.hidden_size, dtype=dtype)) if module.mode == "LSTM" else h


def call(module, x, hx, which=None):
    """Results, and gradients of everything, or through the results at places `which` alone."""
    leaves = [t.detach().requires_grad_() for t in (x, *([] if hx is None else tensors_of(hx)))]
    states = None if hx is None else leaves[1] if len(leaves) == 2 else tuple(leaves[1:])
    results = tensors_of(module(leaves[0], states))
    through = results if which is None else [results[place] for place in which]
    inputs = [*leaves, *module.parameters()]
    found = torch.autograd.grad(through, inputs, [t.cos() for t in through], allow_unused=True)
    return [*results, *found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("has_states", [True, False])
@every
def test_is_layer_by_layer(member, has_states, dtype):
    for name, options in variants(member):
        module = member.layer(4, 6, **options, dtype=dtype).eval()
        x = torch.randn(5, 3, 4, dtype=dtype)
        hx = states_of(module, 5 if "batch_first" in options else 3, dtype) if has_states else None
        actual = call(module, x, hx)
        with torch.no_grad():
            inference = tensors_of(module(x, hx))
        with by_layers():
            expected = call(module, x, hx)
        assert len(actual) == len(expected) and all(map(torch.equal, actual, expected)), name
        assert all(map(torch.equal, inference, expected)), name


@every
def test_packed_is_layer_by_layer(member):
    for name, options in variants(member):
        if "batch_first" in options:
            continue
        module = member.layer(4, 6, **options).eval()
        packed = pack_sequence([torch.randn(n, 4) for n in (5, 7, 2)], enforce_sorted=False)
        for hx in (None, states_of(module, 3, torch.float32)):
            actual = tensors_of(module(packed, hx))
            d_actual = torch.autograd.grad([actual[0], *actual[-1:]], module.parameters(), [actual[0], actual[-1]])
            with by_layers():
                expected = tensors_of(module(packed, hx))
                d_expected = torch.autograd.grad(
                    [expected[0], *expected[-1:]], module.parameters(), [expected[0], expected[-1]]
                )
            assert all(map(torch.equal, actual, expected)), name
            assert all(map(torch.equal, d_actual, d_expected)), name


@pytest.mark.parametrize("which", [[0], [1], [2], [1, 2]], ids=str)
def test_gradients_through_some_results(which):
    """What nothing arrives at is left out, or zero."""
    module, x = FusedLSTM(4, 6, 3), torch.randn(5, 3, 4)
    hx = states_of(module, 3, torch.float32)
    actual = call(module, x, hx, which)
    with by_layers():
        expected = call(module, x, hx, which)
    for a, e in zip(actual, expected, strict=True):
        assert a is not None and torch.equal(a, torch.zeros_like(a) if e is None else e)


@pytest.mark.parametrize("wanted", ["weight_hh_l0", "weight_ih_l1", "bias_hh_l2", "x", "h_0"])
def test_one_gradient_alone(wanted):
    """Layers below it do not run."""
    module, x = FusedLSTM(4, 6, 3), torch.randn(5, 3, 4, requires_grad=True)
    h, c = (state.requires_grad_() for state in states_of(module, 3, torch.float32))
    leaf = {"x": x, "h_0": h}.get(wanted)
    leaf = dict(module.named_parameters())[wanted] if leaf is None else leaf

    def gradient():
        return torch.autograd.grad(module(x, (h, c))[0].sin().sum(), leaf)[0]

    actual = gradient()
    with by_layers():
        assert torch.equal(actual, gradient())


def test_frozen_weights():
    module, x = FusedLSTM(4, 6, 3, bidirectional=True), torch.randn(5, 3, 4)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in ("weight_hh_l1_reverse", "bias_ih_l2"))

    def gradients():
        asked = [p for p in module.parameters() if p.requires_grad]
        return torch.autograd.grad(module(x)[0].sin().sum(), asked)

    actual = gradients()
    with by_layers():
        assert all(map(torch.equal, actual, gradients()))


@every
def test_second_and_third_order(member):
    """Also where a state depends on the input, and one tensor is a weight of two layers."""
    module = member.layer(6, 6, num_layers=2, dtype=torch.float64)
    module.weight_hh_l1 = module.weight_hh_l0
    x = torch.randn(4, 2, 6, dtype=torch.float64, requires_grad=True)
    parameters = list(module.parameters())

    def orders():
        h = x[:1].expand(2, 2, 6).tanh()
        output, _ = module(x, (h, h.sin()) if member is LSTM else h)
        first = torch.autograd.grad(output.square().sum(), [x, *parameters], create_graph=True)
        second = torch.autograd.grad(sum(d.square().sum() for d in first), [x, *parameters], create_graph=True)
        return [*second, *torch.autograd.grad(sum(d.sum() for d in second), [x, *parameters])]

    actual = orders()
    with by_layers():
        expected = orders()
    torch.testing.assert_close(actual, expected)


def test_states_of_any_stride():
    module, x = FusedLSTM(4, 6, 2), torch.randn(5, 3, 4)
    one = torch.randn(6).expand(2, 3, 6)
    apart = torch.randn(3, 2, 12)[..., ::2].transpose(0, 1)
    for hx in ((one, one), (apart, one), (torch.randn(4, 3, 6)[::2], apart)):
        actual = tensors_of(module(x, hx))
        with by_layers():
            assert all(map(torch.equal, actual, tensors_of(module(x, hx))))


def test_last_states_are_tensors_of_their_own():
    """What is written into one changes no other, and no result of a later call."""
    module, x = FusedLSTM(4, 6, 2), torch.randn(5, 3, 4)
    with torch.no_grad():
        output, (h, c) = module(x)
        kept = output.clone(), c.clone()
        h.zero_()
        assert torch.equal(output, kept[0]) and torch.equal(c, kept[1])
        again, (h, c) = module(x)
        assert torch.equal(again, kept[0]) and not h.eq(0).any()
    assert h.is_contiguous() and h.shape == (2, 3, 6)


@pytest.mark.parametrize("T, B", [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_run(T, B):
    module, x = FusedLSTM(4, 6, 2), torch.randn(T, B, 4)
    hx = states_of(module, B, torch.float32)
    actual = call(module, x, hx)
    with by_layers():
        assert all(map(torch.equal, actual, call(module, x, hx)))


def test_checkpoint_and_hooks_of_saved_tensors():
    module, x = FusedLSTM(4, 6, 2), torch.randn(5, 3, 4, requires_grad=True)
    expected = torch.autograd.grad(module(x)[0].sum(), [x, *module.parameters()])
    output = checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(output.sum(), [x, *module.parameters()]), expected))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        output = module(x)[0]
    assert all(map(torch.equal, torch.autograd.grad(output.sum(), [x, *module.parameters()]), expected))


def test_one_call_for_all_layers():
    module, x = FusedLSTM(4, 6, 4), torch.randn(5, 3, 4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(x)[0].sum().backward()
        with torch.no_grad():
            module(x)
    called = {event.key: event.count for event in profile.key_averages() if "fusedlstm::" in event.key}
    names = ("lstm_stack", "lstm_stack_backward", "lstm_stack_inference")
    assert called == {f"fusedlstm::{name}": 1 for name in names}


@pytest.mark.parametrize("prepare", [freeze, quantize])
@every
def test_prepared_weights(prepare, member):
    """As layer by layer, which calls with lengths are; with states, and without."""
    for name, options in variants(member):
        module = prepare(member.layer(4, 6, **options).eval())
        B = 5 if "batch_first" in options else 3
        x, everything = torch.randn(5, 3, 4), torch.full((B,), 5 + 3 - B)
        for hx in (None, states_of(module, B, torch.float32)):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
                actual = tensors_of(module(x, hx))
            called = [event.key for event in profile.key_averages() if "fusedlstm::" in event.key]
            assert len(called) == 1 and "_stack_" in called[0], name
            with torch.no_grad():
                expected = tensors_of(module(x, hx, lengths=everything))
            assert all(map(torch.equal, actual, expected)), name


STACK = OPERATORS["lstm"].stack_inference
X, W = torch.randn(5, 3, 4), [torch.randn(24, 4), torch.randn(24, 6)]
W2 = [*W, torch.randn(24, 6), torch.randn(24, 6)]


MALFORMED = {
    "no layers": ((X, None, None, W, None, 0, 1, False), "expected layers >= 1 and 1 or 2 directions, got 0 and 1"),
    "three directions": ((X, None, None, W, None, 1, 3, False), "1 or 2 directions, got 1 and 3"),
    "one weight": (
        (X, None, None, W[:1], None, 1, 1, False),
        "2 to 5 weights for each of 1 layers and 1 directions, got 1",
    ),
    "odd weights": ((X, None, None, [*W2, *W2], None, 3, 1, False), "for each of 3 layers and 1 directions, got 8"),
    "matrices for biases": ((X, None, None, W2, None, 1, 1, False), "expected bias_ih of size"),
    "states of rows": (
        (X, X, X, W, None, 1, 1, False),
        r"expected states of size \[1, batch, f.*\], got \[5, 3, 4\]",
    ),
    "narrow states": ((X, X[:1], X[:1], W, None, 1, 1, False), r"initial of size \[1, 3, 6\], got \[1, 3, 4\]"),
    "flat input": ((X[0], None, None, W, None, 1, 1, False), "expected states with such an input, got none"),
    "packed without states": (
        (X[0], None, None, W, torch.tensor([3]), 1, 1, False),
        "expected states with such an input",
    ),
    "other dtype": ((X.double(), None, None, W, None, 1, 1, False), "expected weight_ih of the input's dtype"),
    "second layer of the first's": ((X, None, None, [*W, *W], None, 2, 1, False), "expected weight_ih of size"),
}


@pytest.mark.parametrize(("arguments", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_direct_calls(arguments, reason):
    with pytest.raises(RuntimeError, match=reason):
        STACK(*arguments)


def test_malformed_backward_calls():
    x, weights = X, W
    output, _, kept = OPERATORS["lstm"].stack(x, [], weights, None, 1, 1, False)
    backward = OPERATORS["lstm"].stack_backward
    with pytest.raises(RuntimeError, match="expected 2 tensors that a stack kept, got 1"):
        backward(output, [None, None], x, [], weights, None, 1, 1, False, output, kept[:1], [True] * 3)
    with pytest.raises(RuntimeError, match="expected 3 needs, got 2"):
        backward(output, [None, None], x, [], weights, None, 1, 1, False, output, kept, [True] * 2)


def test_what_a_pass_asks_for():
    """Gradients that torch.autograd.grad returns, of leaves, are asked for without an exception for each parameter."""
    module, x = FusedLSTM(4, 6, 3), torch.randn(5, 3, 4, requires_grad=True)
    weights, needs, told = [*module.parameters()], [], []

    def told_of(node):
        told.append(will_run(node))
        return told[-1]

    operators, will_run = OPERATORS["lstm"], _autograd.will_run
    spy = operators._replace(stack_backward=lambda *a: needs.append(a[-1]) or operators.stack_backward(*a))
    with mock.patch.dict(OPERATORS, lstm=spy), mock.patch.object(_autograd, "will_run", told_of):
        for asked in ([x], weights, [x, *weights], weights[4:]):
            torch.autograd.grad(module(x)[0].sum(), asked)
        module(x)[0].sum().backward(inputs=[weights[1]])
        expected = "one exception for all parameters, one for an input beside them, and none for the input alone"
        assert told.count(None) == 4, f"expected {expected}"
        cell, state = FusedLSTMCell(4, 6), None
        for row in x.detach():
            state = cell(row, state)
        torch.autograd.grad(state[0].sum(), [*cell.parameters()])
        assert told.count(None) == 5, "expected one more for all steps"
    of_input, of_others = [True] + [False] * 12, [False] + [True] * 12
    assert needs[:3] == [of_input, of_others, [True] * 13]
    assert needs[3] == [False] * 5 + [True] * 8
    assert needs[4] == [place == 2 for place in range(13)]
