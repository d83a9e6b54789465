"""The CUDA kernels, unchanged, on the emulated GPU: every transport, arithmetic and row state against float64."""

import emulator
import pytest
import torch
from emulated_layer import EVERYTHING, STATES, Emulated, Layer
from pairwise import pairwise
from steps import assert_steps_near, moving_steps
from tolerance import MEMORY, SAFETY, assert_near, roundoff, tolerance

from fusedlstm.cells import CELLS

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

# What a layer is computed in: dtype and whether TF32 may be used.
ARITHMETICS = {
    "float32": (F32, False),
    "tf32": (F32, True),
    "bfloat16": (BF16, False),
    "float16": (F16, False),
    "float64": (F64, False),
}
# Every cell in all that its kernels are compiled for. Of 16 bits and TF32, relu's corners make gradients jump: there
# the RNN's kernels run with tanh.
RUNS = [
    *[("lstm", arithmetic) for arithmetic in ARITHMETICS],
    *[("gru", arithmetic) for arithmetic in ARITHMETICS],
    *[("rnn_tanh", arithmetic) for arithmetic in ("tf32", "bfloat16", "float16")],
    *[("rnn_relu", arithmetic) for arithmetic in ("float32", "float64")],
]
RESIDENT = ("local", "cluster", "grid")
K_SPLITS = {"cluster": 4, "grid": 8, "mesh": 8, "bulk": 2}  # at most: how many warps, or CTAs, share K

TF32_OPERANDS = 2**-11  # their relative error


def allowed(layer, arithmetic, name=""):
    steps = min(layer.T, MEMORY)
    terms = layer.cell.gates * layer.H  # backward; forward sums the part of one gate
    if "weight" in name or "bias" in name:
        terms += layer.rows
    limit = tolerance(layer.dtype, terms, layer.T, device_type="cuda")
    if name.startswith("d_") and layer.cell.name != "lstm" and layer.dtype.itemsize == 2:
        limit += SAFETY * steps * roundoff(layer.dtype)  # slopes such as (1 - z) (1 - n^2) are of rounded z and n
    products = 1 + steps + name.startswith("d_")  # of the input, of each step, and on the way to a gradient
    return limit + SAFETY * products * TF32_OPERANDS * (arithmetic == "tf32")


def check(layer, arithmetic, request, seed=0):
    """Runs forward and backward; every result near the reference, the worst as a part of what is allowed."""
    module = emulator.module()
    run, expected = Emulated(module, layer, request), layer.reference()
    with emulator.options(module, seed=seed):
        out = run.forward()
        results = out | run.backward(out, EVERYTHING)
    assert {f"d_{name}" for name in ("input", *STATES) if name in layer.t} < results.keys()
    return max(
        assert_near(value, expected[name], allowed(layer, arithmetic, name), f"{request}: {name}")
        for name, value in results.items()
    )


def make(arithmetic, T, B, H, cell="lstm", **options):
    dtype, allow_tf32 = ARITHMETICS[arithmetic]
    return Layer(T, B, H, CELLS[cell], dtype=dtype, allow_tf32=allow_tf32, **options)


def hidden_size(transport, H, cell="lstm"):
    """At least two CTAs for CLUSTER."""
    units = 64 if CELLS[cell].gates == 1 else 32  # of the smallest
    return H + units if transport == "cluster" else H


LENGTHS = [3, 1, 2, 0, 3, 3, 2, 1, 1, 3, 2]
SORTED = sorted((n or 1 for n in LENGTHS), reverse=True)
ROW_STATES = {
    "plain": {},
    "both directions": {"directions": 2},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "lengths": {"lengths": LENGTHS, "directions": 2},
    "packed": {"lengths": SORTED, "packed": True, "directions": 2},
    "resets to zero": {"resets": True},
    "resets to a state": {"resets": True, "reset_states": True},
    "resets and lengths": {"resets": True, "reset_states": True, "lengths": LENGTHS},
}


