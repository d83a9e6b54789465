"""Finds the CUDA toolkit, and turns a list of GPU architectures into compiler flags."""

import os
import re
import shutil
import site
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

# What a release carries. 8.0 also runs on 8.6, 8.7 and 8.9, which have its instructions: code of their own would make
# wheels larger than 15 MB. 10.0 (not 10.0a) also runs on 10.3, 12.0 on 12.1. 9.0a: Hopper with the instructions that
# it alone has. PTX lets newer GPUs compile the kernels at load time; that of 12.0 would be the same.
RELEASE_ARCHS = "7.5;8.0;9.0a;10.0+PTX;12.0"
OLDEST_ARCH = 7.5  # that the kernels can be compiled for


@dataclass(frozen=True)
class Toolkit:
    nvcc: Path
    version: str  # "13.0"; of the runtime, which decides what drivers serve
    include_dir: Path
    library_dir: Path  # holds libcudart_static.a


def find_toolkit() -> Toolkit | None:
    """The first complete toolkit of: CUDA_HOME, CUDA_PATH, /usr/local/cuda, PyPI's packages, the one behind `nvcc`."""
    for root in _roots():
        nvcc, include_dir = root / "bin/nvcc", root / "include"
        library_dir = next((d for d in (root / "lib64", root / "lib") if (d / "libcudart_static.a").is_file()), None)
        if nvcc.is_file() and (include_dir / "cuda_runtime.h").is_file() and library_dir:
            return Toolkit(nvcc, _runtime_version(include_dir), include_dir, library_dir)
    return None


def wanted_archs() -> list[str]:
    """What to compile for: none where all GPUs of this machine, or of TORCH_CUDA_ARCH_LIST, are too old."""
    archs = parse_archs(arch_list())
    if too_old := [entry for entry in archs if _number(entry) < OLDEST_ARCH]:
        print(
            f"fusedlstm: the CUDA kernels need compute capability {OLDEST_ARCH} or newer, so they are not built for "
            f"{' '.join(too_old)}; PyTorch's own run there"
        )
    return [entry for entry in archs if entry not in too_old]


def arch_list() -> str:
    """TORCH_CUDA_ARCH_LIST, else the GPUs of this machine, else the list of a release."""
    if chosen := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return chosen
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True).stdout.split()
        if found and all(re.fullmatch(r"\d+\.\d", cc) for cc in found):
            return ";".join(sorted({"9.0a" if cc == "9.0" else cc for cc in found}, key=_number))
    return RELEASE_ARCHS


def parse_archs(text: str) -> list[str]:
    """["8.0", "9.0a", "12.0+PTX"] from PyTorch's notation: entries separated by semicolons, commas or spaces."""
    archs = [entry for entry in re.split(r"[;,\s]+", text) if entry]
    for entry in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", entry):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected entries like 8.0, 9.0a or 12.0+PTX, got {entry!r}")
    if not archs:
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected at least one architecture, got {text!r}")
    return archs


def compression_flags(toolkit: Toolkit) -> list[str]:
    """As small as the toolkit can: a seventh smaller than `-compress-all` makes it, from CUDA 13 on.

    Drivers older than those of CUDA 12.4 cannot read that; with CUDA 13's runtime they do not come into question.
    """
    is_new = int(toolkit.version.split(".")[0]) >= 13
    return ["--compress-mode=size"] if is_new else ["-Xfatbin", "-compress-all"]


def gencode_flags(archs: list[str]) -> list[str]:
    """One -gencode per architecture; `+PTX` adds the intermediate code for GPUs that do not exist yet."""
    flags = []
    for entry in archs:
        number = entry.removesuffix("+PTX").replace(".", "")
        code = f"[sm_{number},compute_{number}]" if entry.endswith("+PTX") else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return flags


def _number(arch: str) -> float:
    return float(re.match(r"\d+\.\d", arch)[0])


def _roots():
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name])
            return  # a chosen toolkit that is incomplete must not be replaced silently by another
    yield Path("/usr/local/cuda")
    for folder in [sysconfig.get_path("purelib"), *site.getsitepackages()]:
        yield from sorted(Path(folder).glob("nvidia/cu[0-9]*"), reverse=True)
    if nvcc := shutil.which("nvcc"):
        yield from _root_behind(nvcc)


def _root_behind(nvcc: str):
    """The true root of an `nvcc` that may be a wrapper script: nvcc itself tells it in a dry run."""
    with tempfile.NamedTemporaryFile(suffix=".cu") as empty:
        dry_run = subprocess.run([nvcc, "--dryrun", "-c", empty.name], capture_output=True, text=True)
    if top := re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE):
        yield Path(os.path.realpath(top[1].strip()))


def _runtime_version(include_dir: Path) -> str:
    text = (include_dir / "cuda_runtime_api.h").read_text(errors="replace")
    number = int(re.search(r"^#define CUDART_VERSION\s+(\d+)", text, re.MULTILINE)[1])
    return f"{number // 1000}.{number % 1000 // 10}"
