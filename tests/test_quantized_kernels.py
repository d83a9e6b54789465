"""The operators of layers with int8 weights, of every instruction set: bit by bit what the reference in numpy has."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import quantized_reference as reference
import torch
from instruction_sets import ISAS
from layers import draw
from pairwise import pairwise

from benchmarks.cases import Case
from fusedlstm.cells import CELLS, GRU, LSTM, RNN_RELU, RNN_TANH

# Below, on and above the borders of panels (16 units), of groups of columns (4; in tile registers 64), of vectors and
# of tiles of rows.
SHAPES = [
    Case("units-1", 2, 1, 1, 1),
    Case("units-16", 3, 4, 4, 16),
    Case("rows-7", 3, 7, 9, 33, bidirectional=True),
    Case("rows-33", 2, 33, 17, 31, bias=False),
    Case("columns-130", 2, 3, 130, 50),
    Case("one-row", 9, 1, 40, 64),
    Case("columns-600", 2, 20, 600, 24),
]
PROJECTIONS = [
    Case("units-2", 3, 5, 6, 2, proj_size=1),
    Case("two-directions", 3, 5, 6, 20, proj_size=3, bidirectional=True),
    Case("no-bias", 3, 2, 6, 40, proj_size=18, bias=False, bidirectional=True),
    Case("columns-330", 2, 18, 5, 330, proj_size=17),
]
OPTIONS = {
    "packed": ({"variable": "packed", "bidirectional": True}, {}),
    "packed-unequal": ({"variable": "packed", "bidirectional": True}, {"lengths": [6, 6, 2, 1, 1]}),
    "lengths": ({"variable": "lengths", "bidirectional": True}, {"lengths": [3, 0, 6, 1, 6]}),
    "resets": ({"resets": True}, {}),
    "resets-to-a-state": ({"resets": True}, {"reset_state": True}),
    "batch-first": ({"bidirectional": True}, {"batch_first": True}),
}
cells = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def quantized_arguments(layer, cell, limit=127):
    """Arguments of `<cell>_layer_quantized` for a float layer's, with weights from -limit to limit by numpy."""
    weights, G = [], cell.gates
    for d in range(len(layer.weight_ih)):
        ih, hh, *hr = (
            [torch.from_numpy(part).clone() for part in quantized_parts(kind[d].numpy(), gates, limit)]
            for kind, gates in ((layer.weight_ih, G), (layer.weight_hh, G), (layer.weight_hr, 1))
            if kind
        )
        weights += [part for pair in zip(ih, hh) for part in pair]
        if layer.bias_ih:
            biases = (kind[d].numpy() for kind in (layer.bias_ih, layer.bias_hh))
            weights.append(torch.from_numpy(reference.bias(cell.name, *biases)).clone())
        weights += [part for parts in hr for part in parts]
    rows = layer.batch_sizes, layer.lengths, layer.reset
    return [layer.input, layer.initial, weights, *rows, layer.reset_state]


def quantized_parts(weight, gates, limit):
    q, scale = reference.quantized(weight, limit)
    return reference.packed(q, gates), scale, reference.sums(q)


def operator_of(cell):
    return getattr(torch.ops.fusedlstm, f"{cell.name}_layer_quantized")


def expected_of(cell, arguments):
    return reference.layer(cell.name, *map(as_arrays, arguments))


def assert_equal(cell, arguments, expected=None):
    """Whether operator and reference agree in every bit, NaN being equal to NaN. `expected`: what the reference has."""
    output, last = operator_of(cell)(*arguments)
    expected, expected_last = expected or expected_of(cell, arguments)
    for found, array in zip((output, *last), (expected, *expected_last), strict=True):
        np.testing.assert_array_equal(found.numpy(), array, strict=True)


def as_arrays(argument):
    if isinstance(argument, list):
        return [tensor.numpy() for tensor in argument]
    return argument.numpy() if isinstance(argument, torch.Tensor) else argument


@pairwise(case=SHAPES, limit=[127, 64], isa=ISAS, cell=CELLS.values())
def test_every_cell_and_size(case, limit, isa, cell, forced):
    forced(isa, "")
    arguments = quantized_arguments(draw(case, cell, dtype=torch.float32).layer, cell, limit)
    assert_equal(cell, arguments)
    arguments[1] = []
    assert_equal(cell, arguments)