def is_compiled(transport, run, *_):
    return transport == "stream" or run[1] != "float64"


# A kernel is compiled for a transport, a cell and an arithmetic; what its rows are it is told.
@pairwise(is_compiled, transport=("stream", *RESIDENT), run=RUNS, states=ROW_STATES)
def test_row_states(transport, run, states):
    cell, arithmetic = run
    layer = make(arithmetic, 3, len(LENGTHS), hidden_size(transport, 20, cell), cell, **ROW_STATES[states])
    check(layer, arithmetic, transport)


@pytest.mark.parametrize("transport", RESIDENT)
def test_float64_is_refused(transport):
    with pytest.raises(ValueError, match="got float64"):
        Emulated(emulator.module(), make("float64", 3, 11, 20), transport).plan(backward=False)


@pairwise(is_compiled, transport=RESIDENT, run=RUNS, sizes=[(1, 1, 1), (2, 8, 32), (3, 3, 33), (2, 17, 7), (4, 9, 64)])
def test_tails(transport, run, sizes):
    """Sizes below, on and above the tiles of batch, units and K; one step has nothing to exchange."""
    (cell, arithmetic), (T, B, H) = run, sizes
    T = max(T, 2) if transport == "grid" else T
    check(make(arithmetic, T, B, hidden_size(transport, H, cell), cell), arithmetic, transport)


# Where a member's data lie depends on the transport, the row states and the bytes of a value, which tf32 shares with
# float32 and float16 with bfloat16.
@pairwise(
    transport=RESIDENT,
    run=[("lstm", "float32"), ("lstm", "bfloat16"), ("gru", "float16"), ("rnn_tanh", "tf32")],
    states=[states for states in ROW_STATES if states != "batch first"],
)
def test_ensemble_in_one_launch(transport, run, states):
    """Each member bit for bit as alone, in more than one tile of the batch."""
    cell, arithmetic = run
    options, module, H = dict(ROW_STATES[states]), emulator.module(), hidden_size(transport, 20, cell)
    layers = []
    for seed in range(2):
        if "lengths" in options and "packed" not in options:
            options["lengths"] = LENGTHS[seed:] + LENGTHS[:seed]
        layers.append(make(arithmetic, 3, len(LENGTHS), H, cell, seed=seed, **options))
    run = Emulated(module, layers, transport)
    out = run.forward()
    found = out | run.backward(out, EVERYTHING)
    for m, layer in enumerate(layers):
        run = Emulated(module, layer, transport)
        out = run.forward()
        for name, expected in (out | run.backward(out, EVERYTHING)).items():
            assert torch.equal(found[name][m], expected), name
    assert not torch.equal(found["h_n"][0], found["h_n"][1])


@pairwise(transport=("stream", *RESIDENT), cell=["lstm", "gru"], arithmetic=["float32", "bfloat16"])
def test_activations_of_the_hardware(transport, cell, arithmetic):
    """As wrong as they may be, they stay within the tolerance; forty times as wrong, they do not."""
    module, layer = emulator.module(), make(arithmetic, 5, 11, hidden_size(transport, 20, cell), cell)
    for approximation in (1, -1):
        with emulator.options(module, approximation=approximation):
            check(layer, arithmetic, transport)
    with emulator.options(module, approximation=40), pytest.raises(AssertionError, match="times the allowed error"):
        check(layer, arithmetic, transport)


@pytest.mark.parametrize("proj_size", [1, 7, 20])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_projection(arithmetic, proj_size):
    options = {"proj_size": proj_size, "directions": 2, "lengths": LENGTHS}
    check(make(arithmetic, 3, len(LENGTHS), 20, **options), arithmetic, "stream")
    packed = options | {"lengths": SORTED, "packed": True}
    check(make(arithmetic, 3, len(LENGTHS), 20, **packed), arithmetic, "stream")


