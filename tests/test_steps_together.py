"""Gradients of weights that the steps of a loop share: of several steps at once, and those of torch.nn's cells."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from family import GRU, LSTM, tensors_of
from torch.autograd import grad
from torch.utils.checkpoint import checkpoint

from fusedlstm import FusedRNNCell, _autograd_steps, _steps_together
from fusedlstm.cells import CELLS

# An RNN's step in training is PyTorch's own.
members = pytest.mark.parametrize("member", [LSTM, GRU], ids=str)
B, I, H, T = 3, 5, 7, 6


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """As with weights that are large enough to gain."""
    monkeypatch.setattr(_autograd_steps, "most_steps", lambda cell, rows: 100)


@pytest.fixture
def counted(monkeypatch):
    """Of each call that makes gradients of weights for several steps, how many steps these are."""
    counts, run = [], _steps_together.gradients_of_weights

    def counting(name, steps, *others):
        counts.append(len(steps))
        return run(name, steps, *others)

    monkeypatch.setattr(_autograd_steps, "gradients_of_weights", counting)
    return counts


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(T, B, I, generator=generator, dtype=dtype).requires_grad_().unbind())


def first_h(after):
    return after[0] if isinstance(after, tuple) else after


def loop(cell, xs, state=None):
    """The states after each step."""
    states = []
    for x in xs:
        state = cell(x, state)
        states.append(state)
    return states


def total(after):
    return sum((1 + k) * tensor.square().sum() for k, tensor in enumerate(tensors_of(after)))


def assert_as_torchs(member, program, **options):
    """program(cell): what both cells make the same of, a list of tensors."""
    torch.manual_seed(0)
    fused, plain = member.pair_of_cells(I, H, dtype=torch.float64, **options)
    assert_near(program(fused), program(plain))


def assert_near(found, expected):
    """In float64: the sums are those of other orders."""
    assert len(found) == len(expected) > 0
    for actual, wanted in zip(found, expected):
        assert (actual is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-11)


def all_gradients(loss, cell, *others):
    return grad(loss, [*others, *cell.parameters()], allow_unused=True)


LOSSES = {
    "last": lambda states: total(states[-1]),
    "every": lambda states: sum(map(total, states)),
    "h": lambda states: first_h(states[-1]).sum(),  # no gradient arrives at the last c
}


@members
@pytest.mark.parametrize("of", LOSSES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_loop(member, bias, of, counted):
    xs = inputs()
    assert_as_torchs(member, lambda cell: all_gradients(LOSSES[of](loop(cell, xs)), cell, *xs), bias=bias)
    assert counted == [T]


@members
def test_into_grad(member, counted):
    """Backward adds to what is there."""
    xs = [x.detach() for x in inputs()]

    def program(cell):
        for _ in range(2):
            total(loop(cell, xs)[-1]).backward()
        return [p.grad for p in cell.parameters()]

    assert_as_torchs(member, program)
    assert counted == [T, T]


@members
def test_initial_states_have_gradients(member):
    state = [torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in range(2 if member is LSTM else 1)]
    xs = inputs()
    given = tuple(state) if member is LSTM else state[0]
    assert_as_torchs(member, lambda cell: all_gradients(total(loop(cell, xs, given)[-1]), cell, *state))


@members
def test_as_many_as_there_is_room_for(member, counted, monkeypatch):
    monkeypatch.setattr(_autograd_steps, "most_steps", lambda cell, rows: 4)
    xs = inputs()
    assert_as_torchs(member, lambda cell: all_gradients(total(loop(cell, xs)[-1]), cell, *xs))
    assert counted == [4, 2]


@members
def test_a_chain_that_is_broken(member, counted):
    """By what is done to the state between two steps."""
    xs = inputs()

    def program(cell):
        state = loop(cell, xs[:4])[-1]
        state = tuple(0.5 * s for s in state) if member is LSTM else 0.5 * state
        return all_gradients(total(loop(cell, xs[4:], state)[-1]), cell, *xs)

    assert_as_torchs(member, program)
    assert counted == [2, 4]


@members
def test_two_futures_of_a_state(member, counted):
    xs = inputs()

    def program(cell):
        state = loop(cell, xs[:2])[-1]
        return all_gradients(total(loop(cell, xs[2:], state)) + total(loop(cell, xs[3:], state)), cell, *xs)

    assert_as_torchs(member, program)
    assert counted == [2 + 4 + 3]


@members
def test_h_that_is_an_input_too(member, counted):
    """As a decoder's own output."""
    torch.manual_seed(0)
    fused, plain = member.pair_of_cells(H, H, dtype=torch.float64)
    x = torch.randn(B, H, dtype=torch.float64, requires_grad=True)

    def program(cell):
        state, given = None, x
        for _ in range(T):
            state = cell(given, state)
            given = first_h(state)
        return all_gradients(total(state), cell, x)

    assert_near(program(fused), program(plain))
    assert counted == [T]


