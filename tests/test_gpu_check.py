"""tools/gpu_check, rehearsed without a GPU: both parts whole on a stand-in of the CPU, with plants; and its pieces."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import scripts

import fusedlstm

HERE = Path(__file__).resolve().parent
TOOLS = scripts.folder()
sys.path.append(str(TOOLS))

from gpu_visit import agenda, children, findings, report  # noqa: E402
from gpu_visit.children import Deadline  # noqa: E402
from gpu_visit.device import Cuda  # noqa: E402
from gpu_visit.kit import Kit  # noqa: E402
from gpu_visit.pool import Pool  # noqa: E402
from gpu_visit.visit import Visit  # noqa: E402
from gpu_visit.worker import sentence  # noqa: E402

CONSTANTS = [
    {"what": "resident clusters", "ctas": 16, "bytes": 0, "cycles": 7.0},
    {"what": "cluster exchange, GPU full", "ctas": 2, "bytes": 1024, "cycles": 1.0},
    {"what": "cluster exchange, GPU full", "ctas": 16, "bytes": 65536, "cycles": 4508.0},
    {"what": "cluster exchange, GPU full", "ctas": 16, "bytes": 1024, "cycles": 300.0},
    {"what": "grid exchange, sentinel", "ctas": 64, "bytes": 2048, "cycles": 900.0},
    {"what": "grid exchange, sentinel", "ctas": 64, "bytes": 8192, "cycles": -1.0},  # refused
    {"what": "mma bf16, 1 sums", "ctas": 1, "bytes": 0, "cycles": 16.5},
    {"what": "mma bf16, 4 sums", "ctas": 1, "bytes": 0, "cycles": 4.5},
    {"what": "places", "ctas": 2, "smid": [0, 1]},  # what the model does not know is carried along
]
SPEED = [
    {"H": 64, "B": 8, "precision": "tf32", "mode": "forward", "cudnn": 4.0, "automatic": 2.0},
    {"H": 512, "B": 8, "precision": "tf32", "mode": "forward", "cudnn": 4.0, "automatic": 8.0},
    {"H": 512, "B": 8, "precision": "tf32", "mode": "forward", "stream": 9.0, "local": 8.0},
    {"H": 64, "B": 8, "precision": "tf32", "mode": "forward+backward", "cudnn": 9.0, "automatic": 3.0},
]


# ---- the rehearsal --------------------------------------------------------------------------------------------------


def program(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def kit(tmp_path_factory):
    """A kit with this package as it is, and a program of constants that prints a row and does not end."""
    folder = tmp_path_factory.mktemp("kit")
    package = folder / "fusedlstm"
    package.symlink_to(Path(fusedlstm.__file__).parent)
    if not (package / "lib/libfusedlstm_cuda.so").exists():  # the CPU library is enough here
        package.unlink()
        (package / "lib").mkdir(parents=True)
        for file in Path(fusedlstm.__file__).parent.iterdir():
            if file.suffix == ".py" or file.name == "cells":
                (package / file.name).symlink_to(file)
        for file in (Path(fusedlstm.__file__).parent / "lib").iterdir():
            (package / "lib" / file.name).symlink_to(file)
        (package / "lib/libfusedlstm_cuda.so").touch()
    sleep = f"exec {sys.executable} -c 'import time; time.sleep(60)'"
    program(folder / "gpu_constants", f"echo '{json.dumps(CONSTANTS[0])}'; {sleep}")
    (folder / "primitives.so").touch()
    (folder / "kit.json").write_text(json.dumps({"commit": "c0ffee", "arch": "9.0a"}))
    return folder


@pytest.fixture
def environment(tmp_path):
    """That of the rehearsal, with a process that has imported torch: what agenda.python starts is forked from it."""
    folder = HERE / "gpu_visit_rehearsal"
    variables = os.environ | {
        "FORKED": str(tmp_path / "socket"), "OMP_NUM_THREADS": "2", "PYTHONPATH": str(folder), "COLUMNS": "90",
    }  # fmt: skip
    server = subprocess.Popen([sys.executable, "-u", folder / "forked.py"], env=variables, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not Path(variables["FORKED"]).exists():
        assert server.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    yield variables
    server.kill()
    server.wait()


@pytest.fixture
def rehearsal(kit, tmp_path_factory, environment):
    """(report.json, folder of the report, what each part printed): both parts, one after the other, without git."""
    pytest.importorskip("rich")  # the benchmark
    pytest.importorskip("xdist")
    out, programs = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("bin")
    program(programs / "nvidia-smi", "echo a stand-in GPU")
    program(programs / "compute-sanitizer", 'shift 4; exec "$@"')
    environment |= {"PATH": str(programs)}
    printed = {}
    for part in ("first", "second"):
        command = [sys.executable, TOOLS / "gpu_check", "--kit", kit, "--out", out, "--part", part]
        done = subprocess.run(
            [*map(str, command), "--target", "gpu_stand_in"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 1, done.stdout + done.stderr
        printed[part] = done.stdout
    return json.loads((out / "report.json").read_text()), out, printed


@pytest.mark.slow
def test_the_whole_visit(rehearsal):
    """One test, since the visit takes a while and other test processes would repeat it."""
    check_planted_kernels_cost_themselves_alone(rehearsal)
    check_planted_tests_cost_themselves_alone(rehearsal)
    check_a_step_out_of_time_keeps_its_rows_and_stops_nothing(rehearsal)
    check_all_other_steps_pass(rehearsal)
    check_speed_has_host_time_and_a_checked_value(rehearsal)
    check_files_of_both_parts(rehearsal)


def failed(step):
    return dict(report.problems(step))


def check_planted_kernels_cost_themselves_alone(rehearsal):
    kernels = rehearsal[0]["first"]["steps"]["kernels"]
    why = {name.split(" bfloat16")[0]: text for name, text in failed(kernels).items()}
    assert set(why) == {"planted hang", "planted fault", "planted wrong value", "planted lost context"}
    assert why["planted hang"] == "hang: no answer within 3 s"
    assert why["planted fault"] == "its process died: exit status -11"
    assert why["planted wrong value"].startswith("wrong value: expected a difference of at most 2.0e-02")
    assert "illegal memory access" in why["planted lost context"]
    good = [row["name"].split()[0] for row in kernels["rows"] if "failed" not in row and "skipped" not in row]
    assert sorted(good) == ["after", "before"]


def check_planted_tests_cost_themselves_alone(rehearsal):
    step = rehearsal[0]["second"]["steps"]["tests"]
    why = {name.rsplit("::", 1)[-1]: text for name, text in failed(step).items()}
    assert why.pop("").startswith("exit status 1")
    assert set(why) == {"test_hang", "test_fault", "test_failure"}
    assert "crashed while running" in why["test_hang"] and "crashed while running" in why["test_fault"]
    assert "assert (1 + 1) == 3" in why["test_failure"]
    assert sum("test_after" in row["name"] for row in step["rows"]) == 4
    assert [row["skipped"] for row in step["rows"] if "skipped" in row] == ["Skipped: cannot run here"]


def check_a_step_out_of_time_keeps_its_rows_and_stops_nothing(rehearsal):
    steps = rehearsal[0]["first"]["steps"]
    assert steps["constants"]["rows"] == CONSTANTS[:1]
    (why,) = steps["constants"]["failures"]
    assert why.startswith("out of time after")
    for step in ("load", "layer", "speed", "numerics"):
        assert not failed(steps[step]), step
        assert steps[step]["rows"] or step == "load"


def check_all_other_steps_pass(rehearsal):
    steps = rehearsal[0]["second"]["steps"]
    assert list(steps) == list(agenda.of_gpu().shares["second"])
    for step in ("load", "streams", "graphs", "robustness", "benchmark", "sanitizer"):
        assert not failed(steps[step]), step
        assert steps[step]["rows"] or step == "load"
    # No test of that name here: pytest says so by its exit status.
    assert [why[:13] for why in steps["primitives"]["failures"]] == ["exit status 5"]


def check_speed_has_host_time_and_a_checked_value(rehearsal):
    rows = rehearsal[0]["first"]["steps"]["speed"]["rows"]
    assert [row["mode"] for row in rows] == 2 * ["forward", "forward+backward", "forward in a graph"]
    for row in rows:
        assert ("cudnn" in row and "automatic" in row) or ("stream" in row and "local" in row)
        assert row["mode"] == "forward in a graph" or (row["difference"] == 0 and "layers" in row)
    assert rows[0]["host_cudnn"] > 0 and rows[0]["host_automatic"] > 0


def check_files_of_both_parts(rehearsal):
    content, out, printed = rehearsal
    assert sorted(file.name for file in out.iterdir()) == ["constants.json", "log.txt", "report.json", "report.md"]
    assert json.loads((out / "constants.json").read_text()) == CONSTANTS[:1]  # the second part has none of its own
    assert list(content) == ["first", "second"]
    for part in content.values():
        assert part["kit"]["commit"] == "c0ffee" and part["device"] == {"gpu": "stand-in"}
    log, text = (out / "log.txt").read_text(), (out / "report.md").read_text()
    assert "a stand-in GPU" in log and "planted hang" in log and "fusedlstm          " in log
    assert "# first part" in text and "# second part" in text and "planted hang" in text
    for part, names in (("first", ["planted hang", "planted fault"]), ("second", ["test_hang", "test_fault"])):
        last = printed[part].split("| step")[-1]
        assert all(name in last for name in names)
        assert max(map(len, printed[part].splitlines())) <= 90


# ---- its pieces -----------------------------------------------------------------------------------------------------

# A worker without torch: "hang", "die" and "fail" do that.
WORKER = """
import json, sys, time
print(json.dumps({"ready": {}}), flush=True)
for line in sys.stdin:
    name = json.loads(line)[1]["name"]
    if name == "hang": time.sleep(60)
    if name == "die": sys.exit(3)
    if name != "fail": print(json.dumps({"row": {"name": name}}), flush=True)
    print(json.dumps({"done": "RuntimeError: no" if name == "fail" else None, "lost": False}), flush=True)
