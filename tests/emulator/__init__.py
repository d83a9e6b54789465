"""The project's CUDA kernels on the CPU, in tests.

The kernel sources of csrc/cuda are compiled unchanged for the CPU and run with one fiber per CUDA thread, under a
checker that knows CUDA's rules of ordering; README.md beside this file lists what it reports. Typical use:

    with emulator.Memory() as memory:
        rows = memory.struct("RowStates", T=T, B=B, N=T * B, H=H, R=H, D=1, h_0=h_0, c_0=c_0)
        args = memory.struct("ForwardArgs", outputs={"output", "h_n"}, rows=rows, dtype="float32", output=output, ...)
        emulator.module().launch_forward(plan, args)
"""

import functools
from contextlib import contextmanager

import torch

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

    def pointer(self, tensor, name, *, output=False):
        """The tensor's address, registered. An output is filled with NaN, and reading it before writing is an error."""
        if tensor.numel() == 0:
            return 0
        if output:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.data_ptr() not in self._registered:
            self._registered[tensor.data_ptr()] = tensor  # kept alive while the kernel may use it
            self.module.register_buffer(tensor.data_ptr(), span * tensor.element_size(), name, not output)
        return tensor.data_ptr()

    def struct(self, kind, *, outputs=(), **fields):
        """An argument struct of csrc/cuda/launch.h. Tensors and tuples of tensors become pointers, None becomes null."""
        result = getattr(self.module, kind)()
        for name, value in fields.items():
            if isinstance(value, torch.Tensor):
                value = self.pointer(value, name, output=name in outputs)
            elif isinstance(value, (tuple, list)):
                pointers = [self.pointer(v, f"{name}[{i}]", output=name in outputs) for i, v in enumerate(value)]
                value = pointers + [0] * (2 - len(pointers))
            elif value is None:
                value = 0
            setattr(result, name, value)
        return result


@contextmanager
def options(module, **values):
    """Options of the runtime (seed, preempt, sm_count, smem_limit, max_cluster_size) for the time of a block."""
    current = module.options()
    before = {name: getattr(current, name) for name in values}
    for name, value in values.items():
        setattr(current, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(current, name, value)