@members
def test_two_cells_in_turn(member, counted):
    """Each step's weights are others than those of the one before it."""
    torch.manual_seed(0)
    pairs = [member.pair_of_cells(I, H, dtype=torch.float64) for _ in range(2)]
    xs = inputs()

    def program(cells):
        state = None
        for k, x in enumerate(xs):
            state = cells[k % 2](x, state)
        return grad(total(state), [p for cell in cells for p in cell.parameters()])

    assert_near(*map(program, zip(*pairs)))
    assert counted == []


def test_two_kinds_of_cells_with_the_same_weights(counted):
    """Those of RNNs, which are steps of ours in 16 bits."""
    cells = [FusedRNNCell(I, H, nonlinearity=kind, dtype=torch.bfloat16) for kind in ("tanh", "relu")]
    for name, parameter in cells[0].named_parameters():
        setattr(cells[1], name, parameter)
    xs = [x.detach() for x in inputs(torch.bfloat16)]
    state = None
    for k, x in enumerate(xs):
        state = cells[k % 2](x, state)
    state.sum().backward()
    assert counted == []
    loop(cells[1], xs)[-1].sum().backward()
    assert counted == [T]


@members
def test_nothing_is_handed_to_where_the_pass_does_not_come(member):
    """That a pass returns one parameter's gradient is taken to mean that it is for all."""
    torch.manual_seed(0)
    cell, above = (member.pair_of_cells(*sizes, dtype=torch.float64)[0] for sizes in ((I, H), (H, H)))
    xs = [x.detach().requires_grad_() for x in inputs()]
    states = loop(cell, xs)
    loss = total(above(first_h(states[-1]), states[-1]))
    grad(loss, [above.weight_ih, xs[3]], retain_graph=True)
    assert not any(getattr(first_h(state).grad_fn, "handed", None) for state in states)


@members
@pytest.mark.parametrize("of", ["weight_ih", "bias_hh", "weights of hh", "a state between", "state and weight", "x"])
def test_a_part_of_the_gradients(member, of):
    xs = inputs()

    def program(cell):
        states = loop(cell, xs)
        between = [first_h(states[2])]  # of an LSTM's c that of torch.nn counts what it does to h, too
        asked = {
            "weight_ih": [cell.weight_ih], "bias_hh": [cell.bias_hh], "weights of hh": [cell.bias_hh, cell.weight_hh],
            "a state between": between, "state and weight": [*between, cell.weight_hh], "x": [xs[1]],
        }  # fmt: skip
        return grad(total(states[-1]) + total(states[3]), asked[of])

    assert_as_torchs(member, program)


@members
@pytest.mark.parametrize("frozen", ["weight_ih", "weight_hh", "bias_ih", "all but bias_ih"])
def test_weights_without_gradients(member, frozen, counted):
    xs = inputs()

    def program(cell):
        for name, parameter in cell.named_parameters():
            parameter.requires_grad_((name == "bias_ih") if frozen.startswith("all") else name != frozen)
        total(loop(cell, xs)[-1]).backward()
        return [p.grad for p in cell.parameters()]

    assert_as_torchs(member, program)
    assert counted == [T]


@members
def test_weights_that_are_computed(member, counted):
    """No parameters, as those of parametrizations: with gradients of what they are computed from."""
    xs = inputs()

    def program(cell):
        scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
        weights = {name: scale * parameter for name, parameter in cell.named_parameters()}
        state = None
        for x in xs:
            state = torch.func.functional_call(cell, weights, (x, state))
        return all_gradients(total(state), cell, scale)

    assert_as_torchs(member, program)
    assert counted == [T]


@members
def test_a_graph_that_is_kept(member, counted):
    xs = inputs()

    def program(cell):
        loss = total(loop(cell, xs)[-1])
        first = grad(loss, [*cell.parameters()], retain_graph=True)
        return [*first, *grad(loss, [*cell.parameters()])]

    assert_as_torchs(member, program)
    assert counted == [T, T]


@members
def test_a_pass_that_failed(member):
    """Leaves nothing to the next one."""
    xs = inputs()

    def program(cell):
        states = loop(cell, xs)
        loss, fails = total(states[-1]), [True]

        def hook(gradient):
            if fails:
                raise ArithmeticError
            return gradient

        first_h(states[2]).register_hook(hook)
        with pytest.raises(ArithmeticError):
            grad(loss, [*cell.parameters()], retain_graph=True)
        fails.clear()
        return grad(loss, [*cell.parameters()])

    assert_as_torchs(member, program)


def test_nothing_is_held_afterwards():
    torch.manual_seed(0)
    cell, _ = LSTM.pair_of_cells(I, H, dtype=torch.float64)
    for fails in (False, True):
        xs = [x.detach().clone() for x in inputs()]
        states = loop(cell, xs)
        if fails:
            first_h(states[0]).register_hook(lambda gradient: 1 / 0)
        held = [weakref.ref(x) for x in xs]
        loss = total(states[-1])
        if fails:
            with pytest.raises(ZeroDivisionError):
                loss.backward()
        else:
            loss.backward(retain_graph=True)
            nodes = [first_h(state).grad_fn for state in states]
            assert not any(getattr(node, "handed", None) for node in nodes)
            del nodes
        del states, loss, xs
        gc.collect()
        assert [ref() for ref in held] == [None] * T


