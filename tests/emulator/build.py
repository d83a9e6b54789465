"""Builds the kernels for the CPU: the module ``_emulated`` from csrc/cuda and the emulator beside this file.

The module holds the host code of csrc/cuda/host and the emulator's self-tests. Objects are kept in
``build/emulator`` under the repository, named by a hash of everything that goes into them, so that only what changed
is compiled again. Needs a C++20 compiler (g++ 12 or later) and the headers of pybind11 that come with torch, no CUDA
toolkit.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import count
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "emulator"
CSRC = ROOT / "csrc"
PTX = HERE.parent / "ptx"  # what runs the PTX of the kernels in their place
RUNTIME_HEADERS = [
    *HERE.glob("*.h"),
    *HERE.glob("include/*.h"),
    CSRC / "dtypes.h",
    CSRC / "cuda/device/primitives.cuh",
    CSRC / "cuda/host/kernel_attributes.h",
]
JOBS = 2  # at a time, of each process
KEPT_SECONDS = 24 * 60 * 60  # that what nobody used is kept in the cache

COMMON_FLAGS = [
    "-std=c++20", "-fPIC", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fno-gnu-unique",
    "-DFUSEDLSTM_EMULATE",
]  # fmt: skip
# Kernels report every access: -fsanitize=thread compiles the calls in, check.cpp answers them instead of the
# sanitizer's library.
KERNEL_FLAGS = [
    "-O2", "-x", "c++", "-fsanitize=thread,alignment,bounds", "--param", "tsan-instrument-func-entry-exit=0",
]  # fmt: skip
RUNTIME_FLAGS = ["-O3", "-fno-semantic-interposition"]
BINDING_FLAGS = ["-O1", "-g0"]
# For what is compiled to run once; without inlining, g++ misses accesses (to_acc). Misaligned addresses and indices
# past the end are looked for in the sources as they are. Without the macro, kernels take the prefix.h of host code.
CHANGED_FLAGS = ["-O1", "-fno-sanitize=alignment,bounds", "-U__SANITIZE_THREAD__"]
LINK_FLAGS = ["-shared", "-Wl,-Bsymbolic-functions"]


def compiler():
    return os.environ.get("CXX", "g++")


@dataclass(frozen=True)
class Unit:
    """One source, and what its object depends on: an object is the same wherever `include` folders are."""

    source: Path
    flags: list
    include: list
    headers: list
    takes_prefix: bool = False  # whether prefix.h goes before it, compiled already

    def compile(self, suffix=".o"):
        """Compiles unless an object of the same content exists. Returns the object's path."""
        key = hashlib.sha256()
        for part in (compiler(), *COMMON_FLAGS, *self.flags):
            key.update(part.encode() + b"\0")
        for file in (self.source, *sorted(self.headers, key=lambda p: p.name)):
            key.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        target = CACHE / f"{self.source.stem}-{key.hexdigest()[:16]}{suffix}"
        include = [f"-I{folder}" for folder in self.include]
        command = [compiler(), *COMMON_FLAGS, *self.flags, *include, "-c", self.source]
        if self.takes_prefix:
            header = Unit(HERE / "prefix.h", [*CHANGED_FLAGS, "-x", "c++-header"], self.include[:-1], RUNTIME_HEADERS)
            command += ["-include", header.compile(".h.gch").with_suffix("")]  # g++ looks for .gch beside it
        return made(target, command)


@contextmanager
def locked(file, how):
    """A lock of fcntl.flock() on the file for the time of a block."""
    with open(file, "w") as lock:
        fcntl.flock(lock, how)
        yield


def made(target, command):
    """The file `target`, made by the command with "-o" behind it where there is none.

    Parallel test processes make a file once, and others at the same time.
    """
    with locked(target.with_suffix(".lock"), fcntl.LOCK_EX):
        if not target.exists():
            temporary = target.with_suffix(".tmp")
            run([*command, "-o", temporary])
            os.replace(temporary, target)
        os.utime(target)
    return target


def run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[-4000:]}")


