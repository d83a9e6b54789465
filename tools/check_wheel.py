"""Checks the release files in dist/ as users will meet them: installed in clean environments, away from the sources.

    python3 dev.py check-wheel [--torch torch==2.14.1 ...] [--python python3.11] [--environment FOLDER ...] [--cpu-only]

First the files themselves: metadata, size, contents, and their libraries (see check_libraries.py); those of the package
for `kernels` too, where build/kernels-package has one. Then, for every torch, a new virtual environment with a wheel:
import time, the report, parity with nn.LSTM, and the tests. Last, parity of what the sdist builds with each torch.
`--environment` uses existing environments that hold torch and the test requirements, for machines without a network;
`--cpu-only` is for wheels that were made with it.
"""

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "_build_backend")]
from packaging.tags import Tag  # noqa: E402
from packaging.utils import parse_wheel_filename  # noqa: E402

import check_libraries  # noqa: E402
import dev  # noqa: E402
import portable_build  # noqa: E402
import symbol_versions  # noqa: E402
from check_libraries import demand, output_of  # noqa: E402

DIST = ROOT / "dist"
ENVIRONMENTS = ROOT / "build/check-wheel"
KERNELS_PACKAGE = ROOT / "build/kernels-package"
MAX_MEGABYTES = 15
MAX_IMPORT_SECONDS = 0.3
CONTENTS = (r"fusedlstm/lib/libfusedlstm_cpu\.so", r"fusedlstm/py\.typed", r".*/licenses/LICENSE", r".*/METADATA")
# What the tests read. The sources of the package stay behind, so that only the installed one can be imported.
TEST_FILES = ("tests", "benchmarks", "examples", "pyproject.toml")
# Of the source tree and not of the wheel: the emulator compiles csrc/, faults are planted in copies of it, and the
# pages of the manual stay behind.
SOURCE_TESTS = ("test_emulator.py", "test_primitives.py", "test_cuda_*.py", "test_*_faults.py", "test_docs.py")
# The libraries in the wheel for every Python are those of the other wheel; what differs is how they are loaded.
LOADING_TESTS = (
    "test_bad_boxes.py",
    "test_build.py",
    "test_library.py",
    "test_module.py",
    "test_verify.py",
    "test_weights.py",
)

IMPORT_SECONDS = """
import time, torch
start = time.perf_counter()
import fusedlstm
print(time.perf_counter() - start)
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "dev.py check-wheel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--torch", nargs="*", default=["torch==2.14.1", "torch==2.13.0", "torch==2.11.0"])
    made.add_argument("--python", default=sys.executable, help="the Python of the new environments")
    made.add_argument("--environment", nargs="*", default=[], type=Path)
    made.add_argument("--cpu-only", action="store_true", help="expect no CUDA library")
    return made


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    wheels, sdists = sorted(DIST.glob("*.whl")), sorted(DIST.glob("*.tar.gz"))
    if not wheels or len(sdists) != 1:
        sys.exit(
            f"dev.py check-wheel: expected wheels and one sdist in {DIST}, got {len(wheels)} and {len(sdists)}: "
            "run `dev.py wheel`"
        )
    run(sys.executable, "-m", "twine", "check", "--strict", *wheels, *sdists)
    for wheel in wheels:
        check_file(wheel, has_cuda=not options.cpu_only)
    for variant in sorted(KERNELS_PACKAGE.glob("build/torch-stable-abi*")):
        check_variant(variant)

    pythons = [folder.absolute() / "bin/python" for folder in options.environment]
    for python in pythons:
        demand(python.exists(), f"expected a virtual environment, got no {python}")
    demand(pythons or options.torch, "expected a torch or an environment to check with, got none")
    pythons += [new_environment(options.python, torch) for torch in options.torch]
    for wheel in wheels:
        fitting = [python for python in pythons if fits(wheel, python)]
        if not fitting:
            print(f"\n== {wheel.name}: installed nowhere, as it is for none of these Pythons", flush=True)
        for python in fitting:
            print(f"\n== {wheel.name} in {python.parent.parent}", flush=True)
            check_installed(wheel, python)
    for python in pythons:
        check_sdist(sdists[0], python)
    print("\nall checks passed")


def check_file(wheel: Path, has_cuda: bool) -> None:
    """What can be said about a wheel without installing it."""
    megabytes = wheel.stat().st_size / 1e6
    print(f"\n== {wheel.name}, {megabytes:.2f} MB", flush=True)
    demand(megabytes < MAX_MEGABYTES, f"expected less than {MAX_MEGABYTES} MB, got {megabytes:.2f} MB")
    demand("manylinux_" in wheel.name, "expected a manylinux tag, got none: it did not pass auditwheel")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for pattern in CONTENTS:
            demand(any(re.fullmatch(pattern, name) for name in names), f"expected a file {pattern}, got {names}")
        archive.extractall(folder)
        for tag in parse_wheel_filename(wheel.name)[3]:
            check_core(Path(folder) / "fusedlstm", tag)
            check_libraries.check(Path(folder) / "fusedlstm", tag.platform, has_cuda)
            check_with_auditwheel(wheel, tag.platform)


def check_core(package: Path, tag: Tag) -> None:
    """The planner's module is in a wheel for one Python, which finds it by its name, and only there."""
    found = [file.name for file in package.glob("_core*")]
    number, processor = tag.interpreter.removeprefix("cp"), symbol_versions.processor_of(tag.platform)
    expected = [] if tag.interpreter == "py3" else [f"_core.cpython-{number}-{processor}-linux-gnu.so"]
    demand(found == expected, f"expected {expected} in a wheel {tag}, got {found}")


