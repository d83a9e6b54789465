"""What tools/gpu_check makes of its measurements; the measurements themselves need a GPU."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scripts

gpu_check = scripts.load("gpu_check")

CONSTANTS = [
    {"what": "resident clusters", "ctas": 16, "bytes": 0, "cycles": 7.0},
    {"what": "cluster exchange, GPU full", "ctas": 2, "bytes": 1024, "cycles": 1.0},
    {"what": "cluster exchange, GPU full", "ctas": 16, "bytes": 65536, "cycles": 4508.0},
    {"what": "cluster exchange, GPU full", "ctas": 16, "bytes": 1024, "cycles": 300.0},
    {"what": "grid exchange, sentinel", "ctas": 64, "bytes": 2048, "cycles": 900.0},
    {"what": "grid exchange, sentinel", "ctas": 64, "bytes": 8192, "cycles": -1.0},  # refused
    {"what": "mma bf16, 1 sums", "ctas": 1, "bytes": 0, "cycles": 16.5},
    {"what": "mma bf16, 4 sums", "ctas": 1, "bytes": 0, "cycles": 4.5},
]
SPEED = [
    {"H": 64, "B": 8, "precision": "tf32", "mode": "forward", "cudnn": 4.0, "automatic": 2.0},
    {"H": 512, "B": 8, "precision": "tf32", "mode": "forward", "cudnn": 4.0, "automatic": 8.0},
    {"H": 64, "B": 8, "precision": "tf32", "mode": "forward+backward", "cudnn": 9.0, "automatic": 3.0},
]


def test_constants_of_the_model():
    found = {name: measured for name, _, measured in gpu_check.model_constants(CONSTANTS)}
    assert found == {
        "kClusterLatency": 300.0,
        "kClusterBytes": pytest.approx(64512 / 4208, abs=0.05),
        "kGridLatency": 900.0,
        "kMma": 4.5,
        "kMmaLatency": 33.0,
    }


def test_speed_against_cudnn():
    assert gpu_check.speedups(SPEED) == [
        ("forward", "tf32", "1.00", "0.50 H=512 B=8", "2.00 H=64 B=8"),
        ("forward+backward", "tf32", "3.00", "3.00 H=64 B=8", "3.00 H=64 B=8"),
    ]


def test_reports():
    step = {"seconds": 1.5, "failures": [], "last_line": "7 passed", "results": None}
    steps = {"tests": step, "constants": step | {"results": CONSTANTS}, "speed": step | {"results": SPEED}}
    steps["sass"] = step | {"failures": ["exit status 1: tools/check_sass"]}
    short, full = gpu_check.summary({"steps": steps}), gpu_check.everything({"steps": steps})
    for text in (short, full):
        assert "| tests | 1.5 | passed: 7 passed |" in text
        assert "| sass | 1.5 | exit status 1: tools/check_sass |" in text
    assert "| kGridLatency | 850.0 | 900.0 |" in short and "resident clusters" not in short
    assert "| resident clusters | 16 | 0 | 7.0 |" in full
    assert "| step | seconds | outcome |" in gpu_check.summary({"steps": {"tests": step}})


def test_every_step_has_a_command(tmp_path):
    for step in set(gpu_check.LIMITS) - {"build"}:  # that one asks the GPU for its architecture
        assert gpu_check.commands(step, tmp_path)


def test_a_command_out_of_time_is_stopped_with_what_it_started(tmp_path):
    program = "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    log = tmp_path / "log"
    with log.open("w") as file, pytest.raises(subprocess.TimeoutExpired):
        gpu_check.run([sys.executable, "-c", program], file, os.environ, 3)
    child = Path("/proc", log.read_text().split()[0], "stat")
    deadline = time.monotonic() + 10
    with contextlib.suppress(OSError):  # it is gone
        while child.read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_the_exit_status_of_a_command(tmp_path):
    with (tmp_path / "log").open("w") as file:
        assert gpu_check.run([sys.executable, "-c", "raise SystemExit(3)"], file, os.environ, 60) == 3
