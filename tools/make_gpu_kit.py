"""Builds what tools/gpu_check takes to a GPU into build/gpu-kit; needs nvcc, no GPU.

    python3 dev.py gpu-kit [--arch 9.0a]

See tools/gpu_visit/kit.py for what is in it. The libraries use torch's stable ABI: any torch from 2.10 on and any
Python runs them, whatever they were built with.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "_build_backend"), str(ROOT / "tests")]
from emulator.build import primitives_command  # noqa: E402
from gpu_visit.kit import Kit  # noqa: E402

from cuda_toolkit import find_toolkit, gencode_flags, parse_archs  # noqa: E402
from find_torch import find_torch, torch_version  # noqa: E402

FOLDER = ROOT / "build/gpu-kit"
MOST_BYTES = 40 * 10**6  # it travels over a network, with the sources


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "dev.py gpu-kit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--arch", default="9.0a", help="compute capability of the GPU (default: 9.0a, H100 and H200)")
    return made


def main(arguments: list[str]) -> None:
    arch, began = parser().parse_args(arguments).arch, time.monotonic()
    gencode, toolkit = gencode_flags(parse_archs(arch)), find_toolkit()
    if len(gencode) != 1:
        parser().error(f"--arch: expected one compute capability, got {arch!r}")
    if toolkit is None:
        sys.exit("dev.py gpu-kit: expected a CUDA toolkit, found none (docs/install.md says where it is looked for)")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    print("1/3 libraries", flush=True)
    build_package(arch)
    print("2/3 micro-benchmarks", flush=True)
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", *gencode, f"-I{ROOT / 'csrc'}"]
    sources = [ROOT / "tools/gpu_constants/gpu_constants.cu", ROOT / "csrc/cuda/host/kernel_attributes.cpp"]
    run(toolkit.nvcc, *flags, *sources, "-o", FOLDER / "gpu_constants")
    print("3/3 primitives", flush=True)
    run(*primitives_command(toolkit.nvcc, f"sm_{arch.replace('.', '')}", FOLDER / "primitives.so"))
    about = {**commit(), "torch": torch_version(find_torch())["version"], "arch": arch, "cuda": toolkit.version}
    (FOLDER / "kit.json").write_text(json.dumps(about, indent=1) + "\n")
    Kit(FOLDER)
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        sys.exit(f"dev.py gpu-kit: expected at most {MOST_BYTES / 1e6:.0f} MB in {FOLDER}, got {size / 1e6:.1f} MB")
    print(f"{FOLDER.relative_to(ROOT)}: {size / 1e6:.1f} MB in {time.monotonic() - began:.0f} s, {about}")


def build_package(arch: str) -> None:
    """The package with both libraries, and without the planner for one version of Python."""
    settings = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch, "FUSEDLSTM_NO_PYBIND": "1"}
    run(sys.executable, "setup.py", "-q", "build_ext", "--build-lib", FOLDER, environment=os.environ | settings)
    for file in [*(ROOT / "fusedlstm").rglob("*.py"), ROOT / "fusedlstm/py.typed"]:
        target = FOLDER / file.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(file, target)


def commit() -> dict:
    """The commit, and whether the sources are that very commit's; nulls outside a repository."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return {"commit": None, "modified": None}
    ask = lambda *words: subprocess.run([git, *words], cwd=ROOT, capture_output=True, text=True).stdout  # noqa: E731
    return {"commit": ask("rev-parse", "HEAD").strip(), "modified": bool(ask("status", "--porcelain").strip())}


def run(*command, environment=None) -> None:
    if subprocess.run([str(word) for word in command], env=environment, cwd=ROOT).returncode != 0:
        sys.exit(f"dev.py gpu-kit: failed: {' '.join(map(str, command))}")


if __name__ == "__main__":
    main(sys.argv[1:])
