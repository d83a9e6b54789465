"""Faults planted in the CUDA kernels, each of which the emulated tests must notice: they test the tests.

A fault is a change to the text of a kernel header. One arithmetic is compiled with it, in the one shape that the case
runs; the control of every case is the same without the change.
"""

import functools
import re
from dataclasses import dataclass

import emulator
import pytest
import torch
from emulated_layer import Emulated, Layer
from emulator import build
from planted_faults import change, copy_of_sources

from fusedlstm.cells import CELLS

SEEDS = range(4)

# (cell, transport, pass) -> the compiled shape that the planner takes for the layer below
SHAPES = {
    ("lstm", "local", "forward"): "kLocal, Pass::kForward, 4, 2, 1, 1, 0",
    ("lstm", "local", "backward"): "kLocal, Pass::kBackward, 2, 4, 2, 1, 0",
    ("lstm", "cluster", "forward"): "kCluster, Pass::kForward, 4, 2, 4, 1, 0",
    ("lstm", "cluster", "backward"): "kCluster, Pass::kBackward, 4, 2, 1, 1, 0",
    ("lstm", "bulk", "forward"): "kBulk, Pass::kForward, 4, 8, 2, 1, 0",
    ("lstm", "bulk", "backward"): "kBulk, Pass::kBackward, 8, 4, 1, 1, 0",
    ("lstm", "grid", "forward"): "kGrid, Pass::kForward, 4, 1, 8, 1, 0",
    ("lstm", "grid", "backward"): "kGrid, Pass::kBackward, 2, 4, 8, 1, 0",
    ("gru", "local", "forward"): "kLocal, Pass::kForward, 6, 4, 1, 1, 0",
    ("gru", "local", "backward"): "kLocal, Pass::kBackward, 2, 12, 1, 1, 3",
    ("gru", "cluster", "forward"): "kCluster, Pass::kForward, 6, 4, 4, 1, 0",
    ("gru", "cluster", "backward"): "kCluster, Pass::kBackward, 4, 3, 1, 1, 0",
    ("gru", "grid", "forward"): "kGrid, Pass::kForward, 6, 4, 8, 1, 0",
    ("gru", "grid", "backward"): "kGrid, Pass::kBackward, 2, 12, 8, 1, 0",
    ("rnn_tanh", "local", "forward"): "kLocal, Pass::kForward, 2, 4, 1, 1, 0",
    ("rnn_tanh", "local", "backward"): "kLocal, Pass::kBackward, 2, 4, 1, 1, 0",
    ("rnn_tanh", "grid", "backward"): "kGrid, Pass::kBackward, 4, 8, 8, 1, 0",
}
KINDS = {"lstm": "kLstm", "gru": "kGru", "rnn_tanh": "kRnn"}
ANY_SHAPE = "constexpr bool is_compiled(const KernelShape& shape, Arithmetic arithmetic) {\n"
WRONG = "wrong numbers"


@dataclass(frozen=True)
class Fault:
    name: str
    transport: str
    file: str
    old: str  # occurs once in the file
    new: str
    reported: str  # what the error says, or WRONG
    which: str = "forward"
    cell: str = "lstm"
    layer: str = "plain"  # of LAYERS


STEP_BARRIER = "void await(int) const { block_sync(); }"
STAGED = """    warp_sync();
#pragma unroll
    for (int e = 0; e < Owned::kCount; ++e)"""
GATHERED = """  bulk_copy_fence();
  block_sync();"""
CLEARED = """    bulk_copy_fence();  // peers copy into what the thread has cleared
    """
HANDED_OVER = r"race of a bulk_copy on .*without a bulk_copy_fence after it"
PASSES = ("forward", "backward")
POLLED = "rows[i] + k(i)"
MISSING = "std::max(std::max(v[i].w[0], v[i].w[1]), std::max(v[i].w[2], v[i].w[3]))"
ASKED_OF_L2 = """    if (!clock.runs(step.t)) return;
#pragma unroll
    for (int q = 0; q < kSizes.gates; ++q) prefetch_l2("""
