"""Int8 in the benchmark: its contenders compute in int8 and are as exact as that can be, and the table says it all."""

import importlib.util
import logging
import warnings
from dataclasses import replace

import pytest
import torch
from benchmark_jobs import CPU, SMALL, job

from benchmarks import __main__ as command
from benchmarks import int8_accuracy, int8_peers, machine, profiles, report
from benchmarks.accuracy import Reference
from benchmarks.cases import INT8_GRID, INT8_USERS, Case
from benchmarks.contenders import (
    CONTENDERS,
    FROZEN,
    FUSED_INT8,
    INT8_PEERS,
    ONNXRUNTIME,
    ONNXRUNTIME_INT8,
    TORCH_INT8,
    Contender,
    build_torch,
    peers_of,
)
from benchmarks.int8_table import MEAN, int8_table
from benchmarks.results import Results
from benchmarks.rows import OK, PEER_WRONG, SKIPPED, WRONG
from benchmarks.suite import run_jobs
from benchmarks.table import losses
from benchmarks.timing import Budget
from benchmarks.workload import INT8, Workload
from fusedlstm.cells import CELLS, LSTM

pytestmark = [
    pytest.mark.usefixtures("one_thread", "cheap_ceilings", "cheap_onnx"),
    # Said by PyTorch whenever oneDNN is switched off for a peer, on machines without Intel GPUs.
    pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN"),
]

BRIEF = Budget(seconds=0.01, min_rounds=3, max_rounds=3)
PLAIN = Case("plain", 12, 3, 48, 64)
STACK = Case("stack", 5, 2, 48, 32, num_layers=2, bidirectional=True)
PROJECTION = Case("projection", 5, 2, 48, 64, proj_size=32)
LENGTHS = replace(STACK, name="lengths", variable="lengths")
RESETS = Case("resets", 40, 3, 48, 32, resets=True)
BY_STEP = Case("by-step", 5, 3, 48, 32, by_step=True)


def int8_job(case=PLAIN, peers=INT8_PEERS, cell="lstm", mode="inference"):
    return job(case, mode, INT8, peers, cell)


def workload(case=PLAIN, cell="lstm", **options) -> Workload:
    return Workload(case, "inference", INT8, CPU, CELLS[cell], **options)


# To export for ONNX Runtime's float32 takes seconds, and beside our float32 it is the same: other cells and cases of it
# are in test_benchmark_peers.py.
COMPUTED = [
    (cell, case, name)
    for cell in CELLS
    for case in (PLAIN, STACK, PROJECTION, LENGTHS, RESETS, BY_STEP)
    for name in (FUSED_INT8, *INT8_PEERS)
    if profiles.Selection(CPU, cell=cell).has(case) and CONTENDERS[cell][name].why_not(workload(case, cell)) is None
    if name != ONNXRUNTIME or (cell, case) == ("lstm", PLAIN)
]


@pytest.mark.parametrize("cell, case, name", COMPUTED, ids=lambda value: getattr(value, "name", value))
def test_contenders_are_as_exact_as_int8_can_be(cell, case, name):
    """And no more than that, but for those in float32: none computes in float32 under the name of int8."""
    checked = workload(case, cell)
    reference = Reference(checked)
    error = reference.error_of(CONTENDERS[cell][name].build(checked))
    assert error <= reference.limit < 0.07
    assert (error < 1e-5) == (name in (FROZEN, ONNXRUNTIME))


def test_steps_of_a_decoder_are_right():
    decoding = Workload.of(PLAIN, "decode", INT8, CPU)
    reference = Reference(decoding)
    for name in (FUSED_INT8, *INT8_PEERS):
        if CONTENDERS["lstm"][name].why_not(decoding) is None:
            assert reference.error_of(CONTENDERS["lstm"][name].build(decoding)) <= reference.limit, name


