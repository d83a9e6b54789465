"""The benchmark's command and files: nothing that was measured is lost, and what was written can be read back."""

import csv
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from benchmark_jobs import BASELINE, BRIEF, CPU, FUSED, job, wrong_layer
from torch import nn

from benchmarks import __main__ as command
from benchmarks import compare, plots, profiles, report, suite
from benchmarks.contenders import CONTENDERS, Contender, peers_of
from benchmarks.machine import usable_cpus
from benchmarks.results import Results, geometric_mean
from benchmarks.rows import LEFT_OUT, OK, WRONG, Row
from benchmarks.suite import run_jobs
from examples import side_by_side
from fusedlstm.cells import CELLS, LSTM

# Said by PyTorch whenever oneDNN is switched off for a peer, on machines without Intel GPUs.
ignored = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
pytestmark = [ignored, pytest.mark.usefixtures("one_thread", "cheap_ceilings")]


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0, 4.0]) == pytest.approx(4 ** (1 / 3))


@pytest.fixture
def briefly(monkeypatch):
    """The command's rows are measured for no longer than others here."""
    monkeypatch.setitem(profiles.PROFILES, "custom", lambda selection: (profiles.custom(selection)[0], BRIEF))


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


def test_files_of_before_there_were_other_cells(tmp_path):
    results = Results({"device": "a machine"}, [_row()])
    results.write(tmp_path / "run")
    content = json.loads((tmp_path / "run.json").read_text())
    del content["cell"], content["rows"][0]["cell"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert Results.read(tmp_path / "run.json") == results


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


@pytest.mark.usefixtures("briefly")
def test_command_writes_everything(tmp_path, capsys):
    options = ["--cases", "decode-32", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(options) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert {"custom.csv", "custom.json", "custom.md", "custom-cases.png"} <= written
    rows = Results.read(tmp_path / "custom.json").rows
    assert [(row.mode, row.status) for row in rows] == [("inference", OK), ("train", OK)]
    assert "decode-32" in capsys.readouterr().out


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("cell, layer", [("gru", "GRU"), ("rnn", "RNN"), ("rnn_relu", "RNN")])
def test_command_names_the_cell(tmp_path, monkeypatch, capsys, cell, layer):
    """In the folder, in every file, on the screen; of the case with a cell in a loop as of the layer."""
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    options = ["--cell", cell, "--cases", "decode-32,cell-h32-b1", "--threads", "1", "--device", "cpu"]
    assert command.main(options) == 0
    name = {"rnn": "rnn_tanh"}.get(cell, cell)
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith(f"-{name}")
    results = Results.read(folder / "custom.json")
    assert results.cell == name
    found = [(row.cell, row.case, row.peer, row.status) for row in results.rows]
    assert found == [(name, case, f"nn.{layer}", OK) for case in ("decode-32", "cell-h32-b1") for _ in range(2)]
    for text in (capsys.readouterr().out, (folder / "custom.md").read_text()):
        assert f"Fused{layer}" in text and f"cell {name}" in text and "LSTM" not in text
    table = csv.DictReader(line for line in (folder / "custom.csv").open() if not line.startswith("#"))
    assert {line["cell"] for line in table} == {name}


def test_the_folder_of_the_lstm_has_the_machine_s_name_alone():
    cpu = torch.device("cpu")
    assert command._folder_name(cpu, "lstm") == command.machine.folder_name(cpu)


@pytest.mark.usefixtures("briefly")
def test_a_stopped_run_keeps_its_rows(tmp_path, monkeypatch):
    def stopped(jobs, budget, on_row, limit):
        suite.run_jobs(jobs[:1], budget, on_row)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_jobs", stopped)
    options = ["--cases", "decode-32", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(options) == 0
    results = Results.read(tmp_path / "custom.json")
    assert len(results.rows) == 1
    assert results.machine["stopped"] == "after 1 of 2 measurements"


def _small_run(monkeypatch, tmp_path, *options, **replaced) -> tuple[int, Results]:
    """Exit status and file of a main run of one case (or as the options say), without what takes seconds."""
    from benchmarks import measures

    quick = {
        "digit_rows": lambda device, cell, epochs, seconds: {
            "losses": [(1.0, 1.0)] * epochs,
            "largest loss difference": 0.0,
            "test accuracy": {FUSED: 1.0, BASELINE: 1.0},
            "training seconds": {FUSED: 1.0, BASELINE: 1.0},
        },
        "start_up_seconds": lambda: 0.5,
        "call_overhead_us": lambda device, cell, budget: {FUSED: 1.0},
        "memory_growth_mib": lambda device, cell: {"T=1": {FUSED: 1.0}},
    }
    for name, measure in (quick | replaced).items():
        monkeypatch.setattr(measures, name, measure)
    monkeypatch.setitem(profiles.PROFILES, "main", lambda selection: ([job()], BRIEF))
    monkeypatch.setattr(command.load, "time", SimpleNamespace(sleep=lambda s: None, monotonic=time.monotonic))
    status = command.main(["--device", "cpu", "--out", str(tmp_path), *options])
    return status, Results.read(next(tmp_path.glob("*.json")))


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


def test_a_run_of_chosen_dtypes_has_files_of_its_own(tmp_path, monkeypatch):
    _, before = _small_run(monkeypatch, tmp_path)
    assert _small_run(monkeypatch, tmp_path, "--dtype", "bfloat16,float16")[0] == 0
    assert {path.name for path in tmp_path.glob("*.json")} == {"main.json", "main-bfloat16-float16.json"}
    assert Results.read(tmp_path / "main.json") == before


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
    monkeypatch.setitem(CONTENDERS["lstm"], name, Contender(name, _raising(RuntimeError("cannot open [/opt/x] file"))))
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
    monkeypatch.setitem(CONTENDERS["lstm"], FUSED, wrong_layer(lambda output, h_n, c_n: (output + 1, h_n, c_n)))
    options = ["--cases", "decode-32", "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(options) == 1


def test_a_run_without_time_left_names_all_that_it_leaves_out(tmp_path, monkeypatch, capsys):
    """It is no failure; busy cores are said first."""
    monkeypatch.setattr(command.load, "cores_busy_now", lambda: 1.26)
    monkeypatch.setattr(command.Limit, "left", lambda limit: 0.0)
    status, results = _small_run(monkeypatch, tmp_path, "--limit", "0.5")
    (row,) = results.rows
    assert (status, row.status, row.note) == (0, LEFT_OUT, "no time left of 0.5 minutes")
    others = [text for text in results.measures.values() if text == "left out: no time left of 0.5 minutes"]
    assert len(others) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "left out nn.LSTM, inference, float32, 1 threads: small (no time left of 0.5 minutes)" in said
    busy = f"1.3 of {usable_cpus()} cores were busy with other work when this began"
    assert said.index(busy) < said.index("Handwritten digits")
    assert results.machine["other work"] == busy
    for name in ("main.md", "main.csv"):
        assert busy in (tmp_path / name).read_text() and LEFT_OUT in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    "options, minutes", [([], 4), (["--limit", "0.5"], 0.5), (["--limit", "0"], 0), (["--cases", "decode-32"], 0)]
)
def test_the_main_run_alone_has_a_limit_by_itself(tmp_path, monkeypatch, options, minutes):
    given = []
    monkeypatch.setattr(command, "run_jobs", lambda jobs, budget, on_row, limit: given.append(limit.minutes))
    _small_run(monkeypatch, tmp_path, *options)
    assert given == [minutes]


def test_digits_are_trained_for_as_long_as_there_is_time(monkeypatch):
    """By what the first epoch takes: in 10 s, two turns of two sides that take 1 s for an epoch."""
    from benchmarks import measures
    from examples import digit_rows as example

    def train(layer, epochs, device):
        return side_by_side.Training([1.0] * epochs, 1.0)

    monkeypatch.setattr(example, "train", train)
    clock = iter(range(1000))
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: float(next(clock)))
    assert measures.digit_rows(CPU, LSTM, 20)["epochs"] == 20
    assert measures.digit_rows(CPU, LSTM, 20, seconds=10.0)["epochs"] == 2
    assert measures.digit_rows(CPU, LSTM, 20, seconds=0.1)["epochs"] == 1


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
        (["--cell", "peephole"], "argument --cell: expected one of lstm, gru, rnn_tanh, rnn_relu, rnn (rnn_tanh), got"),
        (["--cell", "gru", "--peers", "nn.LSTM"], "argument --peers: expected one or more of: nn.GRU, nn.GRU native,"),
        (["--limit", "-1"], "argument --limit: expected minutes like 4 or 0.5, 0 for no limit, got '-1'"),
        (["--limit", "soon"], "argument --limit: expected minutes like 4 or 0.5, 0 for no limit, got 'soon'"),
        (["--callers", "0"], "argument --callers: expected positive numbers like 1,2, got '0'"),
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
    arguments = command.options.parser("").parse_args(["--threads", "2,1,2", "--mode", "train,train"])
    assert (arguments.threads, arguments.mode) == ([2, 1], ["train"])


def test_digit_rows_report(monkeypatch):
    """Both sides train from the same weights: nn.LSTM against itself differs in nothing."""
    from benchmarks import measures

    monkeypatch.setitem(side_by_side.LSTMS, FUSED, nn.LSTM)
    digits = measures.digit_rows(CPU, LSTM, epochs=1)
    assert digits["largest loss difference"] == 0
    assert digits["test accuracy"][FUSED] == digits["test accuracy"][BASELINE] > 0.3


@pytest.mark.parametrize("cell", CELLS)
def test_peers_can_be_named_on_the_command_line(cell):
    assert not [name for name in peers_of(CELLS[cell]) if "," in name]