def check_variant(folder: Path) -> None:
    """A folder of the package for `kernels`, whose name ends with backend, processor and system."""
    print(f"\n== {folder.name}, for `kernels`", flush=True)
    backend, processor, _ = folder.name.rsplit("-", 3)[1:]
    check_libraries.check(folder, portable_build.tag_of(processor), has_cuda=backend != "cpu")


def check_with_auditwheel(wheel: Path, tag: str) -> None:
    """Its word on the symbols alone: on the whole, a wheel that needs libtorch is none of manylinux to it."""
    by_symbols = json.loads(output_of(sys.executable, "-m", "auditwheel", "show", "--json", wheel))["sym_tag"]
    print(f"auditwheel: by its symbols {by_symbols}")
    is_manylinux = by_symbols.startswith("manylinux_")
    agrees = is_manylinux and symbol_versions.allowed_by(by_symbols) <= symbol_versions.allowed_by(tag)
    demand(agrees, f"expected auditwheel to find symbols of {tag} or an older one, got {by_symbols}")


def check_installed(wheel: Path, python: Path) -> None:
    """Installs the wheel, uses it from an empty folder, and runs the tests against it."""
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--force-reinstall", wheel)
    with tempfile.TemporaryDirectory() as folder:
        for name in TEST_FILES:
            source = ROOT / name
            copy = functools.partial(shutil.copytree, ignore=shutil.ignore_patterns("__pycache__", "build", "results"))
            (copy if source.is_dir() else shutil.copy)(source, Path(folder) / name)
        seconds = min(float(output_of(python, "-c", IMPORT_SECONDS, folder=folder)) for _ in range(3))
        print(f"import: {seconds:.2f} s beyond torch's own")
        demand(
            seconds < MAX_IMPORT_SECONDS, f"expected an import in less than {MAX_IMPORT_SECONDS} s, got {seconds:.2f} s"
        )
        run(python, "-m", "fusedlstm", folder=folder)
        run(python, "-m", "fusedlstm", "verify", folder=folder)
        tests = [f"tests/{name}" for name in LOADING_TESTS] if "-py3-none-" in wheel.name else ["tests"]
        ignored = [f"--ignore-glob=*/{pattern}" for pattern in SOURCE_TESTS]
        workers = str(len(os.sched_getaffinity(0)))
        run(python, "-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider", *ignored, *tests, folder=folder)


def check_sdist(sdist: Path, python: Path) -> None:
    """The sdist holds all that a build needs (of the CUDA library it is enough that its sources are there)."""
    print(f"\n== {sdist.name} in {python.parent.parent}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        how = ("-q", "--no-deps", "--no-build-isolation", "--target", folder)
        run(python, "-m", "pip", "install", *how, sdist, FUSEDLSTM_SKIP_CUDA_BUILD="1")
        run(python, "-m", "fusedlstm", "verify", folder=folder)  # which finds the package there first
    contents = output_of("tar", "-tzf", sdist)
    sources = [f.relative_to(ROOT).as_posix() for f in (ROOT / "csrc").rglob("*.*")]
    missing = [source for source in sources if source not in contents]
    demand(not missing, f"expected all of csrc in the sdist, got none of {missing}")


def new_environment(python: str, torch: str) -> Path:
    """A fresh virtual environment with one torch and the test requirements; its Python."""
    folder = ENVIRONMENTS / re.sub(r"\W+", "_", torch)
    run(python, "-m", "venv", "--clear", folder)
    run(folder / "bin/python", "-m", "pip", "install", "-q", torch, *dev.requirements("build", "test"))
    return folder / "bin/python"


def fits(wheel: Path, python: Path) -> bool:
    says = "import platform, sys; print('cp%d%d' % sys.version_info[:2], platform.machine())"
    tag, machine = output_of(python, "-c", says).split()
    return wheel.stem.endswith(f"_{machine}") and (f"-{tag}-" in wheel.name or "-py3-none-" in wheel.name)


def run(*command, folder: str | Path = ROOT, **environment: str) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env={**os.environ, **environment})
    demand(done.returncode == 0, f"failed: {' '.join(words)}")


if __name__ == "__main__":
    main(sys.argv[1:])
