"""Faults planted in the CUDA kernels, each of which the emulated tests must notice: they test the tests.

A fault is a change to the text of a kernel header. Those of a cell in one arithmetic are compiled together, in the
shapes that they run. The control of each is the same kernel, layer and schedule with all of them asleep.
"""

import functools
import re
from dataclasses import dataclass

import emulator
import planted_faults
import pytest
import torch
from emulated_layer import Emulated, Layer

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
    ("lstm", "mesh", "forward"): "kMesh, Pass::kForward, 4, 8, 1, 4, 0",
    ("lstm", "mesh", "backward"): "kMesh, Pass::kBackward, 2, 16, 1, 4, 0",
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
# What is compiled; the others are of bfloat16.
TF32 = {("lstm", "mesh", "forward")}
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

    @property
    def case(self):
        return self.cell, self.transport, self.which


GATHERED = """  bulk_copy_fence();
  block_sync();"""
CLEARED = "bulk_copy_fence();  // peers copy into what the thread has cleared\n    "
OPENS_FORWARD = "ArrivalBarriers::open(tile.barriers, expected_bytes());"
OPENS_BACKWARD = "SumsInCluster<Math, kShape, SumsByCopies<Math, kShape>>::open();"
HANDED_OVER = r"race of a bulk_copy on .*without a bulk_copy_fence after it"
PASSES = ("forward", "backward")
POLLED = "rows[i] + k(i)"
ARRIVED = "!mbarrier_try_wait<Scope::kCluster>(barriers + offset(s), parity ^ is_late)"
MISSING = "std::max(std::max(v[i].w[0], v[i].w[1]), std::max(v[i].w[2], v[i].w[3]))"
ASKED_OF_L2 = """    if (!clock.runs(step.t)) return;
#pragma unroll
    for (int q = 0; q < kSizes.gates; ++q) prefetch_l2(from + q * a.rows.H);"""
OWN_BUFFER = "s % 2 * Layout::kOperandBytes + Layout::offset(q * Layout::kUnits, 0)"
SENT_SUMS = "tile.ctas * (left < Owned::kUnits ? left : Owned::kUnits)"
OPERAND_BUFFER = "in_register(s % 2 * Layout::kOperandBytes)"
SENT = "bits_float(load_shared32(from + i * Way::kSourceBytes))"
ADDED = "add_vector(from, sums);"
ADDED_OF_CTA = "add_vector(from + i * Way::kSourceBytes, sums);"
GATHERED_SUMS = "for (int q = 0; q < kSums; ++q) v.w[q] = float_bits(acc[r + q][e]);"
ENTERS_CELL = "equations_of<Equations>(a).template forward<ActivationMath<scalar_t>>(sums, h_before, carried)"
COPIED = "bulk_copy(map_cluster_address(chunk, peer), chunk, chunk_bytes(), barrier);"
HIDDEN_BIAS = "sums.from_hidden[q - kSizes.joined] = bias_hh;"
WHOLE = "meet_readers();\n    return tile.operand;"
SOURCE = "cluster_rank() * kShape.k_splits + k_split"
RACE_OR_UNWRITTEN = r"race on shared memory|which nothing has written"