"""


def run_pool(tmp_path, names, worker=WORKER, answers=True, workers=1, seconds=1.0, **options):
    """(failures, rows) of an experiment with items of these names."""
    log = report.Log(tmp_path / "log")

    def spawn(command):
        return children.start([sys.executable, "-c", worker], log, os.environ, tmp_path, stdin=children.PIPE)

    pool = Pool(workers, "no target", agenda.of_gpu(), spawn, lambda: answers, lambda: 5, log)
    rows = []
    experiment = agenda.Experiment([{"name": name} for name in names], seconds, workers, **options)
    failures = pool.run("any", experiment, Deadline(60), rows.append)
    pool.close()
    return failures, rows


def test_workers_are_replaced(tmp_path):
    failures, rows = run_pool(tmp_path, ["a", "die", "b", "hang", "c", "fail", "d"])
    assert not failures
    assert [row["name"] for row in rows] == ["a", "die", "b", "hang", "c", "fail", "d"]
    assert [row.get("failed") for row in rows if "failed" in row] == [
        "its process died: exit status 3", "hang: no answer within 1 s", "RuntimeError: no",
    ]  # fmt: skip


def test_too_many_faults_stop_an_experiment(tmp_path):
    failures, rows = run_pool(tmp_path, ["fail"] * 9, most_faults=3)
    assert failures == ["stopped after 4 faults: 5 of 9 not run"] and len(rows) == 4


def test_a_device_that_no_longer_answers_stops_an_experiment(tmp_path):
    failures, rows = run_pool(tmp_path, ["a", "hang", "b", "c"], answers=False)
    assert failures == ["the device no longer answers: 2 of 4 not run"] and len(rows) == 2


def test_workers_that_cannot_start(tmp_path):
    worker = """print('{"unable": "RuntimeError: no driver"}')"""
    failures, rows = run_pool(tmp_path, ["a", "b"], worker=worker, workers=2)
    assert failures == ["no worker: RuntimeError: no driver: 2 of 2 not run"] and not rows


def test_a_command_out_of_time_is_ended_with_what_it_started(tmp_path):
    body = """import json, subprocess
