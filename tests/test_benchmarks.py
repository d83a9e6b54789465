"""The benchmark suite says what is true: errors are found before timing, files can be read back."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import __main__ as command
from benchmarks import compare, contenders, memory, plots, profiles, report, suite, timing
from benchmarks.accuracy import Reference
from benchmarks.contenders import BASELINE, CONTENDERS, FUSED, PEERS, Contender
from benchmarks.machine import Ceilings
from benchmarks.results import Results, geometric_mean
from benchmarks.suite import FAILED, OK, PEER_FAILED, PEER_WRONG, SKIPPED, WRONG, Job, Row, run_jobs
from benchmarks.workload import MODES, Model, Workload, precision_switches
from tests.cases import BENCHMARK, Case

# Said by PyTorch whenever oneDNN is switched off for a peer, on machines without Intel GPUs.
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")

CPU = torch.device("cpu")
SMALL = Case("small", 6, 3, 4, 5, num_layers=2, bidirectional=True)
PACKED = Case("packed", 6, 3, 4, 5, bidirectional=True, variable="packed")
LENGTHS = Case("lengths", 6, 3, 4, 5, num_layers=2, bidirectional=True, variable="lengths")
RESETS = Case("resets", 40, 3, 4, 5, resets=True)
PROJECTION = Case("projection", 6, 3, 4, 5, proj_size=2)
DROPOUT = Case("dropout", 6, 3, 4, 5, num_layers=2, dropout=0.5)
BRIEF = timing.Budget(seconds=0.01, min_rounds=3, max_rounds=3)


@pytest.fixture(autouse=True)
def _one_thread():
    # Threads of nn.LSTM wait actively: with other tests beside these, two take longer than one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _cheap_ceilings(monkeypatch):
    """Measuring what the machine can do takes a second for each dtype, and is not under test."""
    fixed = Ceilings(mm_flops=1e11, peak_flops=2e11, bandwidth=1e10)
    monkeypatch.setattr("benchmarks.machine.ceilings", lambda *arguments: fixed)


def job(case=SMALL, mode="inference", precision="float32", peers=(BASELINE,)) -> Job:
    return Job(case, mode, precision, CPU, torch.get_num_threads(), peers)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", [SMALL, PACKED, LENGTHS, RESETS, PROJECTION, DROPOUT], ids=lambda case: case.name)
def test_both_sides_are_right(case, mode, precision):
    workload = Workload.of(case, mode, precision, CPU).without_dropout()
    reference = Reference(workload)
    for name in (FUSED, BASELINE, "nn.LSTM native", "LSTMCell loop"):
        contender = CONTENDERS[name]
        if contender.why_not(workload) is None:
            assert reference.error_of(contender.build(workload)) <= reference.limit, name


def _broken(change):
    """nn.LSTM with its results changed."""

    def build(workload: Workload) -> Model:
        model = contenders.build_torch(workload)
        return Model(lambda batch: change(*model.forward(batch)), model.leaves)

    return Contender(FUSED, build)


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
    monkeypatch.setitem(CONTENDERS, FUSED, _broken(change))
    (row,) = run_jobs([job()], BRIEF)
    assert row.status == WRONG
    assert row.fused_us is row.peer_us is row.ratio is None
    assert row.fused_error > row.error_limit


def test_a_wrong_gradient_is_never_timed(monkeypatch):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    broken = _broken(lambda output, h_n, c_n: (Doubled.apply(output), h_n, c_n))
    monkeypatch.setitem(CONTENDERS, FUSED, broken)
    row, training = run_jobs([job(), job(mode="train")], BRIEF)
    assert (row.status, training.status) == (OK, WRONG)
    assert training.fused_us is None


def test_a_wrong_peer_leaves_our_own_time(monkeypatch):
    broken = replace(_broken(lambda output, h_n, c_n: (-output, h_n, c_n)), name=BASELINE)
    monkeypatch.setitem(CONTENDERS, BASELINE, broken)
    (row,) = run_jobs([job()], BRIEF)
    assert row.status == PEER_WRONG
    assert row.fused_us > 0
    assert row.ratio is row.peer_us is None


def test_a_peer_that_raises_is_reported(monkeypatch):
    def build(workload):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(CONTENDERS, BASELINE, Contender(BASELINE, build))
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

    monkeypatch.setitem(CONTENDERS, name, Contender(name, build))
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
    rows = run_jobs([job(PROJECTION, peers=PEERS)], BRIEF)
    assert [row.peer for row in rows] == list(PEERS)
    skipped = {row.peer: row.note for row in rows if row.status == SKIPPED}
    assert {"haste", "FlashRNN", "LSTMCell loop"} <= skipped.keys()
    assert all(skipped.values()), "skipped without a reason"


@pytest.mark.parametrize("mode", MODES)
def test_row_is_consistent(mode):
    (row,) = run_jobs([job(mode=mode)], BRIEF)
    assert row.status == OK
    assert row.fused_us_low <= row.fused_us <= row.fused_us_high
    assert row.ratio_low <= row.ratio <= row.ratio_high
    seconds, T = row.fused_us * 1e-6, row.T
    per_row = 2 * 4 * 5 * (4 + 5) * 2 + 2 * 4 * 5 * (10 + 5) * 2
    flops = per_row * T * row.B * (3 if mode == "train" else 1)
    assert (1 if mode == "decode" else 6) == T
    assert row.fused_gflops == pytest.approx(flops / seconds * 1e-9)
    assert row.percent_of_mm == pytest.approx(100 * flops / seconds / 1e11)
    assert row.percent_of_floor == pytest.approx(100 * row.floor_us / row.fused_us)
    assert (row.fused_peak_mib is not None) == mode.startswith("train")


def test_flops_count_only_valid_steps():
    workload = Workload.of(LENGTHS, "inference", "float32", CPU)
    full = Workload.of(replace(LENGTHS, variable=""), "inference", "float32", CPU)
    fraction = workload.batches[0].lengths.sum().item() / (LENGTHS.T * LENGTHS.B)
    assert workload.flops() == pytest.approx(full.flops() * fraction)
    assert fraction < 1


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
    only_one = profiles.Selection(CPU, modes=("train",), threads=(1,))
    assert {(job.mode, job.threads) for job in profiles.PROFILES["quick"](only_one)[0]} == {("train", 1)}


def test_unknown_case_is_refused():
    with pytest.raises(ValueError, match="expected a case name or pattern, got 'nonsense'"):
        profiles.custom(profiles.Selection(CPU, cases=("nonsense",)))


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0, 4.0]) == pytest.approx(4 ** (1 / 3))


def _row(**changes) -> Row:
    (row,) = run_jobs([job()], BRIEF)
    return replace(row, **changes)


def test_results_can_be_read_back(tmp_path):
    results = Results({"device": "a machine"}, [_row(), _row(status=WRONG, fused_us=None)])
    results.measures["call, us"] = {FUSED: 1.5, "list": [1, 2]}
    path = report.write(results, tmp_path / "run")
    again = Results.read(tmp_path / "run.csv")
    assert again == results
    lines = (tmp_path / "run.csv").read_text().splitlines()
    header = [line for line in lines if line.startswith("# ")]
    assert header == ["# device: a machine", "# call, us FusedLSTM: 1.5"]
    table = list(csv.DictReader(lines[len(header) :]))
    assert [line["status"] for line in table] == [OK, WRONG]
    text = path.read_text()
    assert text.count("| small |") == 2, "a row is missing from the report"
    assert "run-cases.png" in text
    assert (tmp_path / "run-cases.png").stat().st_size > 1000


def test_a_dot_in_the_name_of_a_run_is_kept(tmp_path, capsys):
    """run.1 is not written over run."""
    row = _row()
    report.write(Results({"device": "one"}, [row]), tmp_path / "run")
    report.write(Results({"device": "other"}, [row]), tmp_path / "run.1")
    report.main([str(tmp_path / "run.1.json")])
    assert capsys.readouterr().out == f"{tmp_path / 'run.1.md'}\n"
    for name, device in (("run", "one"), ("run.1", "other")):
        assert Results.read(tmp_path / f"{name}.csv").machine == {"device": device}
        assert f"# FusedLSTM on {device}\n" in (tmp_path / f"{name}.md").read_text()


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"rows": [1]}', '{"rows": [{"new": 1}]}'])
def test_files_of_another_kind_are_refused(tmp_path, capsys, content):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    for program, arguments in ((report, [str(path)]), (compare, [str(path), str(path)])):
        with pytest.raises(SystemExit):
            program.main(arguments)
        assert f"expected the .json or .csv of a benchmark run, got {path}" in capsys.readouterr().err


def test_figures_of_grid_and_scaling(tmp_path):
    grid = [_row(case=f"grid-{H}-{B}", H=H, B=B) for H in (64, 128) for B in (1, 16)]
    growth = [_row(case=f"scaling-T-{T}", T=T) for T in (1, 10)]
    drawn = plots.draw_all(Results({"device": "a machine"}, grid + growth), tmp_path, "run")
    assert {path.name for path in drawn.values()} == {
        "run-cases.png",
        "run-scaling.png",
        "run-time-per-step-inference.png",
        "run-heat-map-inference.png",
    }
    assert all(path.stat().st_size > 1000 for path in drawn.values())


def test_compare_finds_what_moved(tmp_path, capsys):
    steady = dict(ratio=2.0, ratio_low=1.9, ratio_high=2.1)
    before = Results({"commit": "old"}, [_row(case="a", **steady), _row(case="b", **steady)])
    slower = dict(ratio=1.5, ratio_low=1.4, ratio_high=1.6)
    within = dict(ratio=1.95, ratio_low=1.85, ratio_high=2.05)
    after = Results({"commit": "new"}, [_row(case="a", **within), _row(case="b", **slower)])
    moved = [pair for pair in compare.changes(before, after) if pair.beyond_spread]
    assert [pair.after.case for pair in moved] == ["b"]
    assert moved[0].factor == pytest.approx(0.75)
    before.write(tmp_path / "before")
    after.write(tmp_path / "after")
    compare.main([str(tmp_path / "before.json"), str(tmp_path / "after.json")])
    printed = capsys.readouterr().out
    assert "commit: old -> new" in printed
    assert "2 measurements in both, 1 moved" in printed


def test_compare_tells_of_a_result_that_became_wrong(tmp_path, capsys):
    right = _row()
    wrong = replace(right, status=WRONG, note="error [/x] 1", fused_us=None, ratio=None)
    Results({}, [right]).write(tmp_path / "before")
    Results({}, [wrong]).write(tmp_path / "after")
    compare.main([str(tmp_path / "before.json"), str(tmp_path / "after.json")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "ok -> wrong error [/x] 1" in printed
    assert "No measurement was timed in both files." in printed


def test_compare_keeps_its_columns_in_a_narrow_window(tmp_path, capsys):
    case = "a-case-with-a-name-as-long-as-they-are"
    Results({}, [_row(case=case)]).write(tmp_path / "run")
    compare.main(["--all", *[str(tmp_path / "run.json")] * 2])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if case in line)
    assert "1.00x" in line


def test_command_writes_everything(tmp_path, capsys):
    options = ["--cases", "decode-32", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(options) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert {"custom.csv", "custom.json", "custom.md", "custom-cases.png"} <= written
    rows = Results.read(tmp_path / "custom.json").rows
    assert [(row.mode, row.status) for row in rows] == [("inference", OK), ("train", OK)]
    assert "decode-32" in capsys.readouterr().out


def test_a_stopped_run_keeps_its_rows(tmp_path, monkeypatch):
    def stopped(jobs, budget, on_row):
        suite.run_jobs(jobs[:1], budget, on_row)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_jobs", stopped)
    options = ["--cases", "decode-32", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(options) == 0
    results = Results.read(tmp_path / "custom.json")
    assert len(results.rows) == 1
    assert results.machine["stopped"] == "after 1 of 2 measurements"


def _small_run(monkeypatch, tmp_path, **replaced) -> tuple[int, Results]:
    """Exit status and file of a main run of one case, without what takes seconds."""
    from benchmarks import measures

    quick = {
        "digit_rows": lambda device, epochs: {
            "losses": [(1.0, 1.0)] * epochs,
            "largest loss difference": 0.0,
            "test accuracy": {FUSED: 1.0, BASELINE: 1.0},
            "training seconds": {FUSED: 1.0, BASELINE: 1.0},
        },
        "start_up_seconds": lambda: 0.5,
        "call_overhead_us": lambda device, budget: {FUSED: 1.0},
        "memory_growth_mib": lambda device: {"T=1": {FUSED: 1.0}},
    }
    for name, measure in (quick | replaced).items():
        monkeypatch.setattr(measures, name, measure)
    monkeypatch.setitem(profiles.PROFILES, "main", lambda selection: ([job()], BRIEF))
    status = command.main(["--device", "cpu", "--out", str(tmp_path)])
    return status, Results.read(tmp_path / "main.json")


def _raising(failure: BaseException):
    def measure(*arguments):
        raise failure

    return measure


def test_a_run_stopped_at_its_last_stage_is_written(tmp_path, monkeypatch):
    status, results = _small_run(monkeypatch, tmp_path, memory_growth_mib=_raising(KeyboardInterrupt()))
    assert status == 0
    assert len(results.rows) == 1
    assert results.machine["stopped"] == "after 1 of 1 measurements"
    assert results.measures["import after torch, seconds"] == 0.5


def test_a_run_stopped_before_it_measured_leaves_the_last_one(tmp_path, monkeypatch):
    _, before = _small_run(monkeypatch, tmp_path)
    status, after = _small_run(monkeypatch, tmp_path, digit_rows=_raising(KeyboardInterrupt()))
    assert status == 0
    assert after == before


@pytest.mark.parametrize("stage", ["digit_rows", "start_up_seconds", "memory_growth_mib"])
def test_a_failing_stage_leaves_the_others(tmp_path, monkeypatch, capsys, stage):
    status, results = _small_run(monkeypatch, tmp_path, **{stage: _raising(RuntimeError("cannot open [/opt/x] file"))})
    assert status == 1
    assert len(results.rows) == 1
    assert len(results.measures) == 5
    assert list(results.measures.values()).count("failed: RuntimeError: cannot open [/opt/x] file") == 1
    assert "[/opt/x]" in capsys.readouterr().out


@pytest.mark.parametrize("name", [FUSED, BASELINE])
def test_the_text_of_a_failure_is_no_markup(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(CONTENDERS, name, Contender(name, _raising(RuntimeError("cannot open [/opt/x] file"))))
    _, results = _small_run(monkeypatch, tmp_path)
    assert results.rows[0].note == f"{name}: RuntimeError: cannot open [/opt/x] file"
    assert "[/opt/x]" in capsys.readouterr().out


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_folder_that_cannot_be_is_refused_before_measuring(tmp_path, monkeypatch, capsys, below):
    monkeypatch.setattr(command, "run_jobs", _raising(AssertionError("measured")))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command.main(["--cases", "decode-32", "--device", "cpu", "--out", str(tmp_path / "file" / below)])
    assert "argument --out: expected a folder to write to" in capsys.readouterr().err


def test_command_fails_when_a_result_is_wrong(tmp_path, monkeypatch):
    broken = _broken(lambda output, h_n, c_n: (output + 1, h_n, c_n))
    monkeypatch.setitem(CONTENDERS, FUSED, broken)
    options = ["--cases", "decode-32", "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(options) == 1


@pytest.mark.parametrize("option", ["--mode", "--dtype", "--peers"])
def test_command_names_what_it_expected(option, capsys):
    with pytest.raises(SystemExit):
        command.main([option, "nonsense"])
    assert "got 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--threads", "0"], "argument --threads: expected positive numbers like 1,2, got '0'"),
        (["--threads", "1,a"], "argument --threads: expected positive numbers like 1,2, got 'a'"),
        (["--device", "foo"], "argument --device: expected cpu or one of"),
        (["--device", "meta"], "argument --device: expected cpu or one of"),
        (["--device", "cuda:64"], "argument --device: expected cpu or one of"),
        (["--device", "cpu", "--cuda-graph"], "argument --cuda-graph: expected --device cuda, got cpu"),
        (["--quick", "--cases", "decode-32"], "argument --cases: not allowed with argument --quick"),
        (["--cases", "nonsense"], "argument --cases: expected a case name or pattern, got 'nonsense'"),
    ],
)
def test_command_refuses_what_it_cannot_measure(options, message, monkeypatch, capsys):
    monkeypatch.setattr(command.machine, "describe", _raising(AssertionError("not refused")))
    with pytest.raises(SystemExit):
        command.main(options)
    assert message in capsys.readouterr().err


def test_what_is_named_twice_is_measured_once():
    arguments = command._parser().parse_args(["--threads", "2,1,2", "--mode", "train,train"])
    assert (arguments.threads, arguments.mode) == ([2, 1], ["train"])


def test_digit_rows_report(monkeypatch):
    """Both sides train from the same weights: nn.LSTM against itself differs in nothing."""
    from benchmarks import measures

    monkeypatch.setattr("fusedlstm.FusedLSTM", nn.LSTM)
    digits = measures.digit_rows(CPU, epochs=1)
    assert digits["largest loss difference"] == 0
    assert digits["test accuracy"][FUSED] == digits["test accuracy"][BASELINE] > 0.3


def test_plan_on_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    gpu = torch.device("cuda")
    inference = Workload(SMALL, "inference", "bfloat16", gpu)
    training = Workload(SMALL, "train", "bfloat16", gpu)
    assert len(suite._plan_used(inference).split(", ")) == 1
    assert len(suite._plan_used(training).split(", ")) == 2
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an unknown GPU")
    assert suite._plan_used(inference) == ""


def test_peers_can_be_named_on_the_command_line():
    assert not [name for name in PEERS if "," in name]
