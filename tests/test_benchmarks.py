"""The benchmark suite says what is true: errors are found before timing, and times are taken fairly."""

import math
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark_jobs import BASELINE, BRIEF, CPU, FUSED, SMALL, job, wrong_layer
from pairwise import pairwise
from torch import nn

from benchmarks import contenders, memory, profiles, suite, timing
from benchmarks.accuracy import Reference
from benchmarks.cases import BENCHMARK, Case
from benchmarks.contenders import CONTENDERS, Contender, fused_name, peers_of
from benchmarks.machine import import_seconds, usable_cpus
from benchmarks.neighbours import busy_neighbours
from benchmarks.results import key
from benchmarks.rows import FAILED, OK, PEER_FAILED, PEER_WRONG, SKIPPED, WRONG
from benchmarks.suite import run_jobs
from benchmarks.table import losses, summary
from benchmarks.workload import MODES, Model, Workload, precision_switches
from fusedlstm import FusedGRUCell, FusedLSTMCell
from fusedlstm.cells import CELLS, GRU, LSTM

# Said by PyTorch whenever oneDNN is switched off for a peer, on machines without Intel GPUs.
ignored = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
pytestmark = [ignored, pytest.mark.usefixtures("one_thread", "cheap_ceilings")]

ROOT = Path(__file__).resolve().parent.parent
PACKED = Case("packed", 6, 3, 4, 5, bidirectional=True, variable="packed")
LENGTHS = Case("lengths", 6, 3, 4, 5, num_layers=2, bidirectional=True, variable="lengths")
RESETS = Case("resets", 40, 3, 4, 5, resets=True)
PROJECTION = Case("projection", 6, 3, 4, 5, proj_size=2)
DROPOUT = Case("dropout", 6, 3, 4, 5, num_layers=2, dropout=0.5)
BY_STEP = Case("by-step", 6, 3, 4, 5, by_step=True)
CASES = [SMALL, PACKED, LENGTHS, RESETS, PROJECTION, DROPOUT, BY_STEP]


@pairwise(
    lambda cell, case, *_: profiles.Selection(CPU, cell=cell).has(case),
    cell=CELLS, case=CASES, mode=MODES, precision=["float32", "bfloat16", "float16", "float64"],
)  # fmt: skip
def test_both_sides_are_right(cell, case, mode, precision):
    if cell == "rnn_relu":  # where a single slope of a few would be much
        case = replace(case, B=32, hidden_size=32)
    workload = Workload.of(case, mode, precision, CPU, CELLS[cell]).without_dropout()
    reference = Reference(workload)
    plain, native, loop, *_ = peers_of(workload.cell)
    for name in (fused_name(workload.cell), plain, native, loop):
        contender = CONTENDERS[cell][name]
        if contender.why_not(workload) is None:
            assert reference.error_of(contender.build(workload)) <= reference.limit, name


@pytest.mark.parametrize(
    "change",
    [
        lambda output, h_n, c_n: (output * 1.01, h_n, c_n),
        lambda output, h_n, c_n: (output.roll(1, 0), h_n, c_n),
        lambda output, h_n, c_n: (output, h_n, c_n.flip(0)),
        lambda output, h_n, c_n: (output, h_n * math.nan, c_n),
        lambda output, h_n, c_n: (output[:-1], h_n, c_n),
    ],
    ids=["scaled", "shifted", "wrong-layer", "nan", "short"],
)
def test_a_wrong_result_is_never_timed(monkeypatch, change):
    monkeypatch.setitem(CONTENDERS["lstm"], FUSED, wrong_layer(change))
    (row,) = run_jobs([job()], BRIEF)
    assert row.status == WRONG
    assert row.fused_us is row.peer_us is row.ratio is None
    assert row.fused_error > row.error_limit


@pytest.mark.parametrize("cell", CELLS)
def test_a_wrong_gradient_is_never_timed(monkeypatch, cell):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    broken = wrong_layer(lambda output, *last: (Doubled.apply(output), *last))
    monkeypatch.setitem(CONTENDERS[cell], fused_name(CELLS[cell]), broken)
    row, *training = run_jobs([job(mode=mode, cell=cell) for mode in ("inference", "train", "second-order")], BRIEF)
    assert [row.status, *(other.status for other in training)] == [OK, WRONG, WRONG]
    assert all(other.fused_us is None for other in training)