def units(changed):
    """Everything that goes into the module. changed: {name of a source of csrc: the copy of csrc to take it from}."""

    def unit(source, flags, headers):
        csrc, is_changed = changed.get(source.name, CSRC), source.name in changed
        flags = [*flags, *(CHANGED_FLAGS if is_changed else [])]
        include = [HERE, HERE / "include", csrc]
        return Unit(csrc / source.relative_to(CSRC), flags, include, headers(csrc), takes_prefix=is_changed)

    for source in sorted(CSRC.glob("cuda/device/*.cu")):
        yield unit(source, KERNEL_FLAGS, lambda csrc: [*host_headers(csrc), *csrc.glob("cuda/device/*.cuh")])
    include = [HERE, HERE / "include", CSRC, PTX]
    # torch brings pybind11's headers along; nothing else of it is used. As flags, so that each Python has its object.
    torch = Path(importlib.util.find_spec("torch").origin).parent
    python = [f"-isystem{torch / 'include'}", f"-isystem{sysconfig.get_paths()['include']}"]
    for source in sorted(CSRC.glob("cuda/host/*.cpp")):
        yield unit(source, RUNTIME_FLAGS, host_headers)
    for source in sorted(HERE.glob("*.cu")):
        yield Unit(source, KERNEL_FLAGS, include, RUNTIME_HEADERS)
    for source in sorted(HERE.glob("*.cpp")):
        if source.name == "module.cpp":
            headers = [*host_headers(CSRC), *CSRC.glob("cuda/binding/*.h"), PTX / "bind.h"]
            yield Unit(source, BINDING_FLAGS + python, include, headers)
        elif source.name == "host.cpp":
            yield Unit(source, RUNTIME_FLAGS, include, host_headers(CSRC))
        else:
            yield Unit(source, RUNTIME_FLAGS, include, RUNTIME_HEADERS)
    for source in sorted(PTX.glob("*.cpp")):
        flags = BINDING_FLAGS + python if source.name == "bind.cpp" else RUNTIME_FLAGS
        yield Unit(source, flags, include, [*RUNTIME_HEADERS, *PTX.glob("*.h")])


def host_headers(csrc):
    return [*RUNTIME_HEADERS, *csrc.glob("*.h"), *csrc.glob("cells/*.h"), *csrc.glob("cuda/host/*.h")]


def build(changed=None, report=None):
    """Compiles and links the module. Returns the path of the library. Skips the test beside an installed package.

    Args:
        changed: see units().
        report: report(unit, count) of each unit that is compiled, of so many.
    """
    if not CSRC.is_dir():
        pytest.skip("compiles the sources of the kernels, which are in the source tree only")
    CACHE.mkdir(parents=True, exist_ok=True)
    parts = list(units(changed or {}))

    def compile(unit):
        compiled = unit.compile()
        if report:
            report(unit, len(parts))
        return compiled

    with locked(CACHE / "lock", fcntl.LOCK_SH):
        with ThreadPoolExecutor(JOBS) as pool:
            objects = list(pool.map(compile, parts))
        key = hashlib.sha256(" ".join(o.name for o in objects).encode()).hexdigest()[:16]
        folder = CACHE / key
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        library = made(folder / f"_emulated{EXTENSION_SUFFIXES[0]}", [compiler(), *LINK_FLAGS, *objects, "-ldl"])
    forget_unused()
    return library


def forget_unused():
    """Removes what is old, unless another process builds and may be about to use it."""
    with suppress(BlockingIOError), locked(CACHE / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
        for entry in CACHE.iterdir():
            if time.time() - entry.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def primitives_command(nvcc, arch, library):
    """The command that compiles primitive_kernels.cu for a GPU: test_primitives.py takes the library that it writes.

    Args:
        nvcc: the compiler.
        arch: what it takes for -arch: "sm_90a", or "native" for the GPU at hand.
        library: the path to write.
    """
    flags = ["-std=c++20", "-O2", "--expt-relaxed-constexpr", f"-arch={arch}", "-shared", "-Xcompiler", "-fPIC"]
    sources = [HERE / "primitive_kernels.cu", CSRC / "cuda/host/kernel_attributes.cpp"]
    return [str(nvcc), *flags, f"-I{CSRC}", *map(str, sources), "-o", str(library)]


def build_primitives_for_gpu():
    """Compiles primitive_kernels.cu for the GPU at hand. Returns the path of a library for ctypes."""
    CACHE.mkdir(parents=True, exist_ok=True)
    library = CACHE / "primitives.so"
    run(primitives_command("nvcc", "native", library))
    return library


def load(library):
    """Imports the module from its file; several versions of it can live side by side."""
    # pybind11 keeps one module per name, so each version has one of its own.
    spec = importlib.util.spec_from_file_location(f"{library.parent.name}._emulated", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    numbers = count(1)
    build(report=lambda unit, total: print(f"emulator [{next(numbers)}/{total}] {unit.source.name}", flush=True))
