"""A temporary folder; slow tests first; the fixtures, in processes that run tests."""

import gc
import os
import sys
import tempfile
from pathlib import Path

import pytest

gc.disable()  # until the tests run: next to nothing that is made before is garbage
# By default PyTorch's threads spin while they wait, in time that other test processes would have. Read as it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# `benchmarks` and `examples` for plain `pytest`. At the end, so that an installed fusedlstm comes before the sources.
sys.path.append(str(Path(__file__).resolve().parent.parent))

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ

# On a GPU the tests are of our kernels: set, but empty, it leaves cuDNN out.
os.environ.setdefault("FUSEDLSTM_PLAN", "")


def pytest_configure(config):
    """All that tests leave goes when they end: torch.compile alone leaves hundreds of megabytes of headers and code.

    A process that only starts others does without PyTorch: they would wait for it.
    """
    if IS_WORKER or config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("shared_fixtures")
    if IS_WORKER:
        return  # its folder is that of the process that started it
    folder = tempfile.TemporaryDirectory(prefix="fusedlstm-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ["TMPDIR"] = tempfile.tempdir = folder.name


def pytest_collection_modifyitems(items):
    """The slow ones first: at the end, all test processes but one would wait for it."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    """Torch and the collected tests stay: the garbage collector need not go through their millions of objects again.
    Nor need it come for every 700 objects: in tests that compile it took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    gc.enable()