SUMS_BUFFER = "(tile.sums - tile.barriers) + s % 2"
HIDDEN_BIAS = "sums.from_hidden[q - kSizes.joined] = bias_hh;"
RACE_OR_UNWRITTEN = r"race on shared memory|which nothing has written"

FAULTS = [
    Fault("step barrier removed", "local", "sums.cuh", STEP_BARRIER, STEP_BARRIER.replace("block_sync();", ";"),
          RACE_OR_UNWRITTEN, which="backward"),
    Fault("step barrier removed", "grid", "sums.cuh", STEP_BARRIER, STEP_BARRIER.replace("block_sync();", ";"),
          RACE_OR_UNWRITTEN),
    Fault("step barrier of one warp only", "cluster", "sums.cuh", STEP_BARRIER,
          STEP_BARRIER.replace("block_sync();", "warp_sync();"), RACE_OR_UNWRITTEN),
    Fault("single buffer of partial sums", "grid", "sums.cuh",
          "return s % 2 * kBufferBytes;", "return 0;", r"race on shared memory"),
    Fault("batch tail forgotten", "local", "recurrence.cuh",
          "rows.B - first_row < kBatchRows ? rows.B - first_row : kBatchRows", "kBatchRows",
          r"bytes past the end of"),
    Fault("batch tail forgotten", "local", "recurrence.cuh",
          "rows.B - first_row < kBatchRows ? rows.B - first_row : kBatchRows", "kBatchRows",
          r"bytes past the end of", which="backward"),
    Fault("hidden tail forgotten", "local", "recurrence.cuh",
          "const bool exists = n < batch_rows && u < rows.H;", "const bool exists = n < batch_rows;",
          r"race on|bytes past the end of"),
    Fault("first step of a row that does not exist", "local", "rows.cuh", "return runs(t) && t ==", "return t ==",
          r"bytes past the end of c_0", which="backward"),
    Fault("weight tail forgotten", "local", "recurrence.cuh", "if (unit < H && exists)", "if (exists)",
          r"bytes past the end of weight_hh"),
    Fault("operand not cleared beyond the batch", "cluster", "recurrence.cuh",
          "i < kEnd", "i < 0", r"which nothing has written"),
    Fault("staged vector read before it is whole", "cluster", "transport.cuh", STAGED,
          STAGED.replace("    warp_sync();", ""), RACE_OR_UNWRITTEN),
    Fault("published into the buffer being read", "local", "transport_local.cuh",
          "kChunkBytes +\n                                    s % 2", "kChunkBytes +\n (s + 1) % 2",
          rf"race on shared memory|{WRONG}"),
    Fault("operand read before all have published", "local", "transport_local.cuh",
          "    block_sync();\n    return tile.operand", "    return tile.operand", RACE_OR_UNWRITTEN),
    Fault("wrong phase of the mbarrier", "cluster", "transport_cluster.cuh", "parity = s / 2 % 2",
          "parity = s % 2", r"race on shared memory|has landed|arrives when|deadlock"),
    Fault("mbarrier not waited for", "cluster", "transport_cluster.cuh",
          "!mbarrier_try_wait<Scope::kCluster>(barriers + offset(s), parity ^ is_late)", "false",
          r"race on shared memory|has landed|arrives when"),
    Fault("published into the buffer being read", "cluster", "transport_cluster.cuh",
          "buffer = in_register(s % 2", "buffer = in_register((s + 1) % 2",
          r"race on shared memory"),
    Fault("phase not armed again", "cluster", "transport_cluster.cuh", "s + 2 < steps", "s + 3 < steps", r"deadlock"),
    Fault("peers start at different times", "cluster", "transport_cluster.cuh",
          "cluster_sync();  // peers may send only",
          "block_sync();  // peers may send only", r"race on|without an initialised mbarrier|has not started"),
    Fault("wait within the block only", "cluster", "transport_cluster.cuh", "mbarrier_try_wait<Scope::kCluster>",
          "mbarrier_try_wait<Scope::kBlock>", r"race on shared memory.*not ordered with write by asynchronous access"),
    Fault("too few bytes expected", "cluster", "transport_cluster.cuh", "return tile.batch_rows * this->pitch()",
          "return tile.batch_rows * (this->pitch() - kVectorBytes)", r"race on|has landed|deadlock"),
    Fault("sums of one CTA not expected", "cluster", "transport_cluster.cuh", "return tile.ctas * units",
          "return (tile.ctas - 1) * units", r"race on|has landed|deadlock", which="backward"),
    Fault("sums not waited for", "cluster", "sums.cuh", "sums.await(s);", ";",
          r"race on shared memory|has landed|arrives when", which="backward"),
    Fault("sums sent into the buffer being read", "cluster", "transport_cluster.cuh", SUMS_BUFFER,
          SUMS_BUFFER.replace("s % 2", "(s + 1) % 2"), r"race on shared memory|has landed", which="backward"),
    Fault("sums of one CTA lost", "cluster", "transport_cluster.cuh", "for (int i = 0; i < Way::kSources",
          "for (int i = 1; i < Way::kSources", WRONG, which="backward"),
    *[Fault("copied before it is handed over", "bulk", "transport_bulk.cuh", GATHERED,
            GATHERED.replace("bulk_copy_fence();", ""), HANDED_OVER, which=which) for which in PASSES],
    *[Fault("copied before all is gathered", "bulk", "transport_bulk.cuh", GATHERED,
            GATHERED.replace("block_sync();", ""), RACE_OR_UNWRITTEN, which=which) for which in PASSES],
    *[Fault("a peer left out", "bulk", "transport_bulk.cuh", "peer < ctas)", "peer < ctas && peer != 1)", r"deadlock",
            which=which) for which in PASSES],
    Fault("cleared memory not handed over", "bulk", "transport_bulk.cuh",
          CLEARED + "ArrivalBarriers::open", "    ArrivalBarriers::open", HANDED_OVER),
    Fault("cleared memory not handed over", "bulk", "transport_bulk.cuh",
          CLEARED + "SumsInCluster", "    SumsInCluster", HANDED_OVER, which="backward"),
    Fault("published into the buffer being read", "bulk", "transport_bulk.cuh",
          "in_register(s % 2 * Layout", "in_register((s + 1) % 2 * Layout", r"race on shared memory"),
    Fault("written again before it has been copied", "bulk", "transport_bulk.cuh",
          "return tile.stage + s % 2 * kBufferBytes;", "return tile.stage;",
          r"race on shared memory.*: write by .*; not ordered with read by asynchronous access of", which="backward"),
    Fault("operand of the CTA itself expected", "bulk", "transport_bulk.cuh", "return (tile.ctas - 1) * kChunks",
          "return tile.ctas * kChunks", r"deadlock"),
    Fault("one row too few copied", "bulk", "transport_bulk.cuh", "chunk, chunk_bytes(), barrier",
          "chunk, chunk_bytes() - kChunkBytes, barrier", r"deadlock|bulk_copy of 0 bytes"),
    Fault("sums of one CTA not expected", "bulk", "transport_bulk.cuh", "return tile.ctas * copied_bytes(tile)",
          "return (tile.ctas - 1) * copied_bytes(tile)", r"race on|has landed|deadlock", which="backward"),
    Fault("an odd batch row not copied", "bulk", "transport_bulk.cuh", "(tile.batch_rows + 1) / 2 * kUnits",
          "tile.batch_rows / 2 * kUnits", WRONG, which="backward"),
    Fault("copied to the place of another CTA", "bulk", "transport_bulk.cuh",
          "tile.first_unit / kUnits * kSourceBytes", "0 * kSourceBytes", r"race on|has landed", which="backward"),
    Fault("poll looks at one word of four", "grid", "transport_grid.cuh", MISSING, "v[i].w[0]", WRONG),
    Fault("poll does not wait", "grid", "transport_grid.cuh", "while (warp_any(load(is_missing)))",
          "while (load(is_missing), false)", WRONG),
    Fault("poll through the read-only cache", "grid", "transport_grid.cuh",
          f"load_relaxed128_if(wanted, {POLLED}, v[i]);", f"if (wanted) v[i] = load_constant128({POLLED});",
          r"load_constant|race on exchange"),
    Fault("plain store published", "grid", "transport_grid.cuh", "store_relaxed128(to + place, v);",
          "*reinterpret_cast<Vec4*>(to + place) = v;", r"race on exchange"),
    Fault("one position's memory used again", "grid", "transport_grid.cuh", "to = in_slot(published, s)",
          "to = published", rf"livelock|{WRONG}"),
    Fault("ring too short", "grid", "transport_grid.cuh", "% kRingPositions} * stride", "% 8} * stride", WRONG,
          layer="long"),
    Fault("slot filled with ones while some still read", "grid", "transport_grid.cuh",
          "read_by_all = in_slot(published, s + kRingPositions - 2)",
          "read_by_all = in_slot(published, s + kRingPositions - 1)", r"livelock", layer="long"),
    Fault("slot not filled with ones again", "grid", "transport_grid.cuh",
          "if (is_used_again) store_relaxed128(read_by_all + place, kNothing);", "", WRONG, layer="long"),
    Fault("slot not filled with ones again", "grid", "transport_grid.cuh",
          "if (is_used_again) store_relaxed128(read_by_all + place, kNothing);", "", WRONG, which="backward",
          layer="long"),
    Fault("warps with cells taken for idle ones", "grid", "owned_cells.cuh",
          "first_row(threadIdx.x / 32 * 32) < kShape.batch_rows()", "first_row(threadIdx.x / 32 * 32) < 1",
          r"livelock"),
    Fault("lines asked for beyond the last step", "grid", "forward_unit.cuh", ASKED_OF_L2,
          ASKED_OF_L2[ASKED_OF_L2.index("#"):], r"prefetch outside every buffer"),
    Fault("not cooperative", "grid", "transport_grid.cuh", "config.cooperative = true;", "",
          r"livelock, only polling threads run"),
    Fault("exchange memory not prepared", "grid", "transport_grid.cuh",
          "cudaMemsetAsync(memory, 0xFF, exchange_bytes(plan, rows), stream)", "cudaSuccess",
          r"read of exchange\+\d+, which nothing has written", which="backward"),
    Fault("sums of one warp lost", "cluster", "sums.cuh", "for (int k_split = 0; k_split < kShape.k_splits",
          "for (int k_split = 1; k_split < kShape.k_splits", WRONG),
    Fault("three sums gathered as two", "cluster", "sums.cuh", "for (int q = 0; q < kSums; ++q) v.w[q]",
          "for (int q = 0; q + 1 < kSums; ++q) v.w[q]", WRONG, cell="gru"),
    Fault("rows of W_hh counted as of four gates", "local", "recurrence.cuh", "(r + i) % kShape.sums() * H",
          "(r + i) % 4 * H", rf"bytes past the end of weight_hh|{WRONG}", cell="gru"),
    Fault("rows of W_hh counted as of four gates", "grid", "recurrence.cuh", "(r + i) % kShape.sums() * H",
          "(r + i) % 4 * H", rf"bytes past the end of weight_hh|{WRONG}", cell="gru"),
    Fault("bias of n outside the reset", "local", "forward_unit.cuh", HIDDEN_BIAS,
          HIDDEN_BIAS.replace("from_hidden", "from_input").replace(" = ", " += "), WRONG, cell="gru"),
    Fault("input of n inside the reset", "cluster", "forward_unit.cuh", "known.sums[kSizes.joined + q] = bias",
          "known.sums[kSizes.joined + q] = pre[kSizes.joined + q] + bias", WRONG, cell="gru"),
    Fault("h before lost", "grid", "forward_unit.cuh", "(sums, h_before, carried)", "(sums, acc_t(0), carried)", WRONG,
          cell="gru"),
    Fault("direct gradient of h dropped", "local", "backward_unit.cuh", "(kTakesH ? d_h + sum : sum)", "sum", WRONG,
          which="backward", cell="gru"),
    Fault("direct gradient of h dropped", "cluster", "backward_unit.cuh", "(kTakesH ? d_h + sum : sum)", "sum", WRONG,
          which="backward", cell="gru"),
    Fault("gradient of h taken for the direct one", "grid", "backward_unit.cuh",
          "if constexpr (kTakesH) d_h = clock.runs(t) ? direct : d_h;", "", WRONG, which="backward", cell="gru"),
    Fault("direct gradient of a row that has ended", "local", "backward_unit.cuh",
          "clock.runs(t) ? direct : d_h", "direct", WRONG, which="backward", cell="gru", layer="lengths"),
    Fault("h before of the wrong step", "local", "backward_unit.cuh", "h_before = output_at(a, previous)",
          "h_before = output_at(a, step)", WRONG, which="backward", cell="gru"),
    Fault("h before of the wrong step", "grid", "backward_unit.cuh", "h_before = output_at(a, previous)",
          "h_before = output_at(a, step)", WRONG, which="backward", cell="gru"),
    Fault("h before a reset", "cluster", "backward_unit.cuh", "state_or_zero<scalar_t>(states[0], a.rows.R",
          "state_or_zero<scalar_t>(a.rows.initial[0], a.rows.R", WRONG, which="backward", cell="gru", layer="resets"),
    Fault("gradient of n through the reset for its input", "local", "backward_unit.cuh",
          "gradients.from_input[q - kSizes.joined];", "gradients.from_hidden[q];", WRONG, which="backward", cell="gru"),
    Fault("h of the other direction", "local", "backward_unit.cuh",
          "(step.row + clock.b) * a.rows.D + clock.d, a.rows.R", "(step.row + clock.b) * a.rows.D, a.rows.R", WRONG,
          which="backward", cell="rnn_tanh", layer="directions"),
    Fault("h of the step before", "grid", "backward_unit.cuh", "h = output_at(a, step)",
          "h = clock.first(step.t) ? scalar_t{} : output_at(a, previous)", WRONG, which="backward", cell="rnn_tanh"),
    Fault("relu for tanh", "local", "rows.cuh", "make_cell<Equations>(a.is_relu)", "make_cell<Equations>(true)", WRONG,
          cell="rnn_tanh"),
]  # fmt: skip