@pytest.mark.parametrize("isa", ISAS)
def test_every_tile(isa, forced):
    """Of every number of rows, and of columns that do not divide into the parts in which they are summed."""
    forced(isa, "")
    for B in range(1, 8):
        for columns in (3, 17, 28, 36):
            layer = draw(Case("tile", 1, B, columns, 18), dtype=torch.float32).layer
            assert_equal(LSTM, quantized_arguments(layer, LSTM))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", PROJECTIONS, ids=lambda case: case.name)
def test_projections(case, isa, forced):
    forced(isa, "")
    assert_equal(LSTM, quantized_arguments(draw(case, LSTM, dtype=torch.float32).layer, LSTM))


@pairwise(name=OPTIONS, isa=ISAS, cell=CELLS.values())
def test_options(name, isa, cell, forced):
    forced(isa, "")
    options, drawn = OPTIONS[name]
    case = replace(Case("options", 6, 5, 7, 19), **options)
    for proj_size in (0, 5) if cell is LSTM else (0,):
        layer = draw(replace(case, proj_size=proj_size), cell, dtype=torch.float32, **drawn).layer
        arguments = quantized_arguments(layer, cell)
        assert_equal(cell, arguments)
        if not layer.reset_state:  # which has to have initial states beside it
            arguments[1] = []
            assert_equal(cell, arguments)


@cells
@pytest.mark.parametrize("isa", ISAS)
def test_every_number_of_threads_and_split(isa, cell, forced):
    threads = torch.get_num_threads()
    arguments = quantized_arguments(draw(Case("team", 4, 23, 12, 70), cell, dtype=torch.float32).layer, cell)
    expected = expected_of(cell, arguments)
    try:
        for count, plan in (
            (1, ""),
            (2, "packed:rows"),
            (3, "packed:units"),
            (3, "packed:rows"),
            (2, "packed:units:2"),
        ):
            torch.set_num_threads(count)
            forced(isa, plan)
            assert_equal(cell, arguments, expected)
    finally:
        torch.set_num_threads(threads)


