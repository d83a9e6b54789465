"""Writes the ninja file of the native libraries and runs it, or its commands where there is no ninja.

Three files come out, and none of them needs the others to load:

    lib/libfusedlstm_cpu.so    operator schemas and CPU kernels; no Python symbols
    lib/libfusedlstm_cuda.so   CUDA kernels; no Python symbols, static CUDA runtime
    _core.<abi>.so             planner and build facts for Python, by pybind11; no torch

The two libraries use the LibTorch stable ABI, so that one build serves every torch from 2.10 on.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NamedTuple

import without_ninja
from build_variables import is_set, jobs, words_of
from cuda_toolkit import Toolkit, compression_flags, find_toolkit, gencode_flags, wanted_archs
from find_torch import find_torch, torch_version, unfit_torch
from ninja_file import NAMESPACE, NinjaFile

ROOT = Path(__file__).resolve().parent.parent
BUILD_DIR = ROOT / "build/native"

# Oldest torch whose stable ABI the libraries may use; the wheel's `torch>=2.10` says the same.
OLDEST_TORCH = (2, 10)
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000ULL".format(*OLDEST_TORCH)

OLDEST_GCC = 11  # whose C++20 has all that the sources use

# The instruction sets of each processor. A file csrc/cpu/instances/*_<name>.cpp is compiled for that processor alone,
# with these flags, and only it: the rest must run on any of its kind.
_AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512"
ISA_FLAGS = {
    "x86_64": {
        "avx2": "-mavx2 -mfma -mf16c",
        "avx_vnni": "-mavx2 -mfma -mf16c -mavxvnni",
        "avx512": _AVX512,
        "avx512_vnni": f"{_AVX512} -mavx512vnni",
        "avx512_bf16": f"{_AVX512} -mavx512bf16",
        "avx512_amx": f"{_AVX512} -mavx512vnni -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16",
    },
    # Which each of them has. Scheduled before registers are given out, a tile's loads push its sums onto the stack.
    "aarch64": {"neon": "-fno-schedule-insns"},
}

# For files csrc/cpu/instances/quantized_*.cpp: results of int8 layers are the same on every instruction set.
QUANTIZED_FLAGS = ["-ffp-contract=off"]

# Not -ffast-math: NaN and infinity must pass through as they do in nn.LSTM.
HOST_FLAGS = [
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
    "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", f"-ffile-prefix-map={ROOT}=.",
]  # fmt: skip
# Includes are named from csrc/ on, but for those of the same folder.
COMMON_FLAGS = ["-std=c++20", "-O3", f"-I{os.path.relpath(ROOT / 'csrc', BUILD_DIR)}"]


class Tools(NamedTuple):
    """What the environment says that is to be built with."""

    torch_dir: Path
    cxx: str
    toolkit: Toolkit | None  # None where the CUDA library is not to be built
    archs: list[str]

    @classmethod
    def find(cls) -> Tools:
        torch_dir = find_torch()
        if torch_dir is None:
            raise SystemExit(
                f"fusedlstm: expected torch >= 2.10 to build for, found {unfit_torch()} "
                "(pip install --upgrade torch, or set FUSEDLSTM_TORCH_DIR)"
            )
        toolkit = _toolkit_to_use(torch_version(torch_dir)["cuda"])
        archs = wanted_archs() if toolkit else []
        return cls(torch_dir, compiler(), toolkit if archs else None, archs)

    def facts(self, version: str) -> dict:
        """What build.json says of a build of this version."""
        says = subprocess.run([*shlex.split(self.cxx), "--version"], capture_output=True, text=True).stdout
        return {
            "version": version,
            "torch_headers": torch_version(self.torch_dir)["version"],
            "compiler": says.splitlines()[0],
            "processor": machine_of(self.cxx),
            "cuda_toolkit": self.toolkit.version if self.toolkit else None,
            "cuda_archs": self.archs,
        }


def build(version: str, namespace: str = NAMESPACE, folder: str = "") -> dict[str, Path]:
    """Compiles what is out of date; returns the built files by their place in the package.

    namespace, folder: see `NinjaFile`. Two builds that would undo each other's work have different folders.
    """
    tools = Tools.find()
    torch_dir, cxx, toolkit, archs = tools
    _demand_new_compiler(cxx)
    host_flags = [*COMMON_FLAGS, *HOST_FLAGS, *words_of("CXXFLAGS")]

    nvcc = shlex.quote(str(toolkit.nvcc)) if toolkit else "nvcc"
    # Relative to where ninja runs: the linker's option could not hold every character of a path.
    build_dir = build_dir_of(machine_of(cxx))
    exports = os.path.relpath(ROOT / "csrc/exports.map", build_dir)
    ninja = NinjaFile(namespace, folder, cxx=cxx, nvcc=nvcc, exports=exports)
    with_headers = [*host_flags, *_torch_headers(torch_dir)]
    torch_flags = [*with_headers, TORCH_TARGET]
    _cpu_library(ninja, torch_flags, torch_dir, cxx)
    if toolkit:
        _cuda_library(ninja, torch_flags, torch_dir, toolkit, archs, cxx)
    if not is_set("FUSEDLSTM_NO_PYBIND"):
        _core_module(ninja, [*with_headers, f'-DFUSEDLSTM_VERSION="{version}"'], cxx)

    with one_build_at_a_time(build_dir):
        manifest, facts = build_dir / f"{folder}build.ninja", build_dir / f"{folder}lib/build.json"
        facts.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(ninja.text(), encoding="utf-8")
        # The folder is build_dir for all, so that one log knows every object.
        if program := ninja_program():
            command = [program, "-C", str(build_dir), "-f", str(manifest), f"-j{jobs()}"]
            succeeded = subprocess.run(command).returncode == 0
        else:
            print("fusedlstm: found no ninja, so every file is compiled again (pip install ninja)", flush=True)
            succeeded = without_ninja.run(ninja.commands(), build_dir, jobs())
        if not succeeded:
            raise SystemExit("fusedlstm: the native build failed; the compiler's message is above")
        facts.write_text(json.dumps(tools.facts(version), indent=2) + "\n")
    shipped = {name: build_dir / output for name, output in ninja.outputs.items() if not name.startswith("stand_in/")}
    return {**shipped, "lib/build.json": facts}


def _cpu_library(ninja: NinjaFile, flags: list[str], torch_dir: Path, cxx: str) -> None:
    isa_flags = _isa_flags_of(cxx)
    if not isa_flags:
        flags = [*flags, "-DFUSEDLSTM_PORTABLE"]  # tells the chooser of kernels that no others exist
    objects = [ninja.object(ROOT / "csrc/library.cpp", flags)]
    for source, own in cpu_sources(isa_flags):
        objects.append(ninja.object(source, [*flags, *own]))
    # -z defs: a forgotten source file fails here and not when a user imports the package.
    ninja.library("lib/libfusedlstm_cpu.so", objects, [f"-L{torch_dir / 'lib'}", "-ltorch_cpu", "-Wl,-z,defs"])


def cpu_sources(isa_flags: dict[str, str]) -> list[tuple[Path, list[str]]]:
    """What the CPU library of these instruction sets is compiled from, each file with its own flags."""
    every_set = {isa for sets in ISA_FLAGS.values() for isa in sets}
    sources = []
    for source in sorted((ROOT / "csrc/cpu").rglob("*.cpp")):
        isa = next((name for name in every_set if source.stem.endswith(f"_{name}")), None)
        if isa is None or isa in isa_flags:
            own = QUANTIZED_FLAGS if source.stem.startswith("quantized_") else []
            sources.append((source, [*own, *isa_flags.get(isa, "").split()]))
    return sources


def _cuda_library(
    ninja: NinjaFile, flags: list[str], torch_dir: Path, toolkit: Toolkit, archs: list[str], cxx: str
) -> None:
    host_flags = [*flags, "-DUSE_CUDA", "-isystem", str(toolkit.include_dir)]
    # No torch headers for device code: a kernel knows pointers and sizes only.
    device_flags = [
        *COMMON_FLAGS, "--expt-relaxed-constexpr", *compression_flags(toolkit), *gencode_flags(archs),
        # The headers: with a compiler for another processor nvcc looks for them where this toolkit has none.
        "-ccbin", shlex.split(cxx)[-1], "-isystem", str(toolkit.include_dir),
        "--threads", os.environ.get("NVCC_THREADS", "1"),
        *(word for flag in HOST_FLAGS for word in ("-Xcompiler", flag)),
    ]  # fmt: skip
    folder = ROOT / "csrc/cuda"
    objects = [ninja.object(source, host_flags) for source in sorted(folder.glob("*/*.cpp"))]
    objects += [ninja.object(source, device_flags, rule="nvcc") for source in sorted(folder.glob("*/*.cu"))]
    # Needs libtorch_cuda.so by name only: an empty stand-in serves, also where torch itself is a CPU build.
    stand_in = ["-x", "c++", "/dev/null", "-Wl,-soname,libtorch_cuda.so"]
    ninja.library(
        "lib/libfusedlstm_cuda.so",
        [*objects, ninja.library("stand_in/libtorch_cuda.so", [], stand_in)],
        # The static runtime: a shared one would have to be the very version that torch brings.
        [
            f"-L{torch_dir / 'lib'}",
            "-ltorch_cpu",
            f"-L{toolkit.library_dir}",
            "-lcudart_static",
            "-ldl",
            "-lrt",
            "-lpthread",
        ],
    )


def _core_module(ninja: NinjaFile, flags: list[str], cxx: str) -> None:
    suffix, python = extension_suffix(machine_of(cxx)), sysconfig.get_path("include")
    # pybind11's headers come with torch's, which refuse TORCH_TARGET in torch 2.11; nothing else of torch is used.
    flags = [*flags, "-isystem", python, f"-ffile-prefix-map={python}=."]
    sources = [ROOT / "csrc/core_module.cpp", *sorted((ROOT / "csrc/cuda/host").glob("plan*.cpp"))]
    objects = [ninja.object(source, flags, folder=f"objects{suffix}") for source in sources]
    ninja.library(f"_core{suffix}", objects, [])


def _torch_headers(torch_dir: Path) -> list[str]:
    # The map: check macros in torch's headers write their own file name into the library.
    return ["-isystem", str(torch_dir / "include"), f"-ffile-prefix-map={torch_dir}=torch"]


def _toolkit_to_use(torch_cuda: str | None) -> Toolkit | None:
    """The CUDA toolkit, or None where the CUDA library is not to be built."""
    forced = is_set("FORCE_CUDA")
    if is_set("FUSEDLSTM_SKIP_CUDA_BUILD"):
        return None
    toolkit = find_toolkit()
    if not (torch_cuda or forced):
        if toolkit is not None:
            print(
                "fusedlstm: this torch is a CPU build, so the CUDA library is not built, although there is a CUDA "
                "toolkit; FORCE_CUDA=1 builds it"
            )
        return None
    if toolkit is None and forced:
        raise SystemExit(
            "fusedlstm: FORCE_CUDA=1 needs a CUDA toolkit, found none "
            "(set CUDA_HOME, or pip install nvidia-cuda-nvcc and its companions)"
        )
    if toolkit is None:
        print(
            "fusedlstm: no CUDA toolkit found (CUDA_HOME), so the CUDA library is not built; "
            "FusedLSTM will use PyTorch's own kernels on GPUs"
        )
    return toolkit


def compiler() -> str:
    words = words_of("CXX") or ["g++"]
    if shutil.which(words[0]) is None:
        raise SystemExit(f"fusedlstm: expected a C++20 compiler, found no {words[0]!r} (install g++ >= 11, or set CXX)")
    return shlex.join(words)


def _demand_new_compiler(cxx: str) -> None:
    """Distributions as old as the wheels serve have g++ 8 to 10 by default, whose errors would not name the cause."""
    command = [*shlex.split(cxx), "-dM", "-E", "-x", "c++", "/dev/null"]
    macros = subprocess.run(command, capture_output=True, text=True).stdout
    version = dict(re.findall(r"^#define (__GNUC__|__clang__) (\d+)$", macros, re.MULTILINE))
    if "__clang__" not in version and int(version.get("__GNUC__", OLDEST_GCC)) < OLDEST_GCC:
        raise SystemExit(
            f"fusedlstm: expected g++ >= {OLDEST_GCC} for C++20, got {cxx!r} of version {version['__GNUC__']} "
            "(install a newer one, such as of RHEL's gcc-toolset or conda's gxx, and set CXX)"
        )


def machine_of(cxx: str) -> str:
    """The processor that a compiler makes code for, "x86_64" or "aarch64"; any other is that of this machine."""
    target = subprocess.run([*shlex.split(cxx), "-dumpmachine"], capture_output=True, text=True).stdout
    name = target.partition("-")[0]
    return name if name in ISA_FLAGS else platform.machine()


def extension_suffix(machine: str) -> str:
    """What the name of a module for this version of Python on `machine` ends with; its headers are this machine's."""
    return sysconfig.get_config_var("EXT_SUFFIX").replace(platform.machine(), machine)


def build_dir_of(machine: str) -> Path:
    """Where the objects for a processor are: those for another one than this machine's lie apart."""
    return BUILD_DIR if machine == platform.machine() else BUILD_DIR.with_name(f"{BUILD_DIR.name}-{machine}")


def _isa_flags_of(cxx: str) -> dict[str, str]:
    """The instruction sets to compile for and their flags: all that the processor has, or none."""
    isa_flags = ISA_FLAGS.get(machine_of(cxx), {})
    probe = [*shlex.split(cxx), "-fsyntax-only", "-x", "c++", "/dev/null"]
    probes = [subprocess.run([*probe, *flags.split()], capture_output=True) for flags in isa_flags.values()]
    return isa_flags if all(done.returncode == 0 for done in probes) else {}


def ninja_program() -> str | None:
    if importlib.util.find_spec("ninja"):
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    return shutil.which("ninja")


@contextlib.contextmanager
def one_build_at_a_time(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