# Tails in B and H, more than one tile, several CTAs a tile.
LAYERS = {
    "plain": {},
    "directions": {"directions": 2},
    "lengths": {"lengths": [5, 1, 3, 0, 2, 5, 4, 1, 2, 5, 3]},
    "resets": {"resets": True, "reset_states": True},
    "long": {"T": 41, "B": 3, "H": 20},  # more positions than a ring has, and of them as many as lie between fences
}


@functools.cache
def layer(cell="lstm", options="plain"):
    sizes = {"T": 5, "B": 11, "H": 40}
    return Layer(cell=CELLS[cell], dtype=torch.bfloat16, **(sizes | LAYERS[options]))


@functools.cache
def expected(*of_layer):
    return layer(*of_layer).reference()


@functools.cache
def forward_results(*of_layer):
    return Emulated(emulator.module(), layer(*of_layer), "local").forward()


def changed_module(folder, transport, which, file=None, old="", new="", cell="lstm"):
    """The emulated module with one shape of the bfloat16 kernels, after a change to their text."""
    csrc = copy_of_sources(folder)
    only = f"KernelShape{{CellKind::{KINDS[cell]}, Transport::{SHAPES[cell, transport, which]}}}"
    change(csrc, "kernel_shapes.h", ANY_SHAPE, f"{ANY_SHAPE}  if (!(shape == {only})) return false;\n")
    if file:
        change(csrc, file, old, new)
    return build.load(build.build({"recurrence_bfloat16.cu": csrc}))