FAULTS = [
    Fault("step barrier removed", "local", "sums.cuh", "block_sync();", "", RACE_OR_UNWRITTEN, which="backward"),
    Fault("step barrier removed", "grid", "sums.cuh", "block_sync();", "", RACE_OR_UNWRITTEN),
    Fault("step barrier of one warp only", "cluster", "sums.cuh", "block_sync();", "warp_sync();",
          RACE_OR_UNWRITTEN),
    Fault("single buffer of partial sums", "grid", "sums.cuh",
          "return s % 2 * kBufferBytes;", "return 0;", r"race on shared memory"),
    Fault("batch tail forgotten", "local", "recurrence.cuh",
          "rows.B - first_row < kBatchRows ? rows.B - first_row : kBatchRows", "kBatchRows",
          r"bytes past the end of"),
    Fault("batch tail forgotten", "local", "recurrence.cuh",
          "rows.B - first_row < kBatchRows ? rows.B - first_row : kBatchRows", "kBatchRows",
          r"bytes past the end of", which="backward"),
    Fault("hidden tail forgotten", "local", "recurrence.cuh",
          "n < batch_rows && u < rows.H", "n < batch_rows", r"race on|bytes past the end of"),
    Fault("first step of a row that does not exist", "local", "rows.cuh", "runs(t) && t == (d == 0 ? 0 : length - 1)",
          "t == (d == 0 ? 0 : length - 1)", r"bytes past the end of c_0", which="backward"),
    Fault("weight tail forgotten", "local", "recurrence.cuh", "unit < H ? part.columns_from(first_k) : 0",
          "part.columns_from(first_k)", r"bytes past the end of weight_hh"),
    Fault("columns of W_hh beyond the last one", "grid", "recurrence.cuh", "part.in_period(k) < rows[i].columns",
          "0 < rows[i].columns", rf"past the end of weight_hh|{WRONG}", which="backward"),
    Fault("gates of W_hh taken for one", "local", "transport_local.cuh", "k / Layout::kUnits * gate_pitch", "0",
          WRONG, which="backward"),
    Fault("no step before the first operand", "cluster", "recurrence.cuh", "-Cell::kLead",
          "0", rf"which nothing has written|deadlock|{WRONG}", which="backward"),
    Fault("operand not cleared beyond the batch", "cluster", "recurrence.cuh",
          "i < kEnd", "i < 0", r"which nothing has written"),
    Fault("staged vector read before it is whole", "cluster", "transport.cuh", "warp_sync();", "",
          RACE_OR_UNWRITTEN),
    Fault("published into the buffer being read", "local", "transport_local.cuh",
          OWN_BUFFER, f"(s + 1) {OWN_BUFFER[2:]}", rf"race on shared memory|{WRONG}"),
    Fault("operand read before all have published", "local", "transport_local.cuh",
          "block_sync();", "", RACE_OR_UNWRITTEN),
    Fault("wrong phase of the mbarrier", "cluster", "transport_cluster.cuh", "s / 2 % 2", "s % 2",
          r"race on shared memory|has landed|arrives when|deadlock"),
    Fault("mbarrier not waited for", "cluster", "transport_cluster.cuh",
          ARRIVED, "false", r"race on shared memory|has landed|arrives when"),
    Fault("published into the buffer being read", "cluster", "transport_cluster.cuh",
          OPERAND_BUFFER, OPERAND_BUFFER.replace("s % 2", "(s + 1) % 2"), r"race on shared memory|has landed"),
    Fault("phase not armed again", "cluster", "transport_cluster.cuh", "s + 2 < steps", "s + 3 < steps", r"deadlock"),
    Fault("peers start at different times", "cluster", "transport_cluster.cuh",
          "    cluster_sync();", "block_sync();", r"race on|without an initialised mbarrier|has not started"),
    Fault("wait within the block only", "cluster", "transport_cluster.cuh", ARRIVED,
          ARRIVED.replace("kCluster", "kBlock"),
          r"race on shared memory.*not ordered with write by asynchronous access"),
    Fault("too few bytes expected", "cluster", "transport_cluster.cuh",
          "tile.batch_rows * this->pitch() * Layout::kElementBytes",
          "tile.batch_rows * (this->pitch() - kVectorBytes) * Layout::kElementBytes", r"race on|has landed|deadlock"),
    Fault("sums of one CTA not expected", "cluster", "transport_cluster.cuh",
          SENT_SUMS, SENT_SUMS.replace("tile.ctas", "(tile.ctas - 1)"),
          r"race on|has landed|deadlock", which="backward"),
    Fault("sums not waited for", "cluster", "sums.cuh", "sums.await(s);", "",
          r"race on shared memory|has landed|arrives when", which="backward"),
    Fault("sums sent into the buffer being read", "cluster", "transport_cluster.cuh", "s % 2 * kBufferBytes",
          "(s + 1) % 2 * kBufferBytes", r"race on shared memory|has landed", which="backward"),
    Fault("sums of one CTA lost", "cluster", "transport_cluster.cuh", SENT, f"(i == 0 ? 0.0f : {SENT})",
          WRONG, which="backward"),
    *[Fault("copied before it is handed over", "bulk", "transport_bulk.cuh", GATHERED,
            GATHERED.replace("bulk_copy_fence();", ""), HANDED_OVER, which=which) for which in PASSES],
    *[Fault("copied before all is gathered", "bulk", "transport_bulk.cuh", GATHERED,
            GATHERED.replace("block_sync();", ""), RACE_OR_UNWRITTEN, which=which) for which in PASSES],
    *[Fault("a peer left out", "bulk", "transport_bulk.cuh", "peer < ctas", "peer < ctas && peer != 1", r"deadlock",
            which=which) for which in PASSES],
    Fault("cleared memory not handed over", "bulk", "transport_bulk.cuh",
          CLEARED + OPENS_FORWARD, OPENS_FORWARD, HANDED_OVER),
    Fault("cleared memory not handed over", "bulk", "transport_bulk.cuh",
          CLEARED + OPENS_BACKWARD, OPENS_BACKWARD, HANDED_OVER, which="backward"),
    Fault("published into the buffer being read", "bulk", "transport_bulk.cuh",
          OPERAND_BUFFER, OPERAND_BUFFER.replace("s % 2", "(s + 1) % 2"),
          r"race on shared memory|has landed"),
    Fault("written again before it has been copied", "bulk", "transport_bulk.cuh",
          "return tile.stage + s % 2 * kBufferBytes;", "return tile.stage;",
          r"race on shared memory.*: write by .*; not ordered with read by asynchronous access of", which="backward"),
    Fault("operand of the CTA itself expected", "bulk", "transport_bulk.cuh",
          "(tile.ctas - 1) * kChunks * chunk_bytes()", "tile.ctas * kChunks * chunk_bytes()", r"deadlock"),
    Fault("one row too few copied", "bulk", "transport_bulk.cuh", COPIED,
          COPIED.replace("chunk_bytes()", "chunk_bytes() - kChunkBytes"), r"deadlock|bulk_copy of 0 bytes"),
    Fault("sums of one CTA not expected", "bulk", "transport_bulk.cuh", "tile.ctas * copied_bytes(tile)",
          "(tile.ctas - 1) * copied_bytes(tile)", r"race on|has landed|deadlock", which="backward"),
    Fault("an odd batch row not copied", "bulk", "transport_bulk.cuh", "(tile.batch_rows + 1) / 2 * kUnits * 8",
          "tile.batch_rows / 2 * kUnits * 8", WRONG, which="backward"),
    Fault("copied to the place of another CTA", "bulk", "transport_bulk.cuh",
          "tile.first_unit / kUnits * kSourceBytes", "0 * kSourceBytes", r"race on|has landed", which="backward"),
    Fault("poll looks at one word of four", "grid", "transport_grid.cuh", MISSING, "v[i].w[0]", WRONG),
    Fault("poll does not wait", "grid", "transport_grid.cuh", "warp_any(load(is_missing))",
          "load(is_missing), false", WRONG),
    Fault("poll through the read-only cache", "grid", "transport_grid.cuh",
          f"load_relaxed128_if(wanted, {POLLED}, v[i]);", f"if (wanted) v[i] = load_constant128({POLLED});",
          r"load_constant|race on exchange"),
    Fault("plain store published", "grid", "transport_grid.cuh", "store_relaxed128(to + place, v);",
          "*reinterpret_cast<Vec4*>(to + place) = v;", r"race on exchange"),
    Fault("one position's memory used again", "grid", "transport_grid.cuh", "in_slot(published, s)",
          "published", rf"livelock|{WRONG}"),
    Fault("ring too short", "grid", "transport_grid.cuh", "static_cast<uint32_t>(s) % kRingPositions",
          "static_cast<uint32_t>(s) % 8", WRONG, layer="long"),
    Fault("slot filled with ones while some still read", "grid", "transport_grid.cuh",
          "in_slot(published, s + kRingPositions - 2)",
          "in_slot(published, s + kRingPositions - 1)", r"livelock", layer="long"),
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
    Fault("operand of another part of K", "mesh", "transport_grid.cuh", "part().column(first_k())", "first_k()", WRONG,
          which="backward", layer="one cluster"),
    Fault("operand multiplied before it is whole", "mesh", "transport_grid.cuh", WHOLE, "return tile.operand;",
          RACE_OR_UNWRITTEN, which="backward", layer="one cluster"),
    Fault("barrier of one warp only", "mesh", "transport_grid.cuh", "block_sync();", "warp_sync();", RACE_OR_UNWRITTEN,
          which="backward", layer="one cluster"),
    *[Fault("rows of the first cluster", "mesh", "transport_mesh.cuh", "first_unit / kUnits * kUnits", "0",
            WRONG, which=which, layer="clusters") for which in PASSES],
    Fault("columns of another part", "mesh", "recurrence.cuh", "part.column(first_k)", "first_k", WRONG,
          layer="one cluster"),
    Fault("sums of two batch rows in one place", "mesh", "transport_cluster.cuh", "to + place(0, e)", "to",
          r"race on|has landed", layer="one cluster"),
    Fault("sums of one batch row expected", "mesh", "transport_cluster.cuh", "(2 / Layout::kPacketRows)", "1",
          r"race on|has landed|deadlock", layer="one cluster"),
    Fault("sums of one CTA lost", "mesh", "transport_cluster.cuh", ADDED_OF_CTA, f"if (i > 0) {ADDED_OF_CTA}", WRONG,
          layer="one cluster"),
    Fault("columns of another part taken too", "mesh", "transport_mesh.cuh", "std::min(most(), all() - first_column())",
          "all() - first_column()", WRONG, which="backward", layer="one cluster"),
    Fault("sums not waited for", "mesh", "sums.cuh", "sums.await(s);", "",
          r"race on shared memory|has landed|arrives when", which="backward", layer="one cluster"),
    Fault("sums of one CTA not expected", "mesh", "transport_mesh.cuh", "kSources * Owned::kUnits",
          "(kSources - 1) * Owned::kUnits", r"race on|has landed|deadlock", which="backward", layer="one cluster"),
    Fault("sums of all CTAs in one place", "mesh", "transport_mesh.cuh", SOURCE, "k_split", r"race on|has landed",
          which="backward", layer="one cluster"),
    Fault("sums of one CTA lost", "mesh", "transport_cluster.cuh", SENT, f"(i == 0 ? 0.0f : {SENT})",
          WRONG, which="backward", layer="one cluster"),
    Fault("sums of one warp lost", "cluster", "sums.cuh", ADDED,
          f"if (k_split > 0) {ADDED}", WRONG),
    Fault("three sums gathered as two", "cluster", "sums.cuh", GATHERED_SUMS,
          GATHERED_SUMS.replace("q < kSums", "q + 1 < kSums"), WRONG, cell="gru"),
    Fault("rows of W_hh counted as of four gates", "local", "recurrence.cuh", "(r + i) % kShape.sums() * H",
          "(r + i) % 4 * H", rf"bytes past the end of weight_hh|{WRONG}", cell="gru"),
    Fault("rows of W_hh counted as of four gates", "grid", "recurrence.cuh", "(r + i) % kShape.sums() * H",
          "(r + i) % 4 * H", rf"bytes past the end of weight_hh|{WRONG}", cell="gru"),
    Fault("bias of n outside the reset", "local", "forward_unit.cuh", HIDDEN_BIAS,
          HIDDEN_BIAS.replace("from_hidden", "from_input").replace(" = ", " += "), WRONG, cell="gru"),
    Fault("input of n inside the reset", "cluster", "forward_unit.cuh", "bias.sums.from_hidden[q]",
          "pre[kSizes.joined + q] + bias.sums.from_hidden[q]", WRONG, cell="gru"),
    Fault("h before lost", "grid", "forward_unit.cuh", ENTERS_CELL,
          ENTERS_CELL.replace("h_before", "acc_t(0)"), WRONG, cell="gru"),
    Fault("direct gradient of h dropped", "local", "backward_unit.cuh", "(kTakesH ? d_h + sum : sum)", "sum", WRONG,
          which="backward", cell="gru"),
    Fault("direct gradient of h dropped", "cluster", "backward_unit.cuh", "(kTakesH ? d_h + sum : sum)", "sum", WRONG,
          which="backward", cell="gru"),
    Fault("gradient of h taken for the direct one", "grid", "backward_unit.cuh",
          "if constexpr (kTakesH) d_h = clock.runs(t) ? direct : d_h;", "", WRONG, which="backward", cell="gru"),
    Fault("direct gradient of a row that has ended", "local", "backward_unit.cuh",
          "clock.runs(t) ? direct : d_h", "direct", WRONG, which="backward", cell="gru", layer="lengths"),
    Fault("h before of the wrong step", "local", "backward_unit.cuh", "output_at(a, previous)",
          "output_at(a, step)", WRONG, which="backward", cell="gru"),
    Fault("h before of the wrong step", "grid", "backward_unit.cuh", "output_at(a, previous)",
          "output_at(a, step)", WRONG, which="backward", cell="gru"),
    Fault("h before a reset", "cluster", "backward_unit.cuh", "states[0]",
          "a.rows.initial[0]", WRONG, which="backward", cell="gru", layer="resets"),
    Fault("gradient of n through the reset for its input", "local", "backward_unit.cuh",
          "gradients.from_input[q - kSizes.joined]", "gradients.from_hidden[q]", WRONG, which="backward", cell="gru"),
    Fault("h of the other direction", "local", "backward_unit.cuh",
          "(step.row + clock.b) * a.rows.D + clock.d", "(step.row + clock.b) * a.rows.D", WRONG,
          which="backward", cell="rnn_tanh", layer="directions"),
    Fault("h of the step before", "grid", "backward_unit.cuh", "output_at(a, step)",
          "clock.first(step.t) ? scalar_t{} : output_at(a, previous)", WRONG, which="backward", cell="rnn_tanh"),
    Fault("relu for tanh", "local", "rows.cuh", "make_cell<Equations>(a.is_relu)", "make_cell<Equations>(true)", WRONG,
          cell="rnn_tanh"),
]  # fmt: skip