def test_a_wrong_peer_leaves_our_own_time(monkeypatch):
    broken = replace(wrong_layer(lambda output, h_n, c_n: (-output, h_n, c_n)), name=BASELINE)
    monkeypatch.setitem(CONTENDERS["lstm"], BASELINE, broken)
    (row,) = run_jobs([job()], BRIEF)
    assert row.status == PEER_WRONG
    assert row.fused_us > 0
    assert row.ratio is row.peer_us is None


def test_a_peer_that_raises_is_reported(monkeypatch):
    def build(workload):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(CONTENDERS["lstm"], BASELINE, Contender(BASELINE, build))
    (row,) = run_jobs([job()], BRIEF)
    assert row.status == PEER_FAILED
    assert row.fused_us > 0
    assert "no such kernel" in row.note


@pytest.mark.parametrize("name, status", [(BASELINE, PEER_FAILED), (FUSED, FAILED)])
def test_a_failure_while_timing_is_reported(monkeypatch, name, status):
    def build(workload):
        model, calls = contenders.build_torch(workload), []

        def forward(batch):
            calls.append(batch)
            if len(calls) > 1:  # the first call is compared with float64
                raise RuntimeError("no such kernel")
            return model.forward(batch)

        return Model(forward, model.leaves)

    monkeypatch.setitem(CONTENDERS["lstm"], name, Contender(name, build))
    row, other = run_jobs([job(), job(mode="train")], BRIEF)
    assert row.status == other.status == status
    assert row.note == f"{name}: RuntimeError: no such kernel"
    assert row.ratio is row.peer_us is None
    assert (row.fused_us is None) == (name == FUSED)


def test_a_failing_reference_is_reported(monkeypatch):
    def reference(workload):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(suite, "Reference", reference)
    rows = run_jobs([job(peers=(BASELINE, "LSTMCell loop"))], BRIEF)
    assert [row.status for row in rows] == [FAILED, FAILED]
    assert "out of memory" in rows[0].note


def test_every_peer_gives_a_row():
    rows = run_jobs([job(PROJECTION, peers=peers_of(LSTM))], BRIEF)
    assert [row.peer for row in rows] == list(peers_of(LSTM))
    skipped = {row.peer: row.note for row in rows if row.status == SKIPPED}
    assert {"haste", "FlashRNN", "LSTMCell loop"} <= skipped.keys()
    assert all(skipped.values()), "skipped without a reason"


@pytest.mark.parametrize("cell", [name for name in CELLS if name != "lstm"])
def test_peers_of_the_lstm_alone_say_so(cell):
    rows = run_jobs([job(peers=("haste", "FlashRNN"), cell=cell)], BRIEF)
    assert [(row.status, row.note) for row in rows] == [(SKIPPED, "not available: LSTM only")] * 2


def test_a_gru_is_compared_with_a_gru():
    (row,) = run_jobs([job(cell="gru")], BRIEF)
    assert (row.cell, row.peer, row.status) == ("gru", "nn.GRU", OK)
    (other,) = run_jobs([job()], BRIEF)
    assert key(replace(row, peer=other.peer)) != key(other)


