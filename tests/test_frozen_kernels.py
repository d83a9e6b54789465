"""Layers and cells with frozen weights: the numbers of every kernel, and what the operators make of other bytes."""

import copy

import family
import pytest
import torch
from family import LSTM, every, tensors_of
from frozen_layers import assert_same, pair
from instruction_sets import ISAS
from torch.nn.utils.rnn import pack_sequence

from fusedlstm import freeze

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MODELS = dict(family.MODELS)
MODELS["lstm-projection"] = LSTM, {"proj_size": 3, "bidirectional": True}
models = pytest.mark.parametrize("member, options", MODELS.values(), ids=MODELS)


def ways_to_call(layer, dtype, **options):
    """By name, calls of a layer with 5 features: functions of the layer."""
    x = torch.randn(3, 4, 5, dtype=dtype)
    batch_first = options.get("batch_first", False)
    rows, steps = (0, 1) if batch_first else (1, 0)
    hx = layer(x)[1]
    ways = {
        "zeros": lambda m: m(x),
        "states": lambda m: m(x, hx),
        "one sequence": lambda m: m(x[0]),
        "no rows": lambda m: m(x.narrow(rows, 0, 0)),
        "no steps": lambda m: m(x.narrow(steps, 0, 0), hx),
        "one step": lambda m: m(x.narrow(steps, 0, 1), hx),
        "packed": lambda m: m(pack_sequence([x[0], x[1, :3], x[2, :1]])),
        "lengths": lambda m: m(x, hx, lengths=torch.arange(x.size(rows))),
    }
    if not options.get("bidirectional"):
        reset = torch.arange(12).view(3, 4) % 3 == 0
        to = tuple(map(torch.ones_like, hx)) if isinstance(hx, tuple) else torch.ones_like(hx)
        ways["resets"] = lambda m: m(x, hx, reset=reset)
        ways["resets to a state"] = lambda m: m(x, hx, reset=reset, reset_state=to)
    return ways


class TestNumbers:
    """Bit by bit those of panels that are made in each call."""

    @models
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_of_every_call(self, member, options, dtype, forced, served):
        layer, frozen = pair(member, 5, 7, dtype=dtype, **options)
        for name, call in ways_to_call(layer, dtype, **options).items():
            served.clear()
            with torch.no_grad():
                found = call(frozen)
            assert served == [f"{member.cell}_layer_frozen"] * layer.num_layers, name
            forced("", "packed")
            with torch.no_grad():
                assert_same(found, call(layer))
            forced("", "")

    @every
    @pytest.mark.parametrize("isa", ISAS)
    @pytest.mark.parametrize("hidden", [1, 16, 50])
    def test_of_every_instruction_set_and_number_of_threads(self, member, isa, hidden, forced):
        threads = torch.get_num_threads()
        try:
            for count, plan in ((1, "packed"), (3, "packed:rows"), (3, "packed:units")):
                torch.set_num_threads(count)
                forced(isa, plan)
                layer, frozen = pair(member, 5, hidden, bidirectional=True)
                x = torch.randn(9, 8, 5)
                with torch.no_grad():
                    assert_same(frozen(x), layer(x))
        finally:
            torch.set_num_threads(threads)

    def test_stay_those_of_the_set_it_was_frozen_for(self, forced):
        layer, frozen = pair(LSTM, 5, 7)
        x = torch.randn(3, 2, 5)
        expected = frozen(x)
        forced(ISAS[0], "packed")
        assert_same(frozen(x), expected)
        with torch.no_grad():
            assert_same(copy.deepcopy(frozen)(x), layer(x))

    @every
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_of_a_cell(self, member, bias, dtype, forced, served):
        cell = member.one_step(5, 7, bias=bias, dtype=dtype).eval()
        frozen = freeze(copy.deepcopy(cell))
        x = torch.randn(3, 5, dtype=dtype)
        layer = member.layer(5, 7, bias=bias, dtype=dtype)
        layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
        forced("", "packed")
        with torch.no_grad():
            hx = cell(x)
            for call in (lambda m: m(x), lambda m: m(x, hx), lambda m: m(x[0])):
                served.clear()
                found = call(frozen)
                assert served == [f"{member.cell}_cell_frozen"]
                for a, b in zip(tensors_of(found), tensors_of(call(cell)), strict=True):
                    assert torch.equal(a, b)
                    assert a._base is None  # a tensor of its own