@members
def test_passes_of_one_graph_at_a_time(member):
    """In several threads: each has its own."""
    torch.manual_seed(0)
    fused, plain = member.pair_of_cells(I, H, dtype=torch.float64)
    xs = inputs() * 5
    loss = total(loop(fused, xs)[-1])
    expected = grad(total(loop(plain, xs)[-1]), [*plain.parameters()])
    with ThreadPoolExecutor(4) as threads:
        all_found = threads.map(lambda _: grad(loss, [*fused.parameters()], retain_graph=True), range(16))
        for found in all_found:
            assert_near(found, expected)


@members
def test_a_gradient_penalty(member):
    """First and second order arrive at the same steps, in a pass that is itself without a graph."""
    xs = inputs()

    def program(cell):
        states = loop(cell, xs)
        (d_x,) = grad(total(states[3]), xs[1], create_graph=True)
        (d_x.square().sum() + total(states[-1])).backward()
        return [p.grad for p in cell.parameters()]

    assert_as_torchs(member, program)


@members
def test_batched_gradients(member):
    xs = inputs()

    def program(cell):
        h = first_h(loop(cell, xs)[-1])
        cotangents = torch.eye(H, dtype=torch.float64).unsqueeze(1).expand(H, B, H)
        return grad(h, [*cell.parameters(), xs[0]], cotangents, is_grads_batched=True)

    assert_as_torchs(member, program)


@members
def test_checkpoints(member, counted):
    xs = inputs()

    def program(cell):
        state = None
        for x in xs:
            state = checkpoint(cell, x, state, use_reentrant=False)
        return all_gradients(total(state), cell, *xs)

    assert_as_torchs(member, program)
    assert counted == [T]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@members
def test_as_exact_as_step_by_step(member, dtype, monkeypatch):
    """Rows are added up in another order, for a few percent more or less; gradients of 16 bits are rounded once."""
    torch.manual_seed(0)
    size = 128
    fused, _ = member.pair_of_cells(size, size, dtype=dtype)
    exact, _ = member.pair_of_cells(size, size, dtype=torch.float64)
    exact.load_state_dict({name: value.double() for name, value in fused.state_dict().items()})
    xs = [torch.randn(2, size, dtype=dtype) for _ in range(20)]
    expected = grad(total(loop(exact, [x.double() for x in xs])[-1]), [*exact.parameters()])

    def errors():
        found = grad(total(loop(fused, xs)[-1]), [*fused.parameters()])
        return [(a - b).square().mean().sqrt().item() for a, b in zip(found, expected)]

    together = errors()
    monkeypatch.setattr(_autograd_steps, "most_steps", lambda cell, rows: 0)
    for error, alone in zip(together, errors(), strict=True):
        assert error <= (1.1 if dtype is torch.float32 else 1) * alone


def most_steps(cell, rows, size, device="cpu"):
    return _steps_together.most_steps(CELLS[cell], [torch.empty(rows, size, device=device)] * 3)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_where_it_gains(cell):
    assert most_steps(cell, 1, 32) == 0, "expected small weights to have each step by itself"
    assert most_steps(cell, 64, 128) == 0, "expected steps of many rows to be by themselves"
    assert most_steps(cell, 1, 512, "meta") == 0, "expected each step by itself on other devices"
    assert most_steps(cell, 1, 128) > 50 and most_steps(cell, 0, 128) > 50


@members
@pytest.mark.parametrize("rows", [1, 8])
def test_they_take_no_more_memory_than_the_gradients(member, rows):
    size = 128
    fused, _ = member.pair_of_cells(size, size)
    after = fused(torch.randn(rows, size))
    step = [*[torch.empty_like(tensor) for tensor in tensors_of(after)], *first_h(after).grad_fn.saved_tensors]
    of_weights = sum(tensor.numel() for tensor in (fused.weight_ih, fused.weight_hh))
    taken = sum(tensor.numel() for tensor in step) - of_weights - 2 * fused.bias_ih.numel()
    most = most_steps(member.cell, rows, size)
    assert most * taken <= of_weights < (most + 1) * taken


@members
def test_as_it_comes(member, counted, monkeypatch):
    """Sizes where it gains, as they are."""
    monkeypatch.setattr(_autograd_steps, "most_steps", _steps_together.most_steps)
    torch.manual_seed(0)
    fused, plain = member.pair_of_cells(128, 128, dtype=torch.float64)
    x = torch.randn(2, 128, dtype=torch.float64, requires_grad=True)
    found, expected = (all_gradients(total(loop(cell, [x] * 50)[-1]), cell, x) for cell in (fused, plain))
    assert_near(found, expected)
    assert sum(counted) == 50 and max(counted) == most_steps(member.cell, 2, 128) < 50
