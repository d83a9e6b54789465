"""The project's CUDA kernels on the CPU, in tests.

The kernel sources of csrc/cuda are compiled unchanged for the CPU and run with one fiber per CUDA thread, under a
checker that knows CUDA's rules of ordering; README.md beside this file lists what it reports. `module()` has the host
code of csrc/cuda/host/layer.h and its argument structs, in which pointers are integers.
"""

import functools
from contextlib import contextmanager

from . import build


@functools.cache
def module():
    """The compiled module, built first if needed."""
    return build.load(build.build())


class Memory:
    """The device memory of one call: tensors that a kernel may touch. Anything else that it touches is an error.

    Args:
        module: a module of build.load(); by default that of the kernels in the tree.
    """

    def __init__(self, module=None):
        self.module = module or globals()["module"]()
        self._registered = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for pointer in self._registered:
            self.module.unregister_buffer(pointer)
        self._registered.clear()

    def pointer(self, tensor, name, *, initialised=True):
        """The address of a tensor, registered. If not initialised, reading it before writing is an error."""
        if tensor.data_ptr() not in self._registered:
            self._registered[tensor.data_ptr()] = tensor  # kept alive while the kernel may use it
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
            bytes = (last + 1) * tensor.element_size() if tensor.numel() else 0
            self.module.register_buffer(tensor.data_ptr(), bytes, name, initialised)
        return tensor.data_ptr()


@contextmanager
def options(module, **values):
    """Options of the runtime for the time of a block; emulator.h says which there are."""
    current = module.options()
    before = {name: getattr(current, name) for name in values}
    for name, value in values.items():
        setattr(current, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(current, name, value)
