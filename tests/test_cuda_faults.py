"""Faults planted in the CUDA kernels, each of which the emulated tests must notice: they test the tests.

A fault is a change to the text of a kernel header. One arithmetic is compiled with it, in the one shape that the case
runs; the control of every case is the same without the change.
"""

import functools
import re
import shutil
from dataclasses import dataclass

import emulator
import pytest
import torch
from emulated_layer import Emulated, Layer
from emulator import build

SEEDS = range(4)

# (transport, pass) -> the compiled shape that the planner takes for the layer below
SHAPES = {
    ("local", "forward"): "kLocal, Pass::kForward, 4, 2, 1, 1",
    ("local", "backward"): "kLocal, Pass::kBackward, 2, 4, 2, 1",
    ("cluster", "forward"): "kCluster, Pass::kForward, 4, 2, 4, 1",
    ("cluster", "backward"): "kCluster, Pass::kBackward, 4, 2, 1, 1",
    ("grid", "forward"): "kGrid, Pass::kForward, 4, 1, 8, 1",
    ("grid", "backward"): "kGrid, Pass::kBackward, 2, 4, 8, 1",
}
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


STEP_BARRIER = "void await(int) const { block_sync(); }"
STAGED = """    warp_sync();
#pragma unroll
    for (int e = 0; e < Owned::kCount; ++e)"""
RELAXED_STORE = "store_relaxed128(published + e * Layout::Owned::kRowsApart * this->pitch() + q * tile.gate_pitch, v);"
SUMS_BUFFER = "(tile.sums - tile.barriers) + s % 2"
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
          "mbarrier_try_wait<Scope::kBlock>", r"race on shared memory.*not ordered with write by store_async of"),
    Fault("too few bytes expected", "cluster", "transport_cluster.cuh", "return tile.batch_rows * this->pitch()",
          "return tile.batch_rows * (this->pitch() - kVectorBytes)", r"race on|has landed|deadlock"),
    Fault("sums of one CTA not expected", "cluster", "transport_cluster.cuh", "return tile.ctas * units",
          "return (tile.ctas - 1) * units", r"race on|has landed|deadlock", which="backward"),
    Fault("sums not waited for", "cluster", "sums.cuh", "sums.await(s);", ";",
          r"race on shared memory|has landed|arrives when", which="backward"),
    Fault("sums sent into the buffer being read", "cluster", "transport_cluster.cuh", SUMS_BUFFER,
          SUMS_BUFFER.replace("s % 2", "(s + 1) % 2"), r"race on shared memory|has landed", which="backward"),
    Fault("sums of one CTA lost", "cluster", "transport_cluster.cuh", "for (int i = 0; i < kSources",
          "for (int i = 1; i < kSources", WRONG, which="backward"),
    Fault("poll looks at one word of four", "grid", "transport_grid.cuh",
          "std::max(std::max(v[i].w[0], v[i].w[1]), std::max(v[i].w[2], v[i].w[3]))", "v[i].w[0]", WRONG),
    Fault("poll does not wait", "grid", "transport_grid.cuh", "while (!look())", "while (look(), false)", WRONG),
    Fault("poll through the read-only cache", "grid", "transport_grid.cuh", "v[i] = load_relaxed128(",
          "v[i] = load_constant128(", r"load_constant|race on exchange"),
    Fault("plain store published", "grid", "transport_grid.cuh", RELAXED_STORE,
          RELAXED_STORE.replace("store_relaxed128(", "*reinterpret_cast<Vec4*>(").replace(", v);", ") = v;"),
          r"race on exchange"),
    Fault("one position's memory used again", "grid", "transport_grid.cuh", "published += stride;", "",
          rf"livelock|{WRONG}"),
    Fault("not cooperative", "grid", "transport_grid.cuh", "config.cooperative = true;", "",
          r"livelock, only polling threads run"),
    Fault("exchange memory not prepared", "grid", "transport_grid.cuh",
          "cudaMemsetAsync(memory, 0xFF, exchange_bytes(plan, rows), stream)", "cudaSuccess",
          r"read of exchange\+\d+, which nothing has written", which="backward"),
    Fault("sums of one warp lost", "cluster", "sums.cuh", "for (int k_split = 0; k_split < kShape.k_splits",
          "for (int k_split = 1; k_split < kShape.k_splits", WRONG),
]  # fmt: skip