class TestOperator:
    """A tensor of bytes is all that it has to go by."""

    @pytest.fixture
    def given(self):
        (frozen,) = torch.ops.fusedlstm.lstm_freeze([*LSTM.layer(5, 7).parameters()], 1, 1)
        return [torch.randn(3, 2, 5), [], frozen, None, None, None, []]

    def test_runs(self, given):
        output, last = torch.ops.fusedlstm.lstm_layer_frozen(*given)
        assert output.shape == (3, 2, 7) and [s.shape for s in last] == [(1, 2, 7)] * 2

    @pytest.mark.parametrize("hidden, alignment", [(7, 64), (640, 2 << 20)])
    def test_begins_at_a_cache_line_and_many_bytes_at_a_huge_page(self, hidden, alignment):
        weights = [*LSTM.layer(5, hidden, num_layers=2).parameters()]
        for _ in range(3):
            frozen = torch.ops.fusedlstm.lstm_freeze(weights, 2, 1)
            assert [row.data_ptr() % alignment for row in frozen] == [0, 0]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda bytes: bytes[:-1],
            lambda bytes: bytes[:10],
            lambda bytes: bytes.float(),
            lambda bytes: bytes[::2],
            lambda bytes: torch.zeros_like(bytes),
            lambda bytes: torch.full_like(bytes, 255),
        ],
    )
    def test_refuses_other_bytes(self, given, damage):
        given[2] = damage(given[2])
        with pytest.raises(RuntimeError, match="expected a tensor of lstm_freeze, got another one"):
            torch.ops.fusedlstm.lstm_layer_frozen(*given)

    def test_refuses_another_cell_and_another_machine(self, given):
        with pytest.raises(RuntimeError, match="expected frozen weights of gru, got those of lstm"):
            torch.ops.fusedlstm.gru_layer_frozen(*given)
        given[2] = given[2].clone()
        given[2][:3] = torch.tensor(list(b"sse"), dtype=torch.uint8)
        with pytest.raises(RuntimeError, match="expected a CPU instruction set of this machine"):
            torch.ops.fusedlstm.lstm_layer_frozen(*given)

    @pytest.mark.parametrize("place, other", [(0, torch.randn(3, 2, 4)), (0, torch.randn(3, 2, 5).double())])
    def test_refuses_other_sizes(self, given, place, other):
        given[place] = other
        with pytest.raises(RuntimeError, match="expected input of float32 with 5 features, as the weights have"):
            torch.ops.fusedlstm.lstm_layer_frozen(*given)

    @pytest.mark.parametrize("field", range(5))
    @pytest.mark.parametrize("value", [-(2**62), -1, 0, 1000, 10**7, 2**40, 2**62])
    def test_refuses_a_header_that_does_not_fit_its_bytes(self, given, field, value):
        """Of features, hidden, proj, directions and the number of bytes, none of which may lead out of the memory."""
        given[2] = given[2].clone()
        header = given[2][24:64].view(torch.int64)
        assert header[:4].tolist() == [5, 7, 0, 1]
        is_changed = header[field] != value
        header[field] = value
        if is_changed:
            with pytest.raises(
                RuntimeError, match=r"expected a tensor of lstm_freeze|bytes of frozen weights|expected in"
            ):
                torch.ops.fusedlstm.lstm_layer_frozen(*given)

    def test_refuses_freed_memory_and_a_second_direction(self, given):
        (frozen,) = torch.ops.fusedlstm.lstm_freeze([*LSTM.layer(5, 7, bidirectional=True).parameters()], 1, 2)
        with pytest.raises(RuntimeError, match="expected weights of one direction for a step, got 2"):
            torch.ops.fusedlstm.lstm_cell_frozen(given[0][0], [], frozen)
        given[2].untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="expected frozen weights with memory"):
            torch.ops.fusedlstm.lstm_layer_frozen(*given)


class TestOperatorOfAStack:
    """All layers are rows of one tensor, as wide as the widest."""

    @pytest.fixture
    def frozen(self):
        return torch.ops.fusedlstm.lstm_freeze([*LSTM.layer(40, 7, num_layers=2).parameters()], 2, 1)

    def run(self, frozen, layers=2):
        return torch.ops.fusedlstm.lstm_stack_frozen(torch.randn(3, 2, 40), None, None, frozen, layers)

    def test_runs(self, frozen):
        output, h_n, c_n = self.run(frozen)
        assert output.shape == (3, 2, 7) and h_n.shape == c_n.shape == (2, 2, 7)

    def test_refuses_another_number_of_rows(self, frozen):
        for given, layers in ((frozen, 1), (frozen, 3), (frozen[:0], 0), (frozen[0], 1), (frozen[None], 1)):
            with pytest.raises(RuntimeError, match=r"expected frozen weights of size \[\d, bytes\], got \["):
                self.run(given, layers)

    @pytest.mark.parametrize("row", [0, 1])
    def test_refuses_damage_in_any_row(self, frozen, row):
        for byte in (16, 24, 56):  # cell, features, bytes
            damaged = frozen.clone()
            damaged[row, byte : byte + 4] = 127
            with pytest.raises(RuntimeError, match="expected a tensor of lstm_freeze, got another one"):
                self.run(damaged)

    def test_refuses_rows_that_do_not_begin_at_a_cache_line(self, frozen):
        with pytest.raises(RuntimeError, match="expected a tensor of lstm_freeze, got another one"):
            self.run(torch.nn.functional.pad(frozen, (0, 8)))

    def test_refuses_a_state_too_many(self, frozen):
        state = torch.zeros(2, 2, 7)
        with pytest.raises(RuntimeError, match="expected 2 initial states, got 1"):
            torch.ops.fusedlstm.lstm_stack_frozen(torch.randn(3, 2, 40), state, None, frozen, 2)
        gru = torch.ops.fusedlstm.gru_freeze([*family.GRU.layer(40, 7).parameters()], 1, 1)
        with pytest.raises(RuntimeError, match="expected 1 initial states, got 2"):
            torch.ops.fusedlstm.gru_stack_frozen(torch.randn(3, 2, 40), state[:1], state[:1], gru, 1)