# What one CTA of a tile never does; "reported" is said by the wait itself.
VECTORS_GO = "!this->exists(e) || threadIdx.x % 32 >= Layout::kVectors"
OPERANDS_GO = "this->exists(e) && peer(i) < tile.ctas"
SENT_SUMS_GO = "group >= units"
COPIES_GO = "peer < ctas"


def silent(transport, which, waiting, old, new, file=None):
    math = "Tf32Math" if ("lstm", transport, which) in TF32 else "BFloat16Math"
    kernel = rf"{waiting}<.*{math}.*k{transport.title()}.*"
    return Fault("a CTA that never comes", transport, f"transport_{file or transport}.cuh", old, new,
                 kernel + r"waited 30 s in vain for another CTA.*FUSEDLSTM_PLAN=stream", which,
                 layer="one cluster" if transport == "mesh" else "plain")  # fmt: skip


SILENT = [
    silent("grid", "forward", "OperandInMemory", VECTORS_GO, f"blockIdx.x == 1 || {VECTORS_GO}"),
    silent("grid", "backward", "OperandInMemory", VECTORS_GO, f"blockIdx.x == 1 || {VECTORS_GO}"),
    silent("cluster", "forward", "OperandsInCluster", OPERANDS_GO, f"blockIdx.x != 1 && {OPERANDS_GO}"),
    silent("bulk", "forward", "OperandsInBulk", COPIES_GO, f"blockIdx.x != 1 && {COPIES_GO}"),
    silent("bulk", "backward", "SentSums", COPIES_GO, f"blockIdx.x != 1 && {COPIES_GO}"),
    silent("cluster", "backward", "SentSums", SENT_SUMS_GO, f"blockIdx.x == 1 || {SENT_SUMS_GO}"),
    *[
        silent("mesh", which, waiting, old, f"blockIdx.x == 1 || {old}", file)
        for which in PASSES
        for waiting, old, file in (("SentSums", SENT_SUMS_GO, "cluster"), ("OperandInMemory", VECTORS_GO, "grid"))
    ],
]