@pairwise(transport=RESIDENT, arithmetic=["float32", "bfloat16"], states=ROW_STATES)
def test_projection_by_the_effective_weight(transport, arithmetic, states):
    """In both types of memory that h has; what rows enter and leave with is apart from the recurrence."""
    layer = make(arithmetic, 3, len(LENGTHS), hidden_size(transport, 20), proj_size=7, **ROW_STATES[states])
    check(layer, arithmetic, transport)


@pairwise(
    transport=RESIDENT,
    arithmetic=["float32", "tf32", "bfloat16", "float16"],
    sizes=[(1, 3, 33, 32), (2, 9, 64, 1), (9, 3, 40, 20)],
)
def test_sizes_of_projections(transport, arithmetic, sizes):
    T, B, H, proj_size = sizes
    T = max(T, 2) if transport == "grid" else T
    check(make(arithmetic, T, B, hidden_size(transport, H), proj_size=proj_size), arithmetic, transport)


@pytest.mark.parametrize("arithmetic", ["bfloat16", "float16"])
def test_effective_weight_is_as_exact_as_h(arithmetic):
    """Rounded once for all steps, it leaves an error of the size that h leaves which is rounded at each."""
    layer, module = make(arithmetic, 40, 3, 60, proj_size=30), emulator.module()
    expected, runs = layer.reference()["output"], {}
    for transport in ("stream", "local"):
        error = Emulated(module, layer, transport).forward()["output"].double() - expected
        runs[transport] = error.square().mean().sqrt()
    assert 0 < runs["local"] < 1.2 * runs["stream"], runs


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("arithmetic", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_every_compiled_shape(cell, arithmetic, backward):
    """Each kernel that is compiled, forced by name, with several CTAs a tile where it can and all of one warp's K.

    Backward, every CTA of a cluster has rows of all units: nearly as many as it has room for. Of the batch there is one
    tile, its last row missing: how tiles follow each other is no matter of a shape (test_tails).
    """
    core, module = pytest.importorskip("fusedlstm._core"), emulator.module()
    dtype, tf32 = ARITHMETICS[arithmetic]
    name = str(dtype).removeprefix("torch.")
    shapes = core.kernel_shapes(cell=cell, dtype=name, allow_tf32=tf32, backward=backward)
    assert {s[0] for s in shapes} - {"bulk", "mesh"} == set(RESIDENT)
    for transport, units, rows, k in sorted(set(shapes)):
        most = k // CELLS[cell].gates if backward else k
        if transport == "local":
            H = min(units, most)
        elif transport in ("cluster", "bulk") and backward:
            H = min(most, 16 * units) - 3
        else:
            H = min(max(units, most // K_SPLITS[transport]) + 5, most)
        layer, request = make(arithmetic, 2, max(rows - 1, 1), H, cell), f"{transport}:{units}x{rows}x{k}"
        run, expected = Emulated(module, layer, request), layer.reference()
        results = run.backward(Emulated(module, layer, "stream").forward()) if backward else run.forward()
        for what, value in results.items():
            assert_near(value, expected[what], allowed(layer, arithmetic), f"{request} {what}")


@pytest.mark.parametrize("states", ["packed", "resets and lengths"])
@pytest.mark.parametrize(
    ("cell", "request_", "H"),
    [
        ("lstm", "local:128x8", 100),
        ("lstm", "cluster:32x16", 260),
        ("lstm", "cluster:64x8", 260),
        ("gru", "local:128x8", 100),
        ("rnn_tanh", "local:128x8", 100),
        ("rnn_tanh", "cluster:64x8", 250),
    ],
)
def test_several_cells_a_thread(cell, request_, H, states):
    """The kernels whose registers are full, which fetch at another time than others, over several steps."""
    options = ROW_STATES[states] | {"lengths": [n and n + 1 for n in (SORTED if states == "packed" else LENGTHS)]}
    check(make("bfloat16", 4, len(LENGTHS), H, cell, **options), "bfloat16", request_)


@pytest.mark.parametrize(
    ("arithmetic", "request_", "states", "seed"),
    [
        ("tf32", "grid:8x16x1024", "resets and lengths", 0),
        ("tf32", "grid:8x32x1024", "packed", 1),
        ("bfloat16", "grid:16x32x1024", "resets and lengths", 1),
        ("float16", "grid:16x32x1024", "packed", 0),
    ],
)
def test_many_rounds_of_fetching(arithmetic, request_, states, seed):
    """The operand in more rounds than one, of a tile of rows that is not full and of one that is."""
    options, rows = dict(ROW_STATES[states]), int(request_.split("x")[1]) + 1
    lengths = (LENGTHS * 4)[:rows]
    options["lengths"] = sorted((n or 1 for n in lengths), reverse=True) if "packed" in options else lengths
    layer, module = make(arithmetic, 3, rows, 133, **options | {"directions": 1}), emulator.module()
    expected = layer.reference()
    with emulator.options(module, seed=seed):
        found = Emulated(module, layer, request_).forward()
    for name, value in found.items():
        assert_near(value, expected[name], allowed(layer, arithmetic, name), name)


# The rows are not what is copied: each of their states meets one of the shapes, and some of the schedules.
@pytest.mark.parametrize(
    ("states", "units", "H", "seeds"),
    [(states, *((32, 70), (64, 100))[k % 2], ((0, 1), (1, 5), (5, 0))[k % 3]) for k, states in enumerate(ROW_STATES)],
)
def test_bulk_copies_give_the_bits_of_stores(states, units, H, seeds):
    """The same kernels but for how they send, whatever the schedule."""
    module, layer, runs = emulator.module(), make("bfloat16", 3, len(LENGTHS), H, **ROW_STATES[states]), []
    for transport, seed in (("cluster", 0), *(("bulk", seed) for seed in seeds)):
        with emulator.options(module, seed=seed):
            out = Emulated(module, layer, f"{transport}:{units}x8x512").forward()
            runs.append(out | Emulated(module, layer, f"{transport}:{units}x8x2048").backward(out, EVERYTHING))
    for name, by_stores in runs[0].items():
        for by_copies in runs[1:]:
            assert torch.equal(by_copies[name], by_stores), name


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("transport", RESIDENT)
def test_schedules_agree_bitwise(transport, cell):
    """The order in which threads and stores happen to run changes no bit."""
    module = emulator.module()
    layer = make("bfloat16", 4, 11, hidden_size(transport, 40, cell), cell, lengths=[4, 1, 2, 0, 3, 4, 2, 1, 4, 3, 2])
    runs = []
    for seed in (0, 1, 5):
        run = Emulated(module, layer, transport)
        with emulator.options(module, seed=seed):
            out = run.forward()
            runs.append(out | run.backward(out, EVERYTHING))
    for name, first in runs[0].items():
        for other in runs[1:]:
            assert torch.equal(first, other[name]), name


# Of the ring a cell decides how many operands there are, and an arithmetic how many bytes they have: TF32, which takes
# a third of the time, as many as float32.
@pytest.mark.parametrize(("cell", "arithmetic", "states", "seeds"), [
    ("lstm", "bfloat16", "resets and lengths", (1, 3)), ("gru", "tf32", "both directions", (0, 3)),
])  # fmt: skip
def test_long_sequences_go_round_the_ring(cell, arithmetic, states, seeds):
    """More than twice as many positions as GRID's exchange buffer has room for, under two kinds of schedule."""
    options, T = dict(ROW_STATES[states]), 68
    if "lengths" in options:
        options["lengths"] = [T, 0, 41]
    layer, module, runs = make(arithmetic, T, 3, 20, cell, **options), emulator.module(), []
    for transport, seed in (("stream", 0), *(("grid", seed) for seed in seeds)):
        with emulator.options(module, seed=seed):
            run = Emulated(module, layer, transport)
            out = run.forward()
            runs.append(out | run.backward(out))
    for name, by_stream in runs[0].items():
        assert_near(runs[1][name], by_stream.double(), 2 * allowed(layer, arithmetic, name), name)
        assert torch.equal(runs[1][name], runs[2][name]), name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("transport", ("stream", *RESIDENT))
def test_inference_gives_the_same(transport, cell):
    layer = make("float32", 3, 5, hidden_size(transport, 40, cell), cell)
    run = Emulated(emulator.module(), layer, transport)
    training, inference = run.forward(), run.forward(training=False)
    assert set(inference) == {"output", *layer.last}
    for name, value in inference.items():
        assert torch.equal(value, training[name]), name


@pytest.mark.parametrize("transport", ("stream", *RESIDENT))
@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_row(transport, cell, arithmetic):
    """A NaN of any bits in h_0 spoils its batch row only; GRID must not take it for unwritten memory."""
    layer = make(arithmetic, 3, 4, hidden_size(transport, 20, cell), cell)
    clean = Emulated(emulator.module(), layer, transport).forward()
    bits = torch.int32 if layer.dtype == F32 else torch.int16
    layer.t["h_0"].view(bits)[0, 2] = -1
    out = Emulated(emulator.module(), layer, transport).forward()
    assert out["output"].view(3, 4, -1)[:, 2].isnan().all()
    others = [0, 1, 3]
    assert torch.equal(out["output"].view(3, 4, -1)[:, others], clean["output"].view(3, 4, -1)[:, others])


@pytest.mark.parametrize("length", [-1, 4, 2**40])
def test_wrong_lengths_stay_in_bounds(length):
    """They are not checked on the device: they act as the nearest length that exists."""
    layer = make("float32", 3, 2, 20, lengths=[2, length])
    nearest = make("float32", 3, 2, 20, lengths=[2, min(max(length, 0), 3)])
    for transport in ("stream", "local", "grid"):
        out = Emulated(emulator.module(), layer, transport).forward()
        for name, value in Emulated(emulator.module(), nearest, transport).forward().items():
            assert torch.equal(out[name], value), name


@pytest.mark.parametrize("count", [1, 448, 1000])
def test_values_that_travel_with_the_launch(count):
    values = torch.randint(-(2**62), 2**62, (count,))
    out = torch.zeros(count, dtype=torch.int64)
    with emulator.Memory() as memory:
        memory.module.launch_store_values(values.tolist(), memory.pointer(out, "out", initialised=False))
    assert torch.equal(out, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_second_order_of_steps(cell, dtype):
    hidden = 37
    (before, after, saved, sums, hidden_sums, moves, d_after, d_h_tangent), expected = moving_steps(cell, hidden, dtype)
    rows = len(saved)

    def new(width):
        return torch.full((rows, width * hidden), torch.nan, dtype=dtype)

    used = 0 if cell.takes_h else 1
    results = {"after_tangent": [new(1) for _ in before]}
    for part in ["d_sums", "d_hidden_sums"][: 2 if cell.is_apart else 1]:
        results |= {part: [new(cell.gates)], f"{part}_tangent": [new(cell.gates)]}
    results |= {name: [new(1) for _ in before[used:]] for name in ("d_before", "d_before_tangent")}
    given = {
        "before": before, "after": after, "saved": [saved], "sums": [sums], "before_tangent": moves,
        "d_after": d_after, "d_h_tangent": [d_h_tangent],
    }  # fmt: skip
    if hidden_sums is not None:
        given["hidden_sums"] = [hidden_sums]
    with emulator.Memory() as memory:
        pointers = {
            name: [memory.pointer(t, name, initialised=name in given) for t in tensors]
            for name, tensors in (given | results).items()
        }
        for name in ("d_before", "d_before_tangent"):
            pointers[name] = [0] * used + pointers[name]
        memory.module.launch_second_order(cell.name, str(dtype).removeprefix("torch."), rows, hidden, pointers)
    assert_steps_near([t for tensors in results.values() for t in tensors], expected)