@cells
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("T, B", [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do(T, B, isa, cell, forced):
    forced(isa, "")
    arguments = quantized_arguments(draw(Case("nothing", 1, 1, 5, 6), cell, dtype=torch.float32).layer, cell)
    arguments[0] = torch.randn(T, B, 5)
    arguments[1] = [torch.randn(1, B, 6) for _ in cell.states]
    assert_equal(cell, arguments)


# What a row of input can be: each in the middle of a batch of ordinary ones.
ROWS = {
    "zeros": lambda row: row * 0,
    "NaN": lambda row: row.index_fill(0, torch.tensor(2), float("nan")),
    "infinity": lambda row: row.index_fill(0, torch.tensor(5), float("inf")),
    "negative infinity": lambda row: row.index_fill(0, torch.tensor(0), -float("inf")),
    "all infinite": lambda row: torch.full_like(row, float("inf")),
    "positive": lambda row: row.abs(),
    "negative": lambda row: -row.abs(),
    "equal": lambda row: torch.full_like(row, 0.3),
    "negative zeros": lambda row: torch.full_like(row, -0.0),
    "large": lambda row: row * 1e30,
    "beyond float32 in range": lambda row: row.sign() * 3e38,
    "small": lambda row: row * 1e-30,
    "below the least range": lambda row: row * 1e-36,
    "subnormal": lambda row: row * 1e-41,
    "halves": lambda row: torch.arange(-4, len(row) - 4).float().clamp(max=251 / 2) / 2,
    "one outlier": lambda row: row.index_fill(0, torch.tensor(3), 1e4),
}


@pairwise(rows=ROWS, isa=ISAS, cell=CELLS.values())
def test_every_kind_of_row(rows, isa, cell, forced):
    """In the input, and as the state."""
    forced(isa, "")
    make = ROWS[rows]
    layer = draw(Case("rows", 2, 3, 19, 19), cell, dtype=torch.float32).layer
    arguments = quantized_arguments(layer, cell)
    layer.input[0, 1] = make(layer.input[0, 1])
    assert_equal(cell, arguments)
    layer.initial[0][0, 2] = make(layer.initial[0][0, 2])
    assert_equal(cell, arguments)


@pairwise(limit=[127, 64], isa=ISAS, cell=CELLS.values())
def test_extreme_weights(limit, isa, cell, forced):
    """All of the same sign and as large as they get, against an input of the same kind; scales of zero, and not."""
    forced(isa, "")
    layer = draw(Case("extreme", 3, 2, 999, 18), cell, dtype=torch.float32).layer
    layer.weight_ih[0].abs_()
    layer.weight_ih[0][::2] = -1e-4
    layer.weight_ih[0][5] = 0
    layer.input[:, 0] = 1
    layer.input[1, 1] = -1
    assert_equal(cell, quantized_arguments(layer, cell, limit))


# The weight that has K columns, and alone has so many: the cell, and I, H and P of its layer.
LONG = {
    "ih": lambda K: (LSTM, K, 20, 0),
    "hh": lambda K: (RNN_RELU, 5, K, 0),
    "hr": lambda K: (LSTM, 5, K, 17),
}
PLACES_OF_SUMS = {"ih": 4, "hh": 5, "hr": 9}
COLUMNS = {258: torch.int16, 259: torch.int32}  # 127 times each is below and above 2^15


def of_columns(name, columns):
    """The cell of a layer of two directions in which one weight has so many columns, and its arguments.

    Rows of that weight are of the least or of the greatest integer alone; numbers are small: no gate saturates.
    """
    cell, I, H, P = LONG[name](columns)
    layer = draw(Case("limits", 3, 2, I, H, proj_size=P, bidirectional=True), cell, dtype=torch.float32).layer
    for weight in getattr(layer, f"weight_{name}"):
        weight[:] = 1e-3
        weight[1::2] = -1e-3
    return cell, quantized_arguments(layer, cell)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("name", LONG)
def test_sums_at_the_limits_of_16_bits(name, columns, isa, forced):
    forced(isa, "")
    cell, arguments = of_columns(name, columns)
    limits = arguments[2][PLACES_OF_SUMS[name]]
    assert limits.dtype is COLUMNS[columns]
    assert limits[:2].tolist() == [127 * columns, -127 * columns] and limits[-1] == 127
    assert_equal(cell, arguments)


@cache
def biases_alone(name):
    """Arguments of a layer whose biases are all that reaches the gates, and its output and last states."""
    cell = CELLS[name]
    values = torch.cat([torch.logspace(-40, 38, 500), torch.linspace(0, 100, 3000), torch.tensor([float("nan")])])
    values = torch.cat([values, -values, torch.tensor([float("inf"), -float("inf")])])
    H = len(values)
    layer = draw(Case("biases", 1, 1, 1, 1), cell, dtype=torch.float32).layer
    layer = layer._replace(
        initial=[torch.full((1, 1, H), 0.7) for _ in cell.states],
        weight_ih=[torch.zeros(cell.gates * H, 1)],
        weight_hh=[torch.zeros(cell.gates * H, 1)],  # stands in: of one of H columns, numpy would take long
        bias_ih=[values.repeat(cell.gates)],
        bias_hh=[torch.zeros(cell.gates * H)],
    )
    arguments = quantized_arguments(layer, cell)
    arguments[2][1] = torch.zeros(-(-H // 16), cell.gates, -(-H // 4), 16, 4, dtype=torch.int8)
    arguments[2][5] = arguments[2][5].to(torch.int32)
    with np.errstate(all="ignore"):
        x = values.numpy()
        t, old = reference.tanh(x), np.float32(0.7)
        if cell is LSTM:
            c = reference.sigmoid_times(x, old) + reference.sigmoid_times_tanh(x, x)
            states = [reference.sigmoid_times_tanh(x, c), c]
        else:
            states = [t + reference.sigmoid_times(x, old - t) if cell is GRU else t]
    states = [state.reshape(1, 1, H) for state in states]
    return arguments, (states[0], states)


@pytest.mark.parametrize("isa", ISAS)
def test_activations_over_all_magnitudes(isa, forced):
    forced(isa, "")
    for cell in (LSTM, GRU, RNN_TANH):
        assert_equal(cell, *biases_alone(cell.name))


DAMAGES = {
    "shorter": lambda t: t[:-1],
    "longer": lambda t: torch.cat([t, t[-1:]]),
    "empty": lambda t: t[:0],
    "another dimension": lambda t: t[None],
    "another dtype": lambda t: t.double(),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
}


class TestRefuses:
    """The operator called directly: an exception and not a read out of bounds."""

    @pytest.fixture
    def arguments(self):
        return quantized_arguments(draw(Case("small", 3, 2, 5, 18, proj_size=3), dtype=torch.float32).layer, LSTM)

    @pytest.mark.parametrize("place", range(10))
    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
    def test_other_weights(self, arguments, place, damage):
        torch.ops.fusedlstm.lstm_layer_quantized(*arguments)
        arguments[2][place] = damage(arguments[2][place])
        with pytest.raises(RuntimeError):
            torch.ops.fusedlstm.lstm_layer_quantized(*arguments)

    @pytest.mark.parametrize("name", LONG)
    @pytest.mark.parametrize("columns, other", [(258, torch.int32), (259, torch.int16)])
    def test_sums_of_the_other_width(self, name, columns, other):
        cell, arguments = of_columns(name, columns)
        place, dtype = PLACES_OF_SUMS[name], str(COLUMNS[columns]).removeprefix("torch.")
        arguments[2][place] = arguments[2][place].to(other)
        with pytest.raises(RuntimeError, match=f"expected sum_{name} as fusedlstm.quantize .* of dtype {dtype}, got"):
            operator_of(cell)(*arguments)

    @pytest.mark.parametrize("cell, units", [(LSTM, 4), (GRU, 4), (RNN_TANH, 1)])
    def test_biases_of_both_parts(self, cell, units):
        arguments = quantized_arguments(draw(Case("bias", 3, 2, 5, 10), cell, dtype=torch.float32).layer, cell)
        arguments[2][6] = torch.zeros(20 * cell.gates)
        with pytest.raises(RuntimeError, match=rf"bias_gates of size \[{10 * units}\], got \[{20 * cell.gates}\]"):
            operator_of(cell)(*arguments)

    @pytest.mark.parametrize("count", [0, 1, 5, 6, 8, 11, 12, 13])
    def test_other_numbers_of_weights(self, arguments, count):
        arguments[2] = (arguments[2] * 2)[:count]
        with pytest.raises(RuntimeError, match=r"expected"):
            torch.ops.fusedlstm.lstm_layer_quantized(*arguments)

    @pytest.mark.parametrize(
        "place, value",
        [
            (0, torch.zeros(3, 2, 9)),
            (0, torch.zeros(3, 2, 5).double()),
            (0, torch.zeros(3, 5)),
            (0, torch.zeros(())),
            (1, [torch.zeros(1, 2, 3)]),
            (1, [torch.zeros(1, 2, 18), torch.zeros(1, 2, 18)]),
            (1, [torch.zeros(1, 3, 3), torch.zeros(1, 3, 18)]),
            (3, torch.tensor([2, 1])),
            (4, torch.tensor([1, 4])),
            (5, torch.zeros(2, 2, dtype=torch.bool)),
            (6, [torch.zeros(1, 2, 3), torch.zeros(1, 2, 17)]),
        ],
    )
    def test_other_arguments(self, arguments, place, value):
        torch.ops.fusedlstm.lstm_layer_quantized(*arguments)
        arguments[place] = value
        with pytest.raises(RuntimeError):
            torch.ops.fusedlstm.lstm_layer_quantized(*arguments)

    def test_a_projection_of_other_cells(self, arguments):
        with pytest.raises(RuntimeError, match="expected the quantized weights of a layer of gru"):
            torch.ops.fusedlstm.gru_layer_quantized(*arguments)

    @pytest.mark.parametrize("place", range(10))
    def test_freed_memory(self, arguments, place):
        arguments[2][place].untyped_storage().resize_(0)
        with pytest.raises(RuntimeError):
            torch.ops.fusedlstm.lstm_layer_quantized(*arguments)
