"""Attributes of the CUDA kernels, which the host code sets once on each device; on the emulated GPU."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import emulator
import planted_faults
import pytest
import torch
from emulated_layer import Emulated, Layer
from planted_faults import Fault

NEW_DEVICES = itertools.count(1)  # none of which has been told of a kernel in this process

# Of LOCAL much shared memory or little, of CLUSTER, which always asks for much, more CTAs than any kernel may have, or
# fewer.
LAUNCHES = {
    "much shared memory": ("local:128x8", 100, torch.float32, 1),
    "little shared memory": ("local:64x8", 20, torch.bfloat16, 0),
    "large cluster": ("cluster:16x8", 140, torch.bfloat16, 2),
    "small cluster": ("cluster:16x8", 40, torch.bfloat16, 1),
}


def calls_of_forward(module, launch, device):
    """How many attributes a forward pass on the device sets."""
    request, H, dtype, _ = LAUNCHES[launch]
    run = Emulated(module, Layer(2, 3, H, dtype=dtype, allow_tf32=True), request)
    before = module.attribute_calls()
    with emulator.options(module, device=device):
        run.forward()
    return module.attribute_calls() - before


@pytest.mark.parametrize("launch", LAUNCHES)
def test_set_at_the_first_launch_on_each_device(launch):
    """The emulator refuses a launch without."""
    devices, once = [next(NEW_DEVICES), next(NEW_DEVICES)], LAUNCHES[launch][-1]
    found = [calls_of_forward(emulator.module(), launch, device) for device in devices * 2]
    assert found == [once, once, 0, 0]


def test_set_anew_for_more():
    """Shared memory beyond what was allowed, clusters on top of it; never for less."""
    module, kernel = emulator.module(), next(NEW_DEVICES)
    attributes, calls = module.KernelAttributes(), []
    for smem_bytes, cluster_size in [(49152, 8), (60000, 8), (50000, 8), (60001, 1), (60001, 16), (0, 9), (60002, 9)]:
        before = module.attribute_calls()
        assert attributes.allow_each([kernel], smem_bytes, cluster_size) == [0]
        calls.append(module.attribute_calls() - before)
    assert calls == [0, 1, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("cluster_size", [1, 16])
def test_what_failed_is_tried_again(cluster_size):
    module, attributes = emulator.module(), emulator.module().KernelAttributes()
    with emulator.options(module, attribute_errors=[1]):
        smem_bytes = 60000 if cluster_size == 1 else 0
        assert attributes.allow_each([5, 5, 5], smem_bytes, cluster_size) == [1, 0, 0]


def test_a_launch_fails_with_the_error():
    run = Emulated(emulator.module(), Layer(2, 3, 100, allow_tf32=True), "local:128x8")
    with (
        emulator.options(run.emu, device=next(NEW_DEVICES), attribute_errors=[701]),
        pytest.raises(RuntimeError, match=r"fusedlstm: .*registers or shared memory are more than the device gives"),
    ):
        run.forward()
    assert run.host.live == 0


def test_set_once_by_many_threads():
    module, threads, kernels = emulator.module(), 8, list(range(1, 2000))
    attributes, before = module.KernelAttributes(), module.attribute_calls()
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda _: attributes.allow_each(kernels, 60000, 16), range(threads)))
    assert found == [[0] * len(kernels)] * threads
    assert module.attribute_calls() - before == 2 * len(kernels)


FILE = "kernel_attributes.cpp"
FAULTS = [
    Fault("for one device only", FILE, "allowed_[{kernel, device}]", "allowed_[{kernel, 0}]",
          "allowed 49152 on device {1}"),
    Fault("for one kernel only", FILE, "allowed_[{kernel, device}]", "allowed_[{nullptr, device}]",
          "allowed 49152 on device {0}"),
    Fault("clusters not remembered", FILE, "allowed.any_cluster_size = true;", "", "set twice"),
    Fault("shared memory not remembered", FILE, "allowed.smem_bytes = smem_bytes;", "", "set twice"),
]  # fmt: skip


@functools.cache
def module_with_faults():
    return planted_faults.module_with(FAULTS, {(FILE,): []})


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_noticed(fault):
    module = module_with_faults()
    assert verdict(module, [next(NEW_DEVICES), next(NEW_DEVICES)]) is None, "the host code as it is"
    devices = [next(NEW_DEVICES), next(NEW_DEVICES)]
    with emulator.options(module, fault=FAULTS.index(fault) + 1):
        assert fault.reported.format(*devices) in verdict(module, devices)


def verdict(module, devices):
    """What a test would say: None, the error, or that attributes were set twice."""
    needing = [launch for launch, (*_, calls) in LAUNCHES.items() if calls]
    other = ("cluster:16x8", 140, torch.float16)  # another kernel with the same attribute
    try:
        for device in devices:
            for launch in needing:
                calls_of_forward(module, launch, device)
            with emulator.options(module, device=device):
                Emulated(module, Layer(2, 3, other[1], dtype=other[2]), other[0]).forward()
        again = [calls_of_forward(module, launch, device) for launch in needing for device in devices]
    except module.EmulationError as error:
        return str(error)
    return "set twice" if any(again) else None