# Tails in B and H, more than one tile, several CTAs a tile.
LAYERS = {
    "plain": {},
    "directions": {"directions": 2},
    "lengths": {"lengths": [5, 1, 3, 0, 2, 5, 4, 1, 2, 5, 3]},
    "resets": {"resets": True, "reset_states": True},
    "one cluster": {"T": 3, "B": 3},
    "clusters": {"T": 2, "B": 1, "H": 140},
    "long": {"T": 41, "B": 3, "H": 20},  # more positions than a ring has, and of them as many as lie between fences
}


@functools.cache
def layer(case, options):
    sizes, is_tf32 = {"T": 5, "B": 11, "H": 40}, case in TF32
    dtype = torch.float32 if is_tf32 else torch.bfloat16
    return Layer(cell=CELLS[case[0]], dtype=dtype, allow_tf32=is_tf32, **(sizes | LAYERS[options]))


@functools.cache
def expected(*of_layer):
    return layer(*of_layer).reference()


@functools.cache
def forward_results(*of_layer):
    return Emulated(emulator.module(), layer(*of_layer), "stream").forward()


def compiled_with(case):
    """The cases of SHAPES that are compiled together."""
    return [other for other in SHAPES if other[0] == case[0] and (other in TF32) == (case in TF32)]


def module_with_faults(case):
    """The emulated module with the kernels of a case of SHAPES and all their faults."""
    return module_of(tuple(compiled_with(case)))