@functools.cache
def results(module, transport, which, seed, *of_layer):
    run = Emulated(module, layer(*of_layer), transport)
    with emulator.options(module, seed=seed):
        return run.forward() if which == "forward" else run.backward(forward_results(*of_layer))


def verdict(module, transport, which, seed, *of_layer):
    """What a test with this schedule would say: None, the error, or WRONG, also if other bits than with the first."""
    exact = expected(*of_layer)
    try:
        found = results(module, transport, which, seed, *of_layer)
        first = results(module, transport, which, SEEDS[0], *of_layer)
    except module.EmulationError as error:
        return str(error)
    right = all(
        torch.allclose(value.double().flatten(), exact[name].flatten(), rtol=2**-6, atol=2**-5)
        and torch.equal(value, first[name])
        for name, value in found.items()
    )
    return None if right else WRONG


@pytest.mark.parametrize(("cell", "transport", "which"), SHAPES)
def test_control(cell, transport, which, tmp_path):
    module = changed_module(tmp_path, transport, which, cell=cell)
    needed = {fault.layer for fault in FAULTS if (fault.cell, fault.transport, fault.which) == (cell, transport, which)}
    for options in sorted(needed):
        verdicts = [verdict(module, transport, which, seed, cell, options) for seed in SEEDS]
        assert verdicts == [None] * len(SEEDS), options