@pytest.mark.parametrize("part", [0.93, 1.07])
def test_a_result_beyond_int8_is_not_timed(monkeypatch, part):
    """As of products that saturate: 7 % away."""

    def build(given):
        model = build_torch(given)
        return replace(model, forward=lambda batch: tuple(part * value for value in model.forward(batch)))

    for name, status in ((TORCH_INT8, PEER_WRONG), (FUSED_INT8, WRONG)):
        monkeypatch.setitem(CONTENDERS["lstm"], name, Contender(name, build))
        (row,) = run_jobs([int8_job(peers=(TORCH_INT8,))], BRIEF)
        assert (row.status, row.ratio) == (status, None)


def test_onnx_runtime_saturates_where_its_setting_says_so(monkeypatch):
    """Weights of 8 bits without VNNI: what the setting is for."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    if not int8_peers.reduces_range():
        pytest.skip("this processor has VNNI, or is no x86")
    monkeypatch.setattr(int8_peers, "reduces_range", lambda: False)
    (row,) = run_jobs([int8_job(peers=(ONNXRUNTIME_INT8,))], BRIEF)
    assert row.status == PEER_WRONG and row.peer_error > 0.06


@pytest.mark.parametrize("has_vnni", [False, True])
def test_the_setting_is_that_of_the_processor(monkeypatch, has_vnni):
    monkeypatch.setattr(machine, "has_vnni", lambda: has_vnni)
    monkeypatch.setattr(int8_peers.platform, "machine", lambda: "x86_64")
    assert int8_peers.reduces_range() != has_vnni
    assert ("reduce_range" in int8_peers.setting()) != has_vnni
    monkeypatch.setattr(int8_peers.platform, "machine", lambda: "aarch64")
    assert not int8_peers.reduces_range()


def test_onnx_runtime_has_a_quantized_node_for_each_layer(monkeypatch):
    onnx = pytest.importorskip("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")
    model = onnx.load_from_string(int8_peers.quantized_onnx_model(workload(STACK)))
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("DynamicQuantizeLSTM"), kinds.count("LSTM")) == (2, 0)

    def left_alone(source, target, **options):
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(quantization, "quantize_dynamic", left_alone)
    with pytest.raises(RuntimeError, match=r"expected 2 nodes DynamicQuantizeLSTM, got .*\bLSTM\b"):
        int8_peers.quantized_onnx_model(workload(STACK))


@pytest.mark.parametrize("cell, node", [("gru", "GRU"), ("rnn_tanh", "RNN")])
def test_onnx_runtime_leaves_other_cells_in_float32(cell, node):
    """Which is why its float32 stands beside our int8."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime.quantization")
    with pytest.raises(RuntimeError, match=rf"expected 2 nodes DynamicQuantizeLSTM, got .*\b{node}\b"):
        int8_peers.quantized_onnx_model(workload(STACK, cell))


def test_a_layer_that_torch_leaves_in_float32_is_refused():
    with pytest.raises(RuntimeError, match="expected a quantized RNN, got the float32 one"):
        int8_peers.torch_int8(torch.nn.RNN(4, 5))