@functools.cache
def module_of(cases):
    kernels = [f"KernelShape{{CellKind::{KINDS[case[0]]}, Transport::{SHAPES[case]}}}" for case in cases]
    some = " || ".join(f"shape == {kernel}" for kernel in kernels)
    shapes = ("kernel_shapes.h", ANY_SHAPE, f"{ANY_SHAPE}  if (!({some})) return false;\n")
    arithmetic = "tf32" if cases[0] in TF32 else "bfloat16"
    return planted_faults.module_with(faults_of(cases[0]), {(f"recurrence_{arithmetic}.cu",): [shapes]})


@functools.cache
def faults_of(case):
    """Those that are planted in the module of a case."""
    return [fault for fault in [*FAULTS, *SILENT] if fault.case in compiled_with(case)]


@functools.lru_cache(maxsize=len(SEEDS))  # of one case: the first schedule's are compared with each other's
def results(fault, case, seed, options):
    """With one fault of the case, or None."""
    _, transport, which = case
    module = module_with_faults(case)
    run = Emulated(module, layer(case, options), transport)
    number = faults_of(case).index(fault) + 1 if fault else 0
    with emulator.options(module, seed=seed, fault=number):
        return run.forward() if which == "forward" else run.backward(forward_results(case, options))


def verdict(fault, case, seed, options):
    """What a test with this schedule would say: None, the error, or WRONG, also if other bits than with the first."""
    exact = expected(case, options)
    try:
        found, first = (results(fault, case, each, options) for each in (seed, SEEDS[0]))
    except module_with_faults(case).EmulationError as error:
        return str(error)
    right = all(
        torch.allclose(value.double().flatten(), exact[name].flatten(), rtol=2**-6, atol=2**-5)
        and torch.equal(value, first[name])
        for name, value in found.items()
    )
    return None if right else WRONG


