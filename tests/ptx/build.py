"""From a kernel of csrc/cuda/device to a function of this process: nvcc makes PTX of it, which is translated.

What is made is kept in the cache of the emulator, named by a hash of everything that goes into it.
"""

import ctypes
import functools
import hashlib
import subprocess
import sys

import pytest
from emulator import build

from .text import entry_of
from .translate import SYMBOL, translate

RESIDENT = "recurrence_kernel"  # in the name of those that recurrence.cuh has
ARCH = "sm_90a"  # whose kernels are all there
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr"]
# Not optimised: of seconds, compiling what runs once for milliseconds takes most.
CXX_FLAGS = ["-std=c++20", "-O0", "-g0", "-fPIC", "-ffp-contract=off"]
HEADERS = [build.PTX / "instructions.h", build.PTX / "thread.h"]


@functools.cache
def find_nvcc():
    """The path of nvcc. Skips the test where there is none."""
    folder = build.ROOT / "_build_backend"
    if not folder.is_dir():
        pytest.skip("compiles the sources of the kernels, which are in the source tree only")
    sys.path.append(str(folder))
    from cuda_toolkit import find_toolkit

    toolkit = find_toolkit()
    if toolkit is None:
        pytest.skip("expected a CUDA toolkit, found none: no nvcc to make PTX of the kernels")
    return toolkit.nvcc


@functools.cache
def nvcc_version():
    return subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout


def _key(*parts):
    key = hashlib.sha256()
    for part in parts:
        key.update(part if isinstance(part, bytes) else str(part).encode())
        key.update(b"\0")
    return key.hexdigest()[:16]


def symbols(library):
    """{address: mangled name} of the functions of a library."""
    parts = (line.split() for line in _listed_symbols(library))
    return {int(part[0], 16): part[2] for part in parts if len(part) == 3 and part[1] in "TtWw"}


def _listed_symbols(file):
    return subprocess.run(["nm", file], capture_output=True, text=True, check=True).stdout.splitlines()


@functools.cache
def demangled(name):
    return subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def _source_of_kernels():
    """{mangled name: the source that it is compiled in} of all kernels that the emulator has."""
    found = {}
    for unit in build.units({}):
        if unit.source.suffix == ".cu":
            found |= {line.split()[-1]: unit.source for line in _listed_symbols(unit.compile())}
    return found


@functools.cache
def ptx_of(kernel, together=(), flags=(), arch=ARCH):
    """What nvcc makes of a kernel: the text of the PTX, which has that of others too.

    Args:
        kernel: the name that g++ gives it.
        together: names of kernels that are compiled at once: a second of each compilation is that of headers, a third
            of one that of a kernel.
        flags: more of nvcc's.
        arch: "sm_90a".
    """
    if RESIDENT in kernel:  # of hundreds, which take minutes
        source = build.CSRC / "cuda/device/recurrence.cuh"
        kernels = sorted({kernel} | {name for name in together if RESIDENT in name})
        names = (demangled(name).removeprefix("void ").rpartition("(")[0] for name in kernels)
        lines = [f"auto* const kernel_{i} = &{name};\n" for i, name in enumerate(names)]
    else:
        source, lines = _source_of_kernels()[kernel], []
    text = "".join([f'#include "{source}"\n', *lines])
    included = sorted({*build.CSRC.rglob("*.h"), *build.CSRC.rglob("*.cuh"), source})
    contents = [file.name.encode() + b"\0" + file.read_bytes() for file in included]
    flags = [*NVCC_FLAGS, *flags, f"-arch={arch.replace('sm', 'compute')}"]
    key = _key(nvcc_version(), text.replace(str(build.CSRC), ""), *flags, *contents)
    unit = build.CACHE / f"{source.stem}-{key}.cu"
    unit.write_text(text)
    command = [find_nvcc(), *flags, "-ptx", f"-I{build.CSRC}", unit]
    return build.made(unit.with_suffix(".ptx"), command).read_text()


@functools.cache
def _library(source):
    """The translated kernel of a C++ source, compiled."""
    key = _key(build.compiler(), source, *CXX_FLAGS, *(header.read_bytes() for header in HEADERS))
    file = build.CACHE / f"translated-{key}.cpp"
    file.write_text(source)
    command = [build.compiler(), *CXX_FLAGS, "-shared", f"-I{build.PTX}", "-include", _compiled_header(), file]
    return ctypes.CDLL(str(build.made(file.with_suffix(".so"), command)))


@functools.cache
def _compiled_header():
    """instructions.h as g++ includes it ahead of a kernel, of whose compilation it is the larger part."""
    key = _key(build.compiler(), *CXX_FLAGS, *(header.read_bytes() for header in HEADERS))
    command = [build.compiler(), *CXX_FLAGS, "-x", "c++-header", HEADERS[0]]
    compiled = build.made(build.CACHE / f"instructions-{key}.h.gch", command)
    return compiled.with_suffix("")  # g++ looks for .gch beside it


@functools.cache
def function_of(ptx, kernel, parameter_bytes):
    """The address of the function that a kernel in a text of PTX is translated to. It is launched in every time step.

    Args:
        ptx: the text.
        kernel: the name that g++ gives the kernel.
        parameter_bytes: the sizes of its parameters, as the host passes them. Other sizes in PTX are an error.
    """
    entry = entry_of(ptx, kernel)
    sizes = tuple(parameter.bytes for parameter in entry.parameters)
    assert sizes == parameter_bytes, f"{kernel}: expected parameters of {sizes} bytes, got {parameter_bytes}"
    return ctypes.cast(getattr(_library(translate(entry)), SYMBOL), ctypes.c_void_p).value
