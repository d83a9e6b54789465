"""Other runtimes as contenders, the real shapes, and the table that shows all peers side by side."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from benchmark_jobs import BASELINE, BRIEF, CPU, SMALL, job

from benchmarks import profiles, report
from benchmarks.accuracy import Reference
from benchmarks.cases import ACCEPTANCE, BENCHMARK, USERS
from benchmarks.contenders import CONTENDERS, FROZEN, RUNTIMES, Contender, build_torch
from benchmarks.onnx_peers import Request, forward_with
from benchmarks.peer_table import MEAN, peer_table
from benchmarks.results import Results
from benchmarks.rows import LEFT_OUT, OK, PEER_WRONG, SKIPPED
from benchmarks.suite import run_jobs
from benchmarks.table import losses
from benchmarks.workload import Workload
from fusedlstm.cells import CELLS, LSTM

pytestmark = [
    pytest.mark.usefixtures("one_thread", "cheap_ceilings", "cheap_onnx"),
    # Said by PyTorch whenever oneDNN is switched off for a peer, on machines without Intel GPUs.
    pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN"),
    pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning"),
]

PACKAGES = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}
LENGTHS = replace(SMALL, name="lengths", variable="lengths")
PACKED = replace(SMALL, name="packed", variable="packed")


def installed_runtimes() -> list[str]:
    """All that there are, in one test: a model is exported once for them, which takes longer than all else."""
    pytest.importorskip("onnxscript")
    found = [name for name in RUNTIMES if importlib.util.find_spec(PACKAGES[name])]
    return found or pytest.skip(f"needs {' or '.join(PACKAGES.values())}")


@pytest.mark.parametrize(
    "cell, case, mode",
    [
        ("lstm", SMALL, "decode"),
        ("gru", LENGTHS, "inference"),
        ("rnn_relu", PACKED, "inference"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_runtimes_are_right(cell, case, mode):
    workload = Workload.of(case, mode, "float32", CPU, CELLS[cell])
    reference = Reference(workload)
    for name in installed_runtimes():
        peer = CONTENDERS[cell][name]
        assert peer.why_not(workload) is None, name
        assert reference.error_of(peer.build(workload)) <= reference.limit, name


def test_callers_of_a_runtime_have_buffers_of_their_own():
    names = installed_runtimes()
    rows = run_jobs([replace(job(peers=tuple(names)), callers=2)], BRIEF)
    assert [(row.peer, row.status) for row in rows] == [(name, OK) for name in names], [row.note for row in rows]


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_absent_runtime_is_a_row_with_the_reason(monkeypatch, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if n == PACKAGES[name] else found(n, *rest))
    (row,) = run_jobs([job(peers=(name,))], BRIEF)
    assert (row.status, row.note) == (SKIPPED, f"{PACKAGES[name]} is not installed")


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize(
    "changes, options, reason",
    [
        ({}, {"mode": "train"}, "inference only"),
        ({}, {"precision": "float64"}, "float32 on a CPU only"),
        ({"resets": True, "bidirectional": False}, {}, "no cells, projections or resets"),
    ],
)
def test_what_runtimes_do_not_compute_is_said(name, changes, options, reason):
    (row,) = run_jobs([job(replace(SMALL, **changes), peers=(name,), **options)], BRIEF)
    assert (row.status, row.note) == (SKIPPED, reason)


def test_inputs_are_bound_again_only_where_they_are_others():
    """A runtime that keeps pointers: it adds its input and its state."""
    workload = Workload.of(SMALL, "inference", "float32", CPU)
    bound, order = {}, []
    result = torch.zeros(6, 3, 4)

    def bind(position, value):
        order.append(position)
        bound[position] = value

    request = Request(bind, lambda: torch.add(bound[0], bound[1].mean(), out=result), (result,))
    (first,) = workload.batches
    other = replace(first, input=first.input + 1)
    for batch in (first, first, other, first):
        (output,) = request.results(batch)
        assert torch.equal(output, batch.input + batch.states[0].mean())
    assert order == [0, 1, 2, 0, 0]


def test_results_of_steps_outlive_the_next_one():
    workload = Workload.of(SMALL, "decode", "float32", CPU)
    result = torch.zeros(1)
    request = Request(lambda position, value: None, lambda: result.add_(1), (result,))
    forward = forward_with(workload, lambda: request)
    outputs = [forward(workload.batches[0])[0] for _ in range(3)]
    assert [output.item() for output in outputs] == [1, 2, 3]


def test_a_runtime_that_is_wrong_is_not_timed(monkeypatch):
    def build(workload):
        model = build_torch(workload)
        return replace(model, forward=lambda batch: tuple(1.01 * value for value in model.forward(batch)))

    monkeypatch.setitem(CONTENDERS["lstm"], "OpenVINO", Contender("OpenVINO", build))
    (row,) = run_jobs([job(peers=("OpenVINO",))], BRIEF)
    assert (row.status, row.peer_us) == (PEER_WRONG, None)


@pytest.mark.parametrize("name", ["decode-32", "cell-h128-b1"])
def test_ours_frozen_is_a_peer_that_cannot_win(name):
    """Its column says how much faster it is than ours, and it is no loss."""
    (case,) = (case for case in BENCHMARK if case.name == name)
    (row,) = run_jobs([job(case, peers=(FROZEN,))], BRIEF)
    assert (row.peer, row.status) == (FROZEN, OK)
    row = replace(row, ratio=0.5, feature="")
    assert losses([row]) == [] != losses([replace(row, peer=BASELINE)])
    head, line, *_ = peer_table(Results({"device": "a machine"}, [row, replace(row, peer=BASELINE)]))
    assert head == ["T, B, I, H", f"inference, 1 thread, {BASELINE}", FROZEN] and line[1:] == ["**0.50**", "2.00"]


def test_training_has_nothing_frozen():
    (row,) = run_jobs([job(ACCEPTANCE[0], mode="train", peers=(FROZEN,))], BRIEF)
    assert (row.status, row.note) == (SKIPPED, "inference only")


def test_main_runs_what_matters_first():
    """The acceptance cases, small ones first, inference against the runtimes too; then the others."""
    jobs, _ = profiles.main(profiles.Selection(CPU, threads=(1, 2)))
    first, rest = jobs[: 4 * len(ACCEPTANCE)], jobs[4 * len(ACCEPTANCE) :]
    assert {job.case for job in first} == set(ACCEPTANCE)
    sizes = [job.case.multiply_adds(LSTM) for job in first]
    assert sizes == sorted(sizes)
    of_a_case = [("inference", (BASELINE, *RUNTIMES, FROZEN))] * 2 + [("train", (BASELINE,))] * 2
    assert [(job.mode, job.peers) for job in first] == of_a_case * len(ACCEPTANCE)
    assert [job.threads for job in first] == [1, 2] * (2 * len(ACCEPTANCE))
    assert {job.case.name for job in rest} & {case.name for case in ACCEPTANCE} == {"stream-128"}
    only = profiles.main(profiles.Selection(CPU, modes=("train",)))[0]
    assert {(job.mode, job.peers) for job in only} == {("train", (BASELINE,))}


def test_large_cases_run_on_a_cpu_where_they_are_named():
    large = {"basecall-hac", "basecall-sup"}

    def cases(profile, device, **options):
        return {job.case.name for job in profiles.PROFILES[profile](profiles.Selection(device, **options))[0]}

    assert large == {case.name for case in BENCHMARK} - cases("full", CPU)
    assert large <= cases("full", torch.device("cuda"))
    assert cases("custom", CPU, cases=["basecall-*"]) == large
    assert not {"isaac-4096", "pyg-jk"} & cases("main", CPU) and {"isaac-4096", "pyg-jk"} <= cases("full", CPU)


def test_names_of_cases_can_be_typed():
    assert [case.name for case in USERS if case.name != case.name.lower() or " " in case.name or "," in case.name] == []


@pytest.fixture
def results():
    """Three plain cases and one with resets; the middle one loses, of the last one a row was left out."""
    (row,) = run_jobs([job(ACCEPTANCE[0])], BRIEF)
    rows = []
    for case, ratios in (
        ("decode-32", {BASELINE: 4.0, "ONNX Runtime": 0.5}),
        ("scalar-series", {BASELINE: 1.0, "ONNX Runtime": 0.996}),
        ("rl-b8-h128-resets", {BASELINE: 9.0}),
    ):
        rows += [replace(row, case=case, peer=peer, ratio=ratio) for peer, ratio in ratios.items()]
    absent = dict(ratio=None, fused_us=None)
    rows.append(replace(row, case="rl-b8-h128-resets", peer="ONNX Runtime", status=SKIPPED, note="no resets", **absent))
    rows.append(replace(row, case="decode-32", mode="train", ratio=1.5))
    rows.append(replace(row, case="scalar-series", mode="train", status=LEFT_OUT, note="no time", **absent))
    rows.append(replace(row, case="decode-32", peer="OpenVINO", status=SKIPPED, note="not installed", **absent))
    rows.append(replace(row, case="decode-32", callers=8, ratio=7.0))
    rows.append(replace(row, case="decode-32", threads=8, ratio=6.0))
    rows.append(replace(row, case="decode-32", precision="float64", ratio=8.0))
    return Results({"device": "a machine", "other work": "1.3 of 2 cores were busy"}, rows)


def test_the_table_of_peers(results):
    dash = "\N{EN DASH}"
    assert peer_table(results) == [
        ["T, B, I, H", "inference, 1 thread, nn.LSTM", "ONNX Runtime", "training step, 1 thread, nn.LSTM"],
        ["1, 1, 32, 32", "4.00", "**0.50**", "1.50"],
        ["40, 1, 1, 50", "1.00", "1.00", LEFT_OUT],
        ["128, 8, 64, 128, resets", "9.00", dash, dash],
        [f"**{MEAN}**", "**2.00**", "**0.71**", "**1.50**"],
    ]


def test_the_report_names_what_was_left_out_and_what_was_busy(results):
    text = report.markdown(results, {})
    assert "**1.3 of 2 cores were busy.**" in text
    assert "| 1, 1, 32, 32 | 4.00 | **0.50** | 1.50 |" in text
    assert "## Left out\n\n* nn.LSTM, train, float32, 1 threads: scalar-series (no time)" in text
    assert "OpenVINO: not installed (1 rows)" in text


def test_nothing_to_show_is_no_line(results):
    results.rows = [row for row in results.rows if row.case == "rl-b8-h128-resets"]
    assert [line[0] for line in peer_table(results)] == ["T, B, I, H", "128, 8, 64, 128, resets"]
    assert peer_table(Results({"device": "a machine"})) == []
