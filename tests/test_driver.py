"""The CUDA library beside drivers of several versions, which a stub reports. Needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusedlstm import _library

pytestmark = pytest.mark.skipif(not _library.CUDA_LIBRARY.is_file(), reason="built without the CUDA library")

# Torch's own guard would ask torch's own runtime first, which may be none or have other demands.
NO_DEVICE_GUARD = "int aoti_torch_create_device_guard(int device, void** guard) { *guard = 0; return 0; }"
ASK_THE_RUNTIME = f"""
import os, sys; sys.path.insert(0, {str(_library.CUDA_LIBRARY.parent.parent.parent)!r})
import torch, fusedlstm
for driver in sys.argv[1:]:
    if not os.fork():  # the runtime asks for the driver's version once in a process
        os.environ["STUB_DRIVER"] = driver
        torch.ops.load_library({str(_library.CUDA_LIBRARY)!r})
        print(repr(torch.ops.fusedlstm._cuda_obstacle(0)), flush=True)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"driver {{driver}}")
"""
DRIVERS = (11, 8), (12, 0), (12, 2), (12, 8), (13, 0), (14, 1)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    """A folder with the stub, and with what a CPU build of torch lacks of the libraries of a CUDA build."""
    folder = tmp_path_factory.mktemp("libraries")
    compile_c(folder / "libcuda.so.1", (Path(__file__).parent / "stub_driver.c").read_text())
    compile_c(folder / "no_device_guard.so", NO_DEVICE_GUARD)
    torch_libraries = Path(torch.__file__).parent / "lib"
    if not (torch_libraries / "libtorch_cuda.so").is_file():
        lacking = symbols("--undefined-only", _library.CUDA_LIBRARY) - symbols(
            "--defined-only", torch_libraries / "libtorch_cpu.so"
        )
        functions = [f"void {name}(void) {{}}" for name in lacking if "torch_" in name]
        compile_c(folder / "libtorch_cuda.so", "\n".join(functions))
    return folder


def compile_c(library, source):
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=source, text=True, check=True)


def symbols(kind, library) -> set[str]:
    done = subprocess.run(["nm", "-D", kind, library], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in done.stdout.splitlines()}


@pytest.fixture(scope="module")
def answers(libraries) -> dict[tuple[int, int], str]:
    """Of the runtime beside each driver. Torch is loaded once."""
    versions = [str(1000 * major + 10 * minor) for major, minor in DRIVERS]
    settings = {
        "LD_LIBRARY_PATH": str(libraries),
        "LD_PRELOAD": str(libraries / "no_device_guard.so"),
        "STUB_DRIVER": versions[0],  # for who asks while torch is loaded
    }
    command = [sys.executable, "-c", ASK_THE_RUNTIME, *versions]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(DRIVERS, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("driver", DRIVERS, ids="{0[0]}.{0[1]}".format)
def test_the_runtime_refuses_the_drivers_that_python_names(driver, answers, monkeypatch):
    major, minor = driver
    is_refused = "driver version is insufficient" in answers[driver]
    assert is_refused or "operation not supported" in answers[driver]  # the answer of the stub

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(_library, "driver_version", lambda: driver)
    reason = _library._why_not_to_load_cuda()
    assert is_refused == (reason is not None and f"got one for CUDA {major}.{minor}" in reason)
