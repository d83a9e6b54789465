"""Libraries to link a wheel for another processor with, in place of those of torch and CUDA that this machine has.

Of torch only names are needed: the C functions of its stable ABI, which are the same on every processor. The static
CUDA runtime goes into the wheel; PyPI's package for the other processor has it. Headers of both are this machine's.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import old_libraries
import symbol_versions

# What torch's functions of the stable ABI begin with.
STABLE = ("aoti_torch_", "torch_")


def add_torch(folder: Path, torch_dir: Path, compiler: list[str]) -> Path:
    """Into `folder`, a stand-in for libtorch_cpu.so with the functions of the torch in `torch_dir`."""
    offered = symbol_versions.offered_by(torch_dir / "lib/libtorch_cpu.so")
    stable = {symbol.name: symbol for symbol in offered if symbol.name.startswith(STABLE)}
    return old_libraries.stand_in(folder / "libtorch_cpu.so", list(stable.values()), compiler)


def add_cuda_runtime(folder: Path, machine: str, version: str) -> Path:
    """Into `folder`, libcudart_static.a for `machine` of CUDA `version` ("12.9")."""
    suffix = "-cu12" if version.startswith("12.") else ""  # later ones have the version alone
    package, unpacked = f"nvidia-cuda-runtime{suffix}=={version}.*", folder / "cuda_runtime"
    wanted = ["--platform", f"manylinux2014_{machine}", "--only-binary=:all:", "--no-deps", "--target", unpacked]
    if subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted, package]).returncode != 0:
        raise SystemExit(f"dev.py wheel: expected pip to get {package} for {machine}; --cpu-only does without it")
    return Path(shutil.copy2(next(unpacked.rglob("libcudart_static.a")), folder))
