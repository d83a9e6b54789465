"""The settings of builds for others: on systems as old as those of torch's wheels, with drivers from CUDA 12 on.

Whatever the build machine is: see old_libraries.py for its C and C++ libraries, cuda12_toolkit.py for its CUDA toolkit,
and foreign_libraries.py for what a build for another processor is linked with.
"""

import os
import platform
import shlex
from pathlib import Path

import cuda12_toolkit
import cuda_toolkit
import foreign_libraries
import native_build
import old_libraries

BUILD = Path(__file__).resolve().parent.parent / "build"


def settings(machine: str, cpu_only: bool) -> dict[str, str]:
    """Environment variables for a build for `machine`, on top of those that are set; makes what they name."""
    cxx = compiler_for(machine)
    with_cuda = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": cuda_toolkit.RELEASE_ARCHS}
    # Without a toolkit the build says what is missing.
    toolkit = None if cpu_only else cuda_toolkit.find_toolkit()
    # Another build may be linking with what is made here.
    with native_build.one_build_at_a_time(native_build.build_dir_of(machine)):
        if toolkit:
            os.environ["CUDA_HOME"] = str(cuda12_toolkit.make(BUILD / "cuda12", toolkit))
            toolkit = cuda_toolkit.find_toolkit()
        link_options = libraries(BUILD / tag_of(machine), machine, cxx, toolkit)
    own = {"CXX": cxx, "LDFLAGS": f"{os.environ.get('LDFLAGS', '')} {shlex.join(link_options)}"}
    return {**({"FUSEDLSTM_SKIP_CUDA_BUILD": "1"} if cpu_only else with_cuda), **os.environ, **own}


def tag_of(machine: str) -> str:
    """That of torch's own wheels: an older one would admit nobody, a newer one refuses systems that torch runs on."""
    return f"manylinux_2_28_{machine}"


def compiler_for(machine: str) -> str:
    """CXX, or this machine's or the cross compiler of the usual name."""
    if machine != platform.machine() and not os.environ.get("CXX"):
        os.environ["CXX"] = f"{machine}-linux-gnu-g++"
    cxx = native_build.compiler()
    if (made := native_build.machine_of(cxx)) != machine:
        raise SystemExit(f"fusedlstm: expected a compiler for {machine} in CXX, got {cxx!r} for {made}")
    return cxx


def libraries(folder: Path, machine: str, cxx: str, toolkit: cuda_toolkit.Toolkit | None) -> list[str]:
    """Fills `folder` with what to link with, the CUDA library too where there is a toolkit; the linker's options."""
    link_options = old_libraries.make(folder, folder.name, shlex.split(cxx))
    if machine != platform.machine():
        foreign_libraries.add_torch(folder, native_build.find_torch(), shlex.split(cxx))
        if toolkit:
            foreign_libraries.add_cuda_runtime(folder, machine, toolkit.version)
    return link_options
