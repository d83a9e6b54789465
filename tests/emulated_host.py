"""What tests of the CUDA library's host code have in common: problems, the fallback of a device, and small layers."""

import emulator
import torch
from emulated_layer import EVERYTHING, H200, Emulated, Layer


def problem(**options):
    return emulator.module().Problem(**{"T": 3, "B": 5, "H": 600, "dtype": "bfloat16"} | options)


def fallback(ordinal=0):
    return emulator.module().Fallback(H200, ordinal)


def kernel(choice):
    """What FUSEDLSTM_PLAN would call it."""
    return choice.plan.kernel.split()[-1]


def small(**options):
    return Layer(16, 5, 100, dtype=torch.bfloat16, **options)


def run_all(layer, request, launch_errors=()):
    """All results, and the run."""
    run = Emulated(emulator.module(), layer, request)
    with emulator.options(run.emu, launch_errors=list(launch_errors)):
        out = run.forward()
    return out | run.backward(out, EVERYTHING), run


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