child = subprocess.Popen(["sleep", "60"])
print(json.dumps({"child": child.pid}), flush=True)
child.wait()"""
    command, rows = [sys.executable, "-c", body], []
    log = report.Log(tmp_path / "log")
    assert children.run(command, 2, log, os.environ, tmp_path, rows.append, lambda: 5) is None
    child = Path("/proc", str(rows[0]["child"]), "stat")
    deadline = time.monotonic() + 10
    try:
        while child.read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.1)
    except OSError:
        pass  # it is gone


@pytest.mark.timeout(60)
def test_a_part_ends_in_its_time_where_no_process_can_be_ended(tmp_path, kit, monkeypatch):
    """As where the driver holds them: each would be waited for, one after the other."""
    started = []
    monkeypatch.setattr(children, "_signal", lambda process, number: started.append(process))
    monkeypatch.setattr(children, "FINISHING", 0.1)
    hang = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(agenda, "python", lambda *words: hang)
    visits = replace(agenda.of_gpu(), start=600, probe=600, killed=600, ending=0.1)
    try:
        assert Visit(Kit(kit), tmp_path, "first", "no target", visits, 2, 80).run() == 1
    finally:
        for process in started:
            process.kill()
    steps = json.loads((tmp_path / "report.json").read_text())["first"]["steps"]
    assert list(steps) == list(visits.shares["first"])
    assert steps["layer"]["failures"] == [
        "not run: expected a device that runs a kernel, got none: no answer within 2 s"
    ]


def test_the_first_kernel_comes_before_all(tmp_path, kit, monkeypatch):
    """It has the time of a first start: what comes later would be out of time, and the device be called lost."""
    mark = tmp_path / "mark"
    monkeypatch.setattr(agenda, "python", lambda *words: [sys.executable, "-c", f"open({str(mark)!r}, 'w')"])
    load = agenda.Commands(lambda kit: [["test", "-f", mark]], seconds=60)
    visits = agenda.of_gpu()
    visits = replace(visits, commands=visits.commands | {"load": load}, shares={"first": {"load": 1, "streams": 1}})
    Visit(Kit(kit), tmp_path, "first", "no target", visits, 60, 80).run()
    assert json.loads((tmp_path / "report.json").read_text())["first"]["steps"]["load"]["failures"] == []


def test_a_device_without_our_kernels_is_none(monkeypatch):
    """On it a layer is PyTorch's own, and would pass."""
    reason = "expected kernels for compute capability 10.0, got only 9.0a"
    monkeypatch.setattr("fusedlstm._library.why_no_kernels", lambda device: reason)
    with pytest.raises(RuntimeError, match=reason):
        Cuda().probe()


