"""The project's CUDA kernels as nvcc compiles them, on the CPU.

Their PTX is translated to C++, instruction by instruction, and runs on the threads and the memory of the emulator, in
the place of the kernels that g++ has compiled. README.md beside this file says what that shows.
"""

import functools
from contextlib import contextmanager

from . import build


@functools.cache
def _symbols(library):
    return build.symbols(library)


@contextmanager
def launched_kernels(module):
    """Yields a list of the names, as g++ gives them, of the kernels that a module launches in the time of a block."""
    launched = []

    def note(offset, _):
        launched.append(_symbols(module.__file__)[offset])
        return 0

    module.substitute_kernels(note)
    try:
        yield launched
    finally:
        module.restore_kernels()


@contextmanager
def kernels_of_ptx(module, change=lambda ptx: ptx, **options):
    """For the time of a block every launch of a module of the emulator runs PTX.

    Args:
        module: of emulator.build.load().
        change: what to run in place of a text of PTX.
        options: of build.ptx_of().

    Yields:
        a list of the names of the kernels that were launched, one after another.
    """
    launched = []

    def find(offset, parameter_bytes):
        kernel = _symbols(module.__file__)[offset]
        launched.append(build.demangled(kernel))
        return build.function_of(change(build.ptx_of(kernel, **options)), kernel, tuple(parameter_bytes))

    build.find_nvcc()  # or skips
    module.substitute_kernels(find)
    try:
        yield launched
    finally:
        module.restore_kernels()