@functools.cache
def control(case, seed, options):
    return verdict(None, case, seed, options)


@pytest.mark.parametrize("fault", SILENT, ids=lambda fault: f"{fault.transport}-{fault.which}-{fault.file}")
@pytest.mark.parametrize("seed", SEEDS[::3])
def test_watchdog_ends_a_wait_for_a_cta_that_never_comes(seed, fault):
    """The wait gives up by itself after half a minute; without that time, the emulator sees that nobody will come."""
    assert re.match(r".*: (deadlock|livelock, only polling threads run)", verdict(fault, fault.case, seed, fault.layer))
    with emulator.options(module_with_faults(fault.case), time_passes=True):
        message = verdict(fault, fault.case, seed, fault.layer)
    assert re.search(fault.reported, message)
    assert control(fault.case, seed, fault.layer) is None, "the kernel as it is"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: "-".join([*f.case, f.name.replace(" ", "_")]))
def test_fault_is_noticed(fault):
    verdicts = ((seed, verdict(fault, fault.case, seed, fault.layer)) for seed in SEEDS)
    seed, message = next((each for each in verdicts if each[1]), (None, None))
    assert message, f"{fault.name}: the kernels ran as if nothing were wrong, under all {len(SEEDS)} schedules"
    assert re.search(fault.reported, message), f"{fault.name}: expected {fault.reported!r}, got {message!r}"
    assert control(fault.case, seed, fault.layer) is None, "the kernel as it is"