# What one CTA of a tile never does.
PUBLISHES = "if (!this->exists(e) || threadIdx.x % 32 >= Layout::kVectors) return;"
SENDS = "if (this->exists(e) && peer(i) < tile.ctas)"
SENDS_SUMS = "if (r * 8 >= units) continue;"
SENDS_TO = "peer < ctas)"
SILENT = [
    ("grid", "forward", "GridTransport", PUBLISHES, PUBLISHES.replace("if (", "if (blockIdx.x == 1 || ")),
    ("grid", "backward", "GridTransport", PUBLISHES, PUBLISHES.replace("if (", "if (blockIdx.x == 1 || ")),
    ("cluster", "forward", "OperandsInCluster", SENDS, SENDS.replace("if (", "if (blockIdx.x != 1 && ")),
    ("bulk", "forward", "OperandsInBulk", SENDS_TO, "blockIdx.x != 1 && peer < ctas)"),
    ("bulk", "backward", "SentSums", SENDS_TO, "blockIdx.x != 1 && peer < ctas)"),
    ("cluster", "backward", "SentSums", SENDS_SUMS, SENDS_SUMS.replace("if (", "if (blockIdx.x == 1 || ")),
]


@pytest.mark.parametrize(("transport", "which", "waiting", "old", "new"), SILENT, ids=lambda x: x.split()[0])
@pytest.mark.parametrize("seed", SEEDS)
def test_watchdog_ends_a_wait_for_a_cta_that_never_comes(seed, transport, which, waiting, old, new, tmp_path):
    """The wait gives up by itself after half a minute; without that time, the emulator sees that nobody will come."""
    module = changed_module(tmp_path, transport, which, f"transport_{transport}.cuh", old, new)
    assert re.match(r".*: (deadlock|livelock, only polling threads run)", verdict(module, transport, which, seed))
    with emulator.options(module, time_passes=True):
        message = verdict(module, transport, which, seed)
    kernel = rf"{waiting}<.*BFloat16Math.*k{transport.title()}.*"
    assert re.search(kernel + r"waited 30 s in vain for another CTA.*FUSEDLSTM_PLAN=stream", message)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.cell}-{f.transport}-{f.which}-{f.name.replace(' ', '_')}")
def test_fault_is_noticed(fault, tmp_path):
    module = changed_module(tmp_path, fault.transport, fault.which, fault.file, fault.old, fault.new, fault.cell)
    verdicts = [verdict(module, fault.transport, fault.which, seed, fault.cell, fault.layer) for seed in SEEDS]
    noticed = [v for v in verdicts if v]
    assert noticed, f"{fault.name}: the kernels ran as if nothing were wrong, under all {len(SEEDS)} schedules"
    for message in noticed:
        assert re.search(fault.reported, message), f"{fault.name}: expected {fault.reported!r}, got {message!r}"
