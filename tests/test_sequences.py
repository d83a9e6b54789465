"""Sequences of different lengths, packed or by `lengths`, resets inside them, and all-step states."""

from dataclasses import replace

import pytest
import torch
from cases import OPTIONS
from family import every, tensors_of
from tolerance import MEMORY, SAFETY, activations
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import fusedlstm
from fusedlstm import FusedLSTM, functional
from fusedlstm.cells import CELLS, GRU, LSTM, RNN_RELU, RNN_TANH

LENGTHS = [[5, 2, 3], [5, 5, 5], [1, 5, 1]]
ONE_DIRECTION = [case for case in OPTIONS if not case.bidirectional]
MANY, TWO_LAYERS = OPTIONS[-1], OPTIONS[2]
OTHERS = [GRU, RNN_TANH, RNN_RELU]
of_cells = pytest.mark.parametrize(
    "cell, case",
    [(LSTM, case) for case in OPTIONS] + [(cell, replace(MANY, proj_size=0)) for cell in OTHERS],
    ids=lambda value: value.name,
)
of_cells_in_one_direction = pytest.mark.parametrize(
    "cell, case",
    [(LSTM, case) for case in ONE_DIRECTION] + [(cell, TWO_LAYERS) for cell in OTHERS],
    ids=lambda value: value.name,
)


def _module(case, device, cell=LSTM, is_plain=False):
    module_type = cell.layer if is_plain else getattr(fusedlstm, f"Fused{cell.layer.__name__}")
    return module_type(**case.module_kwargs(cell), device=device, dtype=torch.float64)


def _inputs(case, device, cell=LSTM):
    """x, and the states of all layers."""
    rows, sizes = case.num_layers * case.directions, (case.output_size, case.hidden_size)
    shapes = [(case.T, case.B, case.input_size), *((rows, case.B, size) for size in sizes[: len(cell.states)])]
    return [torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in shapes]


def _hx(states):
    """As modules take them: one state as a tensor, two as a tuple."""
    return tuple(states) if len(states) > 1 else states[0]


def _gradients(module, results, inputs):
    """Of a loss that weighs every element of every result differently."""
    torch.manual_seed(1)
    loss = sum((r * torch.randn_like(r)).sum() for r in results)
    return torch.autograd.grad(loss, [*inputs, *module.parameters()])


def _assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@of_cells
def test_packed_is_torch(cell, case, lengths, device):
    plain, fused = _module(case, device, cell, is_plain=True), _module(case, device, cell)
    fused.load_state_dict(plain.state_dict())
    x, *states = _inputs(case, device, cell)
    found = []
    for module in (plain, fused):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, last = module(packed, _hx(states))
        assert torch.equal(output.batch_sizes, packed.batch_sizes)
        assert torch.equal(output.unsorted_indices, packed.unsorted_indices)
        results = output.data, *tensors_of(last)
        found.append([*results, *_gradients(module, results, (x, *states))])
    _assert_same(found[1], found[0])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@of_cells
def test_lengths_are_packing(cell, case, lengths, device):
    """Outputs, final states and gradients; whatever lies in the padding."""
    module = _module(case, device, cell)
    x, *states = _inputs(case, device, cell)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, last = module(packed, _hx(states))
    output, _ = pad_packed_sequence(output, total_length=case.T)
    expected = output, *tensors_of(last)
    expected = [*expected, *_gradients(module, expected, (x, *states))]

    padding = torch.arange(case.T, device=device)[:, None] >= torch.tensor(lengths, device=device)
    garbage = x.detach().masked_fill(padding[..., None], float("nan")).requires_grad_()
    actual = tensors_of(module(garbage, _hx(states), lengths=torch.tensor(lengths, dtype=torch.int32)))
    output, (d_garbage, *others) = actual[0], _gradients(module, actual, (garbage, *states))
    _assert_same([*actual, d_garbage, *others], expected)
    assert (output[padding] == 0).all() and (d_garbage[padding] == 0).all()