@functools.cache
def layer():
    """Tails in B and H, more than one tile, several CTAs a tile."""
    return Layer(T=5, B=11, H=40, dtype=torch.bfloat16)


@functools.cache
def expected():
    return layer().reference()


@functools.cache
def forward_results():
    return Emulated(emulator.module(), layer(), "local").forward()


def changed_module(folder, transport, which, file=None, old="", new=""):
    """The emulated module with one shape of the bfloat16 kernels, after a change to their text."""
    csrc = folder / "csrc"
    shutil.copytree(build.CSRC, csrc)
    shapes = csrc / "cuda/host/kernel_shapes.h"
    text = shapes.read_text()
    assert text.count(ANY_SHAPE) == 1
    only = (
        f"  if (!(shape == KernelShape{{CellKind::kLstm, Transport::{SHAPES[transport, which]}, 0}})) return false;\n"
    )
    shapes.write_text(text.replace(ANY_SHAPE, ANY_SHAPE + only))
    if file:
        target = csrc / "cuda/device" / file
        text = target.read_text()
        assert text.count(old) == 1, f"{file}: expected the text once, got {text.count(old)} times:\n{old}"
        target.write_text(text.replace(old, new))
    return build.load(build.build({"recurrence_bfloat16.cu": csrc}))


def verdict(module, transport, which, seed):
    """What a test with this schedule would say: None, the error, or WRONG."""
    run = Emulated(module, layer(), transport)
    try:
        with emulator.options(module, seed=seed):
            results = run.forward() if which == "forward" else run.backward(forward_results())
    except module.EmulationError as error:
        return str(error)
    right = all(
        torch.allclose(value.double().flatten(), expected()[name].flatten(), rtol=2**-6, atol=2**-5)
        for name, value in results.items()
    )
    return None if right else WRONG


@pytest.mark.parametrize(("transport", "which"), SHAPES)
def test_control(transport, which, tmp_path):
    module = changed_module(tmp_path, transport, which)
    assert [verdict(module, transport, which, seed) for seed in SEEDS] == [None] * len(SEEDS)


# What one CTA of a tile never does.
PUBLISHES = "if (this->exists(e) && threadIdx.x % 32 < Layout::kVectors)"
SENDS = "if (this->exists(e) && peer(i) < tile.ctas)"
SENDS_SUMS = "if (r * 8 >= units) continue;"
SILENT = [
    ("grid", "forward", "GridTransport", PUBLISHES, PUBLISHES.replace("if (", "if (blockIdx.x != 1 && ")),
    ("grid", "backward", "GridTransport", PUBLISHES, PUBLISHES.replace("if (", "if (blockIdx.x != 1 && ")),
    ("cluster", "forward", "OperandsInCluster", SENDS, SENDS.replace("if (", "if (blockIdx.x != 1 && ")),
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


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.transport}-{f.which}-{f.name.replace(' ', '_')}")
def test_fault_is_noticed(fault, tmp_path):
    module = changed_module(tmp_path, fault.transport, fault.which, fault.file, fault.old, fault.new)
    verdicts = [verdict(module, fault.transport, fault.which, seed) for seed in SEEDS]
    noticed = [v for v in verdicts if v]
    assert noticed, f"{fault.name}: the kernels ran as if nothing were wrong, under all {len(SEEDS)} schedules"
    for message in noticed:
        assert re.search(fault.reported, message), f"{fault.name}: expected {fault.reported!r}, got {message!r}"