@pytest.mark.parametrize("name", [TORCH_INT8, ONNXRUNTIME_INT8])
def test_quantizers_are_quiet(name, capfd):
    """They are deprecated, or recommend something, at each call."""
    contender = CONTENDERS["lstm"][name]
    if excuse := contender.why_not(workload()):
        pytest.skip(excuse)
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contender.build(workload())
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == level


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
def test_an_absent_package_is_a_row_with_the_reason(monkeypatch, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    (row,) = run_jobs([int8_job(peers=(ONNXRUNTIME_INT8,))], BRIEF)
    assert (row.status, row.note) == (SKIPPED, f"{package} is not installed")


@pytest.mark.parametrize(
    "cell, case, name, reason",
    [
        ("gru", PLAIN, ONNXRUNTIME_INT8, "not available: LSTM only (DynamicQuantizeLSTM)"),
        ("rnn_tanh", PLAIN, TORCH_INT8, "not available: torch.ao.quantization has no nn.RNN"),
        ("lstm", PROJECTION, TORCH_INT8, "torch.ao.quantization has no projections"),
        ("lstm", BY_STEP, ONNXRUNTIME_INT8, "no cells, projections, resets or lengths"),
    ],
)
def test_what_the_others_have_not_in_int8_is_said(cell, case, name, reason):
    (row,) = run_jobs([int8_job(case, (name,), cell)], BRIEF)
    assert (row.status, row.note) == (SKIPPED, reason)


def test_int8_is_no_peer_of_other_precisions():
    names = {FUSED_INT8, TORCH_INT8, ONNXRUNTIME_INT8}
    assert not names & set(peers_of(LSTM))
    assert peers_of(LSTM, INT8) == INT8_PEERS
    rows = run_jobs([job(PLAIN, peers=(FUSED_INT8, TORCH_INT8, ONNXRUNTIME_INT8))], BRIEF)
    assert {(row.status, row.note) for row in rows} == {(SKIPPED, "int8 only")}


def test_seeds_draw_other_weights_and_data():
    one, other = workload(), workload(seed=1)
    for values in ([w.state_dict["weight_hh_l0"] for w in (one, other)], [w.batches[0].input for w in (one, other)]):
        assert not torch.equal(*values)
    assert torch.equal(one.state_dict["weight_hh_l0"], workload().state_dict["weight_hh_l0"])


@pytest.fixture
def results() -> Results:
    """Two cases in one and in two threads; one loses, of one the float32 side is missing."""
    frozen, torch_row = run_jobs([int8_job(peers=(FROZEN, TORCH_INT8))], BRIEF)
    assert frozen.status == torch_row.status == OK
    assert 0.25 < frozen.fused_bytes / frozen.peer_bytes < 0.4
    same = dict(fused_us=1500.0, fused_error=0.0072, fused_bytes=2600, peer_bytes=10000)
    frozen = replace(frozen, ratio=2.0, peer_error=2e-7, **same)
    torch_row = replace(torch_row, ratio=0.5, peer_error=0.021, **same)
    gone = replace(frozen, peer=ONNXRUNTIME_INT8, status=SKIPPED, note="not installed", ratio=None, fused_us=None)
    wide = dict(case="wide", T=80, B=8, I=512, H=256, directions=2)
    return Results(
        {"device": "a machine"},
        [
            frozen,
            torch_row,
            gone,
            replace(frozen, threads=2, ratio=4.0),
            replace(torch_row, threads=2, ratio=1.0),
            replace(torch_row, **wide, ratio=2.0),
        ],
    )


def test_the_table_of_int8(results):
    dash = "\N{EN DASH}"
    errors = [f"error {name}" for name in (FUSED_INT8, FROZEN, TORCH_INT8)]
    assert int8_table(results) == [
        ["T B I H", "thr", FUSED_INT8, FROZEN, TORCH_INT8, *errors, "bytes"],
        ["12 3 48 64", "1", "1.5 ms", "2.00", "**0.50**", "0.72", "2e-05", "2.1", "26"],
        ["12 3 48 64", "2", "1.5 ms", "4.00", "1.00", "0.72", "2e-05", "2.1", "26"],
        ["80 8 512 256 bi", "1", "1.5 ms", dash, "2.00", "0.72", dash, "2.1", dash],
        [f"**{MEAN}**", "1", "", "**2.00**", "**1.00**", "", "", "", ""],
        [f"**{MEAN}**", "2", "", "**4.00**", "**1.00**", "", "", "", ""],
    ]
    text = report.markdown(results, {})
    assert "# fused_int8 on a machine" in text
    assert "| 12 3 48 64 | 1 | 1.5 ms | 2.00 | **0.50** | 0.72 | 2e-05 | 2.1 | 26 |" in text
    assert int8_table(Results({}, run_jobs([job()], BRIEF))) == []


def test_losses_to_our_own_float32_are_named(results):
    (frozen, *_) = results.rows
    assert losses([replace(frozen, ratio=0.5)]) == ["0.50x frozen: plain, inference, int8, 1 threads"]


def test_command_writes_a_file_of_its_own(tmp_path, capsys):
    options = ["--quantized", "--cases", "silero", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(options) == 0
    assert {"quantized.csv", "quantized.json", "quantized.md"} <= {path.name for path in tmp_path.iterdir()}
    results = Results.read(tmp_path / "quantized.json")
    assert [(row.peer, row.precision, row.mode) for row in results.rows] == [(n, INT8, "inference") for n in INT8_PEERS]
    assert {row.status for row in results.rows} <= {OK, SKIPPED}
    assert results.machine[ONNXRUNTIME_INT8] == int8_peers.setting()
    assert int8_peers.setting() in (tmp_path / "quantized.md").read_text()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1 1 128 128 ")]
    assert len(table) == 1 and len(table[0]) <= 120


@pytest.mark.parametrize(
    "options, message",
    [
        (["--dtype", "float32"], "argument --dtype: not allowed with argument --quantized"),
        (["--quick"], "argument --quick: not allowed with argument --quantized"),
        (["--mode", "train"], "argument --mode: expected inference or decode with --quantized, got train"),
        (
            ["--peers", "OpenVINO"],
            f"argument --peers: expected one or more of: {', '.join(INT8_PEERS)}, got 'OpenVINO'",
        ),
    ],
)
def test_command_refuses_what_int8_is_not(options, message, capsys):
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu", "--quantized", *options])
    assert message in capsys.readouterr().err


def test_int8_has_a_run_of_its_own(capsys):
    with pytest.raises(SystemExit):
        command.main(["--dtype", "int8"])
    assert "got 'int8'" in capsys.readouterr().err


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_quantized_run(cell):
    """Every case in one thread and in all, small ones first, against all."""
    jobs, _ = profiles.PROFILES["quantized"](profiles.Selection(CPU, threads=(1, 2), cell=cell))
    sizes = [job.case.multiply_adds(CELLS[cell]) for job in jobs]
    assert sizes == sorted(sizes)
    assert [job.threads for job in jobs] == [1, 2] * len(INT8_GRID + INT8_USERS)
    assert {(job.mode, job.precision, job.peers, job.cell) for job in jobs} == {("inference", INT8, INT8_PEERS, cell)}
    assert {case.name for case in INT8_USERS} == {job.case.name for job in jobs} - {case.name for case in INT8_GRID}
    assert len(INT8_USERS) == 6
    only = profiles.PROFILES["quantized"](profiles.Selection(CPU, cases=("silero", "int8-h64-*"), threads=(1,)))[0]
    assert [job.case.name for job in only] == ["silero", "int8-h64-b1", "int8-h64-b8"]


def test_the_floor_of_int8_is_that_of_its_bytes():
    int8, float32 = (Workload(replace(PLAIN, T=1), "inference", name, CPU) for name in (INT8, "float32"))
    weights = 4 * 64 * (48 + 64)
    assert float32.bytes_moved() - int8.bytes_moved() == 3 * weights


def test_the_table_of_errors(capsys):
    lines = list(int8_accuracy.table("gru", [replace(SMALL, input_size=32, hidden_size=32)], (2, 5), seeds=2))
    assert lines[0].splitlines()[0] == "| B, I, H | T | fused_int8 of full range, % | fused_int8, % | torch_int8, % |"
    assert [line.split("| ")[2].strip() for line in lines[1:3]] == ["2", "5"]
    for line in lines[1:3]:
        mean, largest = line.split("| ")[3].rstrip(" )").split(" (")
        assert 0 < float(mean) <= float(largest) < 5
    assert lines[3:] == ["\nonnxruntime_int8: not available: LSTM only (DynamicQuantizeLSTM)"]