@pytest.mark.parametrize("cell, gates", [("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)])
@pytest.mark.parametrize("mode", MODES)
def test_row_is_consistent(mode, cell, gates):
    (row,) = run_jobs([job(mode=mode, cell=cell)], BRIEF)
    assert row.status == OK
    assert row.fused_us_low <= row.fused_us <= row.fused_us_high
    assert row.ratio_low <= row.ratio <= row.ratio_high
    seconds, T = row.fused_us * 1e-6, row.T
    per_row = 2 * gates * 5 * (4 + 5) * 2 + 2 * gates * 5 * (10 + 5) * 2
    flops = per_row * T * row.B * {"train": 3, "second-order": 6}.get(mode, 1)
    assert (1 if mode == "decode" else 6) == T
    assert row.fused_gflops == pytest.approx(flops / seconds * 1e-9)
    assert row.percent_of_mm == pytest.approx(100 * flops / seconds / 1e11)
    assert row.percent_of_floor == pytest.approx(100 * row.floor_us / row.fused_us)
    assert (row.fused_peak_mib is not None) == (mode in ("train-forward", "train", "second-order"))


def test_a_wrong_derivative_of_second_order_is_never_timed(monkeypatch):
    """Its first derivative is right."""

    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return (gradient + gradient.detach()) / 2

    def build(workload):
        model = contenders.build_torch(workload)
        return Model(lambda batch: model.forward(replace(batch, input=Halved.apply(batch.input))), model.leaves)

    monkeypatch.setitem(CONTENDERS["lstm"], FUSED, Contender(FUSED, build))
    training, second_order = run_jobs([job(mode="train"), job(mode="second-order")], BRIEF)
    assert (training.status, second_order.status) == (OK, WRONG)


@pytest.mark.parametrize("cell, classes", [("lstm", (nn.LSTMCell, FusedLSTMCell)), ("gru", (nn.GRUCell, FusedGRUCell))])
def test_a_cell_is_compared_with_a_cell(monkeypatch, cell, classes):
    called = []
    for cell_class in classes:
        forward = cell_class.forward

        def recorded(self, *arguments, forward=forward):
            called.append(type(self))
            return forward(self, *arguments)

        monkeypatch.setattr(cell_class, "forward", recorded)
    (row,) = run_jobs([job(BY_STEP, cell=cell)], BRIEF)
    assert (row.status, row.feature) == (OK, "cell")
    assert all(called.count(cell_class) >= BY_STEP.T for cell_class in classes)


def test_flops_count_only_valid_steps():
    workload = Workload.of(LENGTHS, "inference", "float32", CPU)
    full = Workload.of(replace(LENGTHS, variable=""), "inference", "float32", CPU)
    fraction = workload.batches[0].lengths.sum().item() / (LENGTHS.T * LENGTHS.B)
    assert workload.flops() == pytest.approx(full.flops() * fraction)
    assert fraction < 1


def test_callers_call_at_the_same_time():
    """Each waits inside the program until all are there: one after the other, they would wait in vain."""
    together = threading.Barrier(3)
    callers, others = set(), []

    def program(call):
        together.wait(timeout=20)
        callers.add(threading.get_ident())

    def failing(call):
        raise RuntimeError("no such kernel")

    budget = timing.Budget(seconds=0, min_rounds=2)
    with timing._watch(CPU, 3) as watch:
        assert watch.seconds(program, 6) > 0
        assert watch.seconds(program, 3) > 0
        assert len(callers) == 3 and threading.get_ident() not in callers
    with pytest.raises(RuntimeError, match="no such kernel"):
        timing.interleave({"a": failing, "b": others.append}, CPU, budget, callers=2)
    samples = timing.interleave({"a": others.append, "b": others.append}, CPU, budget, callers=2)
    assert [len(values) for values in samples.values()] == [2, 2]


def test_the_calls_of_all_callers_are_counted(monkeypatch):
    """A clock that calls alone move: so many in all, whoever makes them, and time over their number."""
    calls = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 3.0 * len(calls))
    with timing._watch(CPU, 4) as watch:
        assert watch.seconds(calls.append, 12) == 3.0
    assert sorted(calls) == list(range(12))


def test_neighbours_are_busy_and_end():
    def ticks(pid):
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))

    with busy_neighbours(2) as processes:
        before = [ticks(process.pid) for process in processes]
        deadline = time.monotonic() + 60
        while any(ticks(process.pid) <= start for process, start in zip(processes, before)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert all(process.poll() is not None for process in processes)


def test_the_time_of_an_import_is_that_of_the_module_in_use(tmp_path, monkeypatch):
    """It may be installed elsewhere than in the source tree."""
    for name in ("fusedlstm_elsewhere.py", "torch.py"):  # a stand-in, since PyTorch takes seconds
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert import_seconds("fusedlstm_elsewhere") > 0


def test_a_neighbour_ends_with_the_process_that_started_it():
    program = "import os\nfrom benchmarks.neighbours import busy_neighbours\n"
    program += "with busy_neighbours(1) as (process,):\n    print(process.pid, flush=True)\n    os._exit(0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    stat, deadline = Path(f"/proc/{int(done.stdout)}/stat"), time.monotonic() + 60
    with suppress(FileNotFoundError):
        while stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("crowd", [{"callers": 2}, {"neighbours": 1}, {"threads": 3}])
def test_crowds_are_rows_of_their_own(crowd):
    threads = torch.get_num_threads()
    plain, crowded = run_jobs([job(), replace(job(), **crowd)], BRIEF)
    assert plain.status == crowded.status == OK
    assert {name: getattr(crowded, name) for name in crowd} == crowd
    assert key(plain) != key(crowded)
    assert crowded.ratio > 0
    assert len(summary([plain, crowded])) == 2
    assert torch.get_num_threads() == threads


def test_what_is_below_the_mark_is_named():
    (row,) = run_jobs([job()], BRIEF)
    rows = [replace(row, ratio=ratio) for ratio in (0.9, 1.0, 0.5)] + [replace(row, status=PEER_FAILED, ratio=None)]
    text = "nn.LSTM: small, inference, float32, 1 threads"
    assert losses(rows) == [f"0.50x {text}", f"0.90x {text}"]


def test_peak_memory_counts_the_largest_moment():
    def program(call):
        first = torch.empty(1 << 20, dtype=torch.uint8)
        second = torch.empty(2 << 20, dtype=torch.uint8)
        del first, second
        return torch.empty(1 << 20, dtype=torch.uint8)

    assert memory.peak_mib(program, CPU) == pytest.approx(3, abs=0.01)


def test_precision_switches_are_put_back():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with precision_switches("tf32"):
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_enough_cases_with_different_names():
    names = [case.name for case in BENCHMARK + profiles.SCALING]
    assert len(BENCHMARK) >= 60
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("profile", ["quick", "main", "full"])
def test_profiles_choose_jobs_once(profile):
    jobs, _ = profiles.PROFILES[profile](profiles.Selection(CPU))
    assert len(set(jobs)) == len(jobs) > 0
    assert {job.mode for job in jobs if job.case.by_step} == {"inference", "train", "second-order"}
    assert {job.callers for job in jobs} == {1, 8}
    assert {job.neighbours for job in jobs} == {0, 1}
    assert max(job.threads for job in jobs) > usable_cpus()
    only_one = profiles.Selection(CPU, modes=("train",), threads=(1,))
    assert {(job.mode, job.threads) for job in profiles.PROFILES["quick"](only_one)[0]} == {("train", 1)}


@pytest.mark.parametrize("profile", ["quick", "main", "full"])
def test_profiles_of_another_cell(profile):
    """The same jobs, but for projections, against the cell's own peers."""
    of_lstm, of_gru = (profiles.PROFILES[profile](profiles.Selection(CPU, cell=cell))[0] for cell in ("lstm", "gru"))
    assert {job.cell for job in of_gru} == {"gru"}
    assert [job.case for job in of_gru] == [job.case for job in of_lstm if not job.case.proj_size]
    assert {name for job in of_gru for name in job.peers} <= set(peers_of(GRU))


def test_a_case_that_the_cell_lacks_is_refused():
    with pytest.raises(ValueError, match=r"got 'projection-\*', which is none of gru; see --list"):
        profiles.custom(profiles.Selection(CPU, cases=("projection-*",), cell="gru"))


def test_unknown_case_is_refused():
    with pytest.raises(ValueError, match="expected a case name or pattern, got 'nonsense'"):
        profiles.custom(profiles.Selection(CPU, cases=("nonsense",)))


def test_what_ran_on_a_gpu_is_named(monkeypatch):
    """And not what the planner would choose: cuDNN may have run the call."""
    gpu = torch.device("cuda")
    inference, training = (Workload(SMALL, mode, "bfloat16", gpu) for mode in ("inference", "train"))
    kernels = "\n".join(f"{which}: lstm grid bfloat16, 64 CTAs" for which in ("forward", "backward"))
    monkeypatch.setattr("fusedlstm.last_plan", lambda device: kernels)
    assert suite._what_ran(inference) == "forward: lstm grid bfloat16"
    assert suite._what_ran(training) == "forward: lstm grid bfloat16, backward: lstm grid bfloat16"
    monkeypatch.setattr("fusedlstm.last_plan", lambda device: "cuDNN (measured)")
    assert suite._what_ran(training) == suite._what_ran(inference) == "cuDNN (measured)"
