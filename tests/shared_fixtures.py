"""Fixtures of all tests: the device, a fixed seed, the switches of TF32; one thread per test process under xdist; the
end of a process whose CUDA context is lost.
"""

import functools
import os
import sys

import pytest
import torch
from conftest import IS_WORKER
from tf32 import tf32

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
CONTEXT_LOST = 70  # exit status

if IS_WORKER:
    # Several processes share the cores: more threads in each would only wait for one another.
    torch.set_num_threads(1)


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    """Every device that has kernels here."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _end_with_the_cuda_context(request):
    """A fault of a kernel is an error of every later call too: the test that made it must be the last of its process.

    xdist replaces a worker that ends, and says which test it was running; without xdist, all tests end here.
    """
    yield
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        reason = f"the CUDA context is lost after {request.node.nodeid}: {error}"
        if not IS_WORKER:
            pytest.exit(reason, CONTEXT_LOST)
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(reason, file=sys.stderr, flush=True)
        os._exit(CONTEXT_LOST)


@pytest.fixture(autouse=True)
def _seed():
    """As torch.manual_seed, which for each kind of device that has not begun keeps the call and where it came from."""
    torch.default_generator.manual_seed(0)
    if "cuda" in DEVICES:
        torch.cuda.manual_seed_all(0)


@pytest.fixture(autouse=True)
def _strict_float32():
    """Tolerances are those of float32."""
    with tf32(lstm=False, matmul=False):
        yield


@pytest.fixture
def one_thread():
    """For benchmarks: threads of nn.LSTM wait actively, and with other tests beside these two take longer than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cheap_ceilings(monkeypatch):
    """Measuring what the machine can do takes a second for each dtype, and is not under test."""
    from benchmarks.machine import Ceilings

    fixed = Ceilings(mm_flops=1e11, peak_flops=2e11, bandwidth=1e10)
    monkeypatch.setattr("benchmarks.machine.ceilings", lambda *arguments: fixed)


@pytest.fixture
def cheap_inductor():
    """Without headers that are compiled ahead, which pay for themselves after dozens of files only: a model here is
    one to three. The code around the kernels is not optimised, and what is generated has no vectors, for which programs
    would be compiled to try each instruction set."""
    from torch._inductor import config

    settings = {
        "cpp_cache_precompile_headers": False,
        "cpp.vec_isa_ok": False,
        "aot_inductor.precompile_headers": False,
        "aot_inductor.compile_wrapper_opt_level": "O0",
    }
    with config.patch(settings):
        yield


@pytest.fixture(scope="session")
def cheap_onnx():
    """With translations of operators that are made once: at each export, the exporter reads the sources of them all."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture
def forced():
    """torch.ops.fusedlstm._cpu_force, undone after the test."""
    yield torch.ops.fusedlstm._cpu_force
    torch.ops.fusedlstm._cpu_force("", "")


@pytest.fixture
def served(monkeypatch):
    """What ran with frozen weights: names of operators of layers and cells, of a stack one for each layer."""
    from fusedlstm import _frozen
    from fusedlstm.ops import OPERATORS

    names = []

    def watched(operator):
        def call(*arguments):
            layers = arguments[4] if "stack" in operator._opname else 1
            names.extend([operator._opname.replace("stack", "layer")] * layers)
            return operator(*arguments)

        return call

    monkeypatch.setattr(_frozen, "function_of", lambda operator: operator)
    for cell, of in OPERATORS.items():
        kinds = ("frozen", "cell_frozen", "stack_frozen")
        monkeypatch.setitem(OPERATORS, cell, of._replace(**{kind: watched(getattr(of, kind)) for kind in kinds}))
    return names
