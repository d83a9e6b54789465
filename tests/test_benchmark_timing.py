"""Times are taken fairly, and end: rounds, pauses, limits, and what other processes do meanwhile."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmark_jobs import BASELINE, BRIEF, CPU, FUSED, SMALL, job, wrong_layer

from benchmarks import load, suite, timing
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.limit import Limit
from benchmarks.machine import usable_cpus
from benchmarks.rows import LEFT_OUT, OK, SKIPPED, WRONG
from benchmarks.suite import run_jobs
from benchmarks.table import left_out, not_timed

# Said by PyTorch whenever oneDNN is switched off for a peer, on machines without Intel GPUs.
ignored = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
pytestmark = [ignored, pytest.mark.usefixtures("one_thread", "cheap_ceilings")]


class Clock:
    """Stands for `time` in the benchmark's modules; only what is said to take time moves it. `working`: how long the
    process goes on computing from now."""

    def __init__(self):
        self.now, self.working, self.computed = 0.0, 0.0, 0.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter

    def process_time(self):
        """As a slow kernel counts what threads use: by the ticks of its timer."""
        return int(100 * self.computed) / 100

    def sleep(self, seconds):
        self.now += seconds
        spun = min(seconds, self.working)
        self.working -= spun
        self.computed += spun

    def program(self, seconds, spins=0.0):
        """Takes that long; a thread of its own spins for some time after it."""

        def run(call):
            self.now += seconds
            self.computed += seconds
            self.working = spins

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_rounds_are_interleaved():
    order = []
    names = ("a", "b", "c")
    programs = {name: lambda call, name=name: order.append(name) for name in names}
    budget = timing.Budget(seconds=0, min_rounds=4)
    samples = timing.interleave(programs, CPU, budget)
    assert all(len(values) == 4 for values in samples.values())
    visits = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    # After the warm-up in order: a b c, c b a, a b c, c b a; equal neighbours merge.
    assert "".join(visits) == "abc" + "abcbabcba"


def test_rounds_beyond_patience_are_not_repeated():
    budget = timing.Budget(seconds=0, min_rounds=4, patience=0)
    samples = timing.interleave({"a": lambda call: None, "b": lambda call: None}, CPU, budget)
    assert [len(values) for values in samples.values()] == [1, 1]


def test_precise_samples_stop_early():
    steady = {"a": [1.0] * 5, "b": [2.0] * 5}
    noisy = {"a": [1.0] * 5, "b": [1.0, 2.0, 3.0, 4.0, 5.0]}
    assert timing._precise(steady, 0.01)
    assert not timing._precise(noisy, 0.01)


def test_ratio_is_taken_inside_a_round():
    """A machine that slows down tenfold half way changes no ratio."""
    drift = np.array([1.0, 1.0, 10.0, 10.0, 10.0])
    summary = timing.ratio({"a": 2 * drift, "b": drift}, "a", "b")
    assert summary == timing.Summary(2.0, 2.0, 2.0)


def test_a_long_run_is_cut_where_its_time_ends(clock):
    """Two warm-up calls each (4 s), then rounds of 2 s: the fourth would end after 11 s."""
    programs = {"a": clock.program(1.0), "b": clock.program(1.0)}
    samples = timing.interleave(programs, CPU, timing.Budget(seconds=0, min_rounds=50, longest=11.0))
    assert [len(values) for values in samples.values()] == [3, 3]
    assert clock.now == pytest.approx(10.0)


def test_a_call_that_takes_a_good_part_of_the_time_is_warmed_up_once(clock):
    called = []
    slow = clock.program(4.0)
    programs = {"a": called.append, "b": lambda call: (called.append(call), slow(call))}
    samples = timing.interleave(programs, CPU, timing.Budget(seconds=0, min_rounds=50, longest=9.0))
    assert [len(values) for values in samples.values()] == [1, 1]
    assert clock.now == pytest.approx(8.0)


def test_a_call_that_takes_all_the_time_is_not_repeated(clock):
    programs = {"a": clock.program(1.0), "b": clock.program(100.0)}
    with pytest.raises(timing.OutOfTime, match=r"a round takes 1e\+02 s, most of it b, 0 s were left"):
        timing.interleave(programs, CPU, timing.Budget(longest=50.0))
    assert clock.now == pytest.approx(102.0)


def test_no_program_begins_while_threads_of_the_last_one_spin(clock, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    disturbed = []

    def begin(run):
        def watched(call):
            disturbed.append(clock.working if call == 0 else 0.0)  # calls of one sample follow one another
            run(call)

        return watched

    programs = {"a": begin(clock.program(0.03, spins=0.055)), "b": begin(clock.program(0.03))}
    timing.interleave(programs, CPU, timing.Budget(seconds=0, min_rounds=4))
    after_warm_up = disturbed[4:]
    assert len(after_warm_up) == 8
    assert after_warm_up == [0.0] * 8


def test_threads_that_never_sleep_are_not_waited_for(clock):
    clock.working = math.inf
    timing._until_pools_sleep()
    assert clock.now == pytest.approx(0.2, abs=0.025)


def test_one_thread_is_not_waited_for(clock, monkeypatch):
    monkeypatch.setattr(clock, "sleep", lambda seconds: pytest.fail("waited"))
    timing.interleave({"a": clock.program(0.1), "b": clock.program(0.1)}, CPU, BRIEF)


def test_jobs_that_no_time_is_left_for_are_named(monkeypatch):
    """The limit ends with the first row; a peer that is absent anyway says that."""
    clock = Clock()
    limit = Limit(minutes=2, clock=clock.perf_counter)

    def on_row(row):
        clock.now = 121.0

    absent = Contender("absent", None, lambda workload: "not installed")
    monkeypatch.setitem(CONTENDERS["lstm"], "absent", absent)
    monkeypatch.setattr(suite, "Reference", _once(suite.Reference))
    second = job(replace(SMALL, name="second"), peers=(BASELINE, "absent"))
    rows = run_jobs([job(peers=(BASELINE, "LSTMCell loop")), second], BRIEF, on_row, limit)
    assert [row.status for row in rows] == [OK, LEFT_OUT, LEFT_OUT, SKIPPED]
    assert {row.note for row in rows if row.status == LEFT_OUT} == {"no time left of 2 minutes"}
    setting = "inference, float32, 1 threads"
    why = "(no time left of 2 minutes)"
    assert left_out(rows) == [f"LSTMCell loop, {setting}: small {why}", f"{BASELINE}, {setting}: second {why}"]
    assert list(not_timed(rows)) == [(SKIPPED, "absent", "not installed")]


def _once(reference):
    """As the class, which must not be asked for a second time."""
    made = []

    def make(workload):
        assert not made, "computed what no time was left for"
        made.append(workload)
        return reference(workload)

    return make


def test_a_row_that_is_too_slow_says_so(monkeypatch):
    def too_slow(*arguments):
        raise timing.OutOfTime("a call of nn.LSTM took 30 s")

    monkeypatch.setattr(suite, "interleave", too_slow)
    (row,) = run_jobs([job()], BRIEF)
    assert (row.status, row.note, row.ratio) == (LEFT_OUT, "a call of nn.LSTM took 30 s", None)


def test_a_wrong_result_is_wrong_without_time_too(monkeypatch):
    monkeypatch.setitem(CONTENDERS["lstm"], FUSED, wrong_layer(lambda output, h_n, c_n: (output + 1, h_n, c_n)))
    (row,) = run_jobs([job()], BRIEF, limit=Limit(minutes=1, clock=iter([0.0, 1.0, 61.0]).__next__))
    assert row.status == WRONG


def test_a_row_takes_a_part_of_the_limit():
    clock = Clock()
    limit = Limit(minutes=10, clock=clock.perf_counter)
    assert limit.of_row(BRIEF).longest == 60
    clock.now = 595.0
    assert limit.of_row(BRIEF).longest == limit.left() == 5
    assert Limit(0).of_row(BRIEF) == BRIEF and Limit(0).left() == math.inf


def test_the_reference_of_a_case_serves_every_number_of_threads(monkeypatch):
    monkeypatch.setattr(suite, "Reference", _once(suite.Reference))
    rows = run_jobs([job(), replace(job(), threads=2)], BRIEF)
    assert [(row.threads, row.status) for row in rows] == [(1, OK), (2, OK)]


@pytest.fixture
def stat(tmp_path, monkeypatch):
    """Writes a /proc/stat of CPUs 0 to 2, of which this process may use the first two, at a second of the clock."""
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(load, "_TICKS", 100)

    def write(second, busy, idle, stolen=0, own=0.0):
        monkeypatch.setattr(load.time, "monotonic", lambda: second)
        monkeypatch.setattr(load.os, "times", lambda: (own, 0.0, 0.0, 0.0, 1e9))
        lines = [f"cpu{n} {ticks} 0 0 {idle} 7 0 0 {stolen} 0 0" for n, ticks in enumerate([*busy, 10 * second])]
        (tmp_path / "stat").write_text("\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 1 2", ""]))
        return tmp_path / "stat"

    return write


def test_work_of_others_is_what_the_cpus_did_beside_ours(stat):
    work = load.OtherWork(stat(0, busy=(100, 100), idle=100, own=1.0))
    stat(2, busy=(250, 300), idle=150, own=2.0)  # 3.5 s of work in 2 s, one of them ours
    assert work.cores() == pytest.approx(1.25)
    stat(3, busy=(250, 300), idle=250, own=2.0)
    assert work.cores() == 0.0
    stat(4, busy=(250, 300), idle=250, stolen=80, own=2.0)  # of another machine on the same processor
    assert work.cores() == pytest.approx(1.6)


def test_a_system_that_does_not_say_is_not_known(tmp_path, stat):
    assert load.OtherWork(tmp_path / "absent").cores() is None
    zeros = stat(0, busy=(0, 0), idle=0)
    zeros.write_text("cpu0 0 0 0 0 0 0 0 0 0 0\n")
    assert load.OtherWork(zeros).cores() is None
    assert "not known" in load.said_before(None)


def test_busy_cores_are_said():
    assert load.said_before(1.26) == f"1.3 of {usable_cpus()} cores were busy with other work when this began"
    assert load.said_meanwhile([0.0, 1.0]) == f"0.5 of {usable_cpus()} cores on average over the rows, at most 1.0"