def test_every_integer_dtype_of_lengths(device):
    module, x = FusedLSTM(3, 4, device=device), torch.randn(5, 2, 3, device=device)
    expected = module(x, lengths=torch.tensor([5, 2]))[0]
    for dtype in (torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32):
        assert torch.equal(module(x, lengths=torch.tensor([5, 2], dtype=dtype))[0], expected)
        with pytest.raises(ValueError, match="from 0 to 5, got 2 to 6"):
            module(x, lengths=torch.tensor([6, 2], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lengths_in_other_dtypes(dtype, device):
    """Each row is what the sequence gives alone."""
    module = FusedLSTM(6, 33, bidirectional=True, device=device, dtype=dtype)
    x = torch.randn(7, 4, 6, device=device).to(dtype)
    lengths = [0, 7, 3, 1]
    with torch.no_grad():
        output, (h_n, _) = module(x, lengths=torch.tensor(lengths, device=device))
        # Sums of other rows may be rounded otherwise, and what is approximated jumps with their last bit.
        allowed = 4 * torch.finfo(dtype).eps + SAFETY * MEMORY * activations(device.type, dtype)
        for row, n in enumerate(lengths):
            alone, (h, _) = module(x[:n, row : row + 1])
            torch.testing.assert_close(output[:n, row], alone[:, 0], rtol=0, atol=allowed)
            torch.testing.assert_close(h_n[:, row], h[:, 0], rtol=0, atol=allowed)


@every
def test_length_zero_keeps_the_state(member, device):
    module = member.layer(3, 4, device=device)
    states = [torch.randn(1, 2, 4, device=device) for _ in CELLS[member.cell].states]
    output, last = module(torch.randn(5, 2, 3, device=device), _hx(states), lengths=torch.tensor([0, 5]))
    assert all(torch.equal(n[0, 0], before[0, 0]) for n, before in zip(tensors_of(last), states, strict=True))
    assert (output[:, 0] == 0).all()


@every
def test_lengths_of_other_arrangements(member, device):
    module = member.layer(3, 4, batch_first=True, device=device)
    x, lengths = torch.randn(2, 5, 3, device=device), torch.tensor([2, 4])
    output, h_n, *_ = tensors_of(module(x, lengths=lengths))
    assert torch.equal(output[0, 1], h_n[0, 0]) and torch.equal(output[1, 3], h_n[0, 1])
    alone, h, *_ = tensors_of(module(x[0], lengths=lengths[0]))
    torch.testing.assert_close(alone, output[0])
    torch.testing.assert_close(h, h_n[:, 0])


def _step_by_step(module, x, states, reset, reset_states):
    """The loop that people write: one call a step, states replaced between them."""
    outputs = []
    for t in range(len(x)):
        fresh = reset_states or map(torch.zeros_like, states)
        states = [torch.where(reset[t][:, None], new, state) for new, state in zip(fresh, states, strict=True)]
        output, last = module(x[t : t + 1], _hx(states))
        outputs.append(output)
        states = tensors_of(last)
    return torch.cat(outputs), *states


@pytest.mark.parametrize("with_state", [False, True])
@of_cells_in_one_direction
def test_reset_is_the_loop(cell, case, with_state, device):
    module = _module(case, device, cell)
    x, *states = _inputs(case, device, cell)
    _, *reset_states = _inputs(case, device, cell) if with_state else [x]
    reset = torch.rand(case.T, case.B, device=device) < 0.4
    reset[0, 0] = reset[-1, -1] = True
    inputs = (x, *states, *reset_states)
    expected = _step_by_step(module, x, states, reset, reset_states)
    options = {"reset_state": _hx(reset_states)} if with_state else {}
    actual = tensors_of(module(x, _hx(states), reset=reset, **options))
    _assert_same(
        [*actual, *_gradients(module, actual, inputs)],
        [*expected, *_gradients(module, expected, inputs)],
    )


@every
def test_reset_of_other_arrangements(member, device):
    module = member.layer(3, 4, num_layers=2, batch_first=True, device=device)
    x, reset = torch.randn(2, 5, 3, device=device), torch.rand(2, 5, device=device) < 0.5
    output, h_n, *_ = tensors_of(module(x, reset=reset))
    alone, h, *_ = tensors_of(module(x[1], reset=reset[1]))
    torch.testing.assert_close(alone, output[1])
    torch.testing.assert_close(h, h_n[:, 1])


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case.name)
def test_states_of_all_steps(case, device):
    """c and gates of each layer, from nn.LSTMCell's equations one step at a time."""
    module = _module(case, device)
    x, h, c = _inputs(case, device)
    output, (_, c_n), cells, gates = module(x, (h, c), return_cell_states=True, return_gates=True)
    rows, D = case.num_layers * case.directions, case.directions
    assert cells.shape == (rows, case.T, case.B, case.hidden_size)
    assert gates.shape == (rows, case.T, case.B, 4 * case.hidden_size)
    assert cells.requires_grad and not gates.requires_grad
    i, f, g, o = gates.chunk(4, -1)
    for row in range(rows):
        before = torch.cat([c[row][None], cells[row, :-1]])
        last = cells[row, -1]
        if row % D:
            before, last = torch.cat([cells[row, 1:], c[row][None]]), cells[row, 0]
        _assert_same([cells[row], c_n[row]], [f[row] * before + i[row] * g[row], last])
    top = (o * cells.tanh())[-D:]
    if not case.proj_size:
        _assert_same([output], [torch.cat(list(top), -1)])


def test_states_of_other_arrangements(device):
    module = FusedLSTM(3, 4, 2, bidirectional=True, batch_first=True, device=device)
    x = torch.randn(2, 5, 3, device=device)
    _, _, cells = module(x, return_cell_states=True)
    _, _, gates = module(x, return_gates=True)
    assert cells.shape == (4, 2, 5, 4) and gates.shape == (4, 2, 5, 16)
    _, _, alone = module(x[1], return_cell_states=True)
    torch.testing.assert_close(alone, cells[:, 1])
    packed = pack_sequence([x[0], x[1, :3]])
    _, _, cells = module(packed, return_cell_states=True)
    assert cells.shape == (4, 8, 4)
    _, _, cells, gates = module(x[:, :0], return_cell_states=True, return_gates=True)
    assert cells.shape == (4, 2, 0, 4) and gates.shape == (4, 2, 0, 16)


def test_cell_states_of_16_bits_are_float32(device):
    module = FusedLSTM(3, 4, device=device, dtype=torch.bfloat16)
    x = torch.randn(5, 2, 3, device=device, dtype=torch.bfloat16)
    _, (_, c_n), cells = module(x, return_cell_states=True)
    assert cells.dtype == torch.float32 and torch.equal(cells[0, -1].bfloat16(), c_n[0])


def test_gradient_through_cell_states(device):
    weights = [w.double() for w in (torch.randn(8, 3), torch.randn(8, 2), torch.randn(8), torch.randn(8))]
    inputs = [t.to(device).requires_grad_() for t in (torch.randn(3, 2, 3).double(), *weights)]

    def cells(x, *weights):
        return functional.lstm(x, None, [weights], return_cell_states=True)[2]

    assert torch.autograd.gradcheck(cells, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(cells, inputs, fast_mode=True)


@pytest.mark.parametrize("kind", ["lengths", "reset", "packed"])
def test_gradcheck_of_row_states(kind, device):
    module = FusedLSTM(2, 3, bidirectional=kind != "reset", device=device, dtype=torch.float64)
    D = 1 if kind == "reset" else 2
    x = torch.randn(4, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    h, c = (torch.randn(D, 3, 3, dtype=torch.float64, device=device, requires_grad=True) for _ in "hc")
    lengths = torch.tensor([1, 4, 2])
    reset = torch.rand(4, 3, device=device) < 0.4

    def call(x, h, c):
        if kind == "packed":
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            output, state = module(packed, (h, c))
            return (output.data, *state)
        if kind == "lengths":
            output, state = module(x, (h, c), lengths=lengths)
        else:
            output, state = module(x, (h, c), reset=reset, reset_state=(c, h))
        return (output, *state)

    assert torch.autograd.gradcheck(call, (x, h, c), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, h, c), fast_mode=True)