def test_an_error_is_a_sentence():
    text = (
        "on_device, csrc/cuda/binding/on_device.h:21, fusedlstm: no room\nof its own\nCUDA kernel errors might be late"
    )
    assert sentence(RuntimeError(text)) == "RuntimeError: fusedlstm: no room of its own"


def test_the_exit_status_of_a_command(tmp_path):
    log = report.Log(tmp_path / "log")
    command = [sys.executable, "-c", "print('words'); raise SystemExit(3)"]
    assert children.run(command, 60, log, os.environ, tmp_path, None, lambda: 5) == 3
    assert (tmp_path / "log").read_text() == "words\n"


def test_the_process_of_the_user_imports_no_torch():
    program = "import sys, gpu_visit.visit, gpu_visit.gpu; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(TOOLS)}).returncode == 0


def test_an_incomplete_kit_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*kit\.json, found none"):
        Kit(tmp_path)


def test_constants_of_the_model():
    found = {name: measured for name, _, measured in findings.model_constants(CONSTANTS)}
    assert found == {
        "cluster_latency": 300.0,
        "cluster_bytes": pytest.approx(64512 / 4208, abs=0.05),
        "grid_latency": 900.0,
        "mma": 4.5,
        "mma_latency": 33.0,
    }


def test_speed_against_cudnn():
    assert findings.speedups(SPEED) == [
        ("forward", "tf32", "1.00", "0.50 H=512 B=8", "2.00 H=64 B=8"),
        ("forward+backward", "tf32", "3.00", "3.00 H=64 B=8", "3.00 H=64 B=8"),
    ]


def test_tables():
    step = {"seconds": 1.5, "failures": [], "rows": []}
    steps = {"tests": step, "constants": step | {"rows": CONSTANTS}, "speed": step | {"rows": SPEED}}
    steps["load"] = step | {"failures": ["exit status 1: nvidia-smi"]}
    short = report.summary(steps, 80)
    full = report.everything({"first": {"kit": {}, "device": None, "steps": steps}})
    for text in (short, full):
        words = [" ".join(line.split()) for line in text.splitlines()]
        assert "| tests | 1.5 | 0 | 0 | passed |" in words
        assert "| load | 1.5 | 0 | 0 | 1 FAILED |" in words
        assert "| grid_latency | 850.0 | 900.0 |" in words
        assert "load: exit status 1: nvidia-smi" in text
    assert "resident clusters" not in short and "resident clusters" in full and "[0, 1]" in full
    many = {"tests": step | {"rows": [{"name": f"test {i}", "failed": "no " * 99} for i in range(99)]}}
    lines = report.summary(many, 80).splitlines()
    assert max(map(len, lines)) == 80 and lines[-1] == "... and 59 more, see report.md"


def test_rows_are_written_as_they_come(tmp_path):
    kept = report.Report(tmp_path, "first", {})
    record = kept.begin("speed")
    kept.add(record, {"name": "a"})
    assert json.loads((tmp_path / "report.json").read_text())["first"]["steps"]["speed"]["rows"] == [{"name": "a"}]
    kept.add(record, {"name": "b"})
    assert '{"name": "b"}' in (tmp_path / "log.txt").read_text()
    again = report.Report(tmp_path, "second", {})
    again.end(again.begin("tests"), 1, [])
    assert set(json.loads((tmp_path / "report.json").read_text())) == {"first", "second"}
