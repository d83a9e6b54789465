"""The hooks of conftest.py, and the fixtures that tests on a GPU rely on, with a stand-in for PyTorch and the GPU."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import shared_fixtures

# What shared_fixtures.py takes of it: to import PyTorch in every process would take seconds.
TORCH = """
from types import SimpleNamespace

cuda = SimpleNamespace(is_available=lambda: False, is_initialized=lambda: False)
switch = SimpleNamespace(allow_tf32=False)
backends = SimpleNamespace(cudnn=switch, cuda=SimpleNamespace(matmul=switch))
device = str
set_num_threads = lambda number: None
default_generator = SimpleNamespace(manual_seed=set_num_threads)
"""
TESTS = """
import torch

def test_before():
    pass

def test_that_faults():
    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, synchronize

def test_after():
    assert not torch.cuda.is_initialized()
"""


def run_pytest(folder, *options):
    """pytest in a process of its own, with the fixtures of these tests. Returns its exit status and what it printed."""
    (folder / "torch.py").write_text(TORCH)
    (folder / "test_gpu.py").write_text(TESTS)
    options = ["-v", "-p", "conftest", "-p", "no:cacheprovider", *options]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = kept | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), str(Path(conftest.__file__).parent)]),
    }
    command = [sys.executable, "-m", "pytest", *options, "test_gpu.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_slow_tests_come_first(request):
    names = [item.name for item in request.session.items if item.get_closest_marker("slow")]
    assert names == [item.name for item in request.session.items[: len(names)]]
    slow, quick, other = (SimpleNamespace(get_closest_marker=lambda name, m=m: m) for m in ("slow", None, None))
    items = [quick, slow, other]
    conftest.pytest_collection_modifyitems(items)
    assert items == [slow, quick, other]


def test_who_only_starts_others_imports_no_torch(tmp_path):
    pytest.importorskip("xdist")
    (tmp_path / "says.py").write_text("import sys\ndef pytest_unconfigure(): print('torch' in sys.modules)")
    status, printed = run_pytest(tmp_path, "-p", "xdist", "-p", "says", "-n", "1", "-k", "before")
    assert status == 0 and "PASSED test_gpu.py::test_before" in printed
    assert printed.splitlines()[-1] == "False", printed


LOST = "the CUDA context is lost after test_gpu.py::test_that_faults: CUDA error: an illegal memory access"


def test_a_lost_context_costs_one_test_under_xdist(tmp_path):
    pytest.importorskip("xdist")
    status, printed = run_pytest(tmp_path, "-p", "xdist", "-n", "1")
    assert LOST in printed and "crashed while running 'test_gpu.py::test_that_faults'" in printed
    assert status == 1 and "PASSED test_gpu.py::test_after" in printed, printed


def test_a_lost_context_ends_the_tests_without_xdist(tmp_path):
    status, printed = run_pytest(tmp_path)
    assert status == shared_fixtures.CONTEXT_LOST and LOST in printed
    assert "test_before PASSED" in printed and "test_after PASSED" not in printed
