#!/usr/bin/env python3
"""Everything a developer runs, from a fresh clone on; needs nothing but Python 3.10 and a C++20 compiler.

    python3 dev.py bench [options of `python -m benchmarks`]
    python3 dev.py test [options of pytest]
    python3 dev.py build
    python3 dev.py wheel [options of tools/make_wheel.py]
    python3 dev.py check-wheel [options of tools/check_wheel.py]
    python3 dev.py gpu-kit [options of tools/make_gpu_kit.py]
    python3 dev.py kernels-package [options of tools/make_kernels_package.py]

If this Python has torch, it is used as it is, offline too. Otherwise `.venv` is created and torch is installed into it
(TORCH_SPEC says which, for example `torch==2.13.0`; FUSEDLSTM_VENV says where).
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SECONDS: dict[str, float] = {}  # that each part of the command took
# Without a GPU the kernels are still compiled for the oldest, a middle and a recent one: every path of them is seen,
# and the middle one has the tightest registers.
COMPILE_CHECK_ARCHS = "7.5;8.0;9.0a"
# The extras of each command, installed one after the other: one that cannot be leaves the others.
EXTRAS = {
    "bench": ["bench", "peers"],
    "test": ["test", "peers"],
    "wheel": ["wheel"],
    "check-wheel": ["wheel"],
    "kernels-package": ["wheel"],
}
# What each command cannot do without, where the rest of its requirements cannot be installed.
NEEDED = {
    "build": {"setuptools"},
    "test": {"setuptools", "pytest"},
    "bench": {"setuptools", "rich", "matplotlib", "scikit-learn"},
    "wheel": {"setuptools", "build", "auditwheel"},
    "check-wheel": {"twine", "auditwheel"},
    "gpu-kit": {"setuptools"},
    "kernels-package": {"setuptools", "auditwheel"},
}


def main(arguments: list[str]) -> int:
    command, *options = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    if command not in NEEDED:
        sys.exit(f"dev.py: expected one of {', '.join(NEEDED)}, got {command!r}")
    if sys.version_info < (3, 10):  # noqa: UP036  (runs before any installer could refuse)
        sys.exit(f"dev.py: expected Python >= 3.10, got {sys.version.split()[0]}")
    os.chdir(ROOT)
    started = float(os.environ.pop("FUSEDLSTM_STARTED", time.time()))
    if importlib.util.find_spec("torch") is None:
        continue_in_venv(arguments, started)
    install_missing(command)
    SECONDS["environment"] = time.time() - started
    commands = {
        "build": build, "test": test, "bench": bench, "wheel": wheel, "check-wheel": check_wheel, "gpu-kit": gpu_kit,
        "kernels-package": kernels_package,
    }  # fmt: skip
    status = commands[command](options)
    print(f"dev.py: {', '.join(f'{part} {seconds:.0f} s' for part, seconds in SECONDS.items())}", flush=True)
    return status


def build(options: list[str]) -> int:
    return part("build", "setup.py", "-q", "build_ext", "--inplace", *options)


def test(options: list[str]) -> int:
    cores = len(os.sched_getaffinity(0))
    workers = min(cores, 4)
    compile_cuda_where_possible()
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // workers))
    parallel = ["-n", str(workers), "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    if build([]):
        return 1
    # Ahead of the whole suite: it takes minutes, and the test that comes to it first has a time limit.
    if not options and part("emulator", "tests/emulator/build.py"):
        return 1
    return part("tests", "-m", "pytest", *parallel, *options)


def bench(options: list[str]) -> int:
    return build([]) or part("benchmark", "-m", "benchmarks", *options)


def wheel(options: list[str]) -> int:
    return part("wheels", "tools/make_wheel.py", *options)


def check_wheel(options: list[str]) -> int:
    return part("checks", "tools/check_wheel.py", *options)


def gpu_kit(options: list[str]) -> int:
    return part("kit", "tools/make_gpu_kit.py", *options)


def part(name: str, *program: str) -> int:
    """Runs a part of a command, named before it and in the summary at the end."""
    print(f"dev.py: {name}", flush=True)
    start = time.time()
    status = run(*program)
    SECONDS[name] = time.time() - start
    return status


def kernels_package(options: list[str]) -> int:
    return part("package", "tools/make_kernels_package.py", *options)


def run(*arguments: str) -> int:
    """Exit status of a Python program. Ctrl+C reaches it too: it may write what it has, and is waited for."""
    program = subprocess.Popen([sys.executable, *arguments])
    while True:
        try:
            status = program.wait()
        except KeyboardInterrupt:
            continue
        return status if status >= 0 else 128 - status  # ended by a signal, as shells say it


def compile_cuda_where_possible() -> None:
    """A torch without CUDA cannot run the CUDA library, but nvcc can still compile and link it."""
    sys.path.insert(0, str(ROOT / "_build_backend"))
    from cuda_toolkit import find_toolkit
    from find_torch import find_torch, torch_version

    torch_dir = find_torch()
    if torch_dir and torch_version(torch_dir)["cuda"] is None and find_toolkit() is not None:
        os.environ.setdefault("FORCE_CUDA", "1")
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", COMPILE_CHECK_ARCHS)


def continue_in_venv(arguments: list[str], started: float) -> None:
    """Creates the virtual environment where there is no complete one, installs torch, and starts over inside it."""
    venv = Path(os.environ.get("FUSEDLSTM_VENV", ROOT / ".venv"))
    python = venv / "bin/python"
    if Path(sys.prefix).resolve() == venv.resolve():
        if not install([torch_to_install()]):
            sys.exit(
                f"dev.py: could not install {torch_to_install()}; TORCH_SPEC names another version or a wheel file"
            )
    elif not (venv / "bin/pip").exists():  # which comes last
        print(f"dev.py: this Python has no torch; creating {venv}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    # The start is kept: the time so far is that of the environment.
    environment = {**os.environ, "FUSEDLSTM_STARTED": str(started)}
    os.execve(python, [str(python), str(ROOT / "dev.py"), *arguments], environment)


def torch_to_install() -> str:
    # Plain `torch` on a machine without a GPU may resolve to gigabytes of CUDA libraries of the newest release.
    has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")
    return os.environ.get("TORCH_SPEC", "torch" if has_gpu else "torch==2.13.0")


def install_missing(command: str) -> None:
    for group in ("build", *EXTRAS.get(command, [])):
        missing = [r for r in requirements(group) if not is_installed(r)]
        if missing and not install(missing):
            names = [name_of(r) for r in missing]
            print(f"dev.py: could not install {' '.join(names)}; what needs them will not run", flush=True)
            if needed := NEEDED[command].intersection(names):
                sys.exit(
                    f"dev.py: `{command}` needs {' '.join(sorted(needed))}: install into {sys.prefix} and try again"
                )


def install(packages: list[str]) -> bool:
    print(f"dev.py: installing {' '.join(packages)} into {sys.prefix}", flush=True)
    # A person sees how far it is; a log would only become longer.
    return run("-m", "pip", "install", *([] if sys.stdout.isatty() else ["-q"]), *packages) == 0


def requirements(*groups: str) -> list[str]:
    """The packages of pyproject.toml's build requirements and extras, the extras' own extras resolved."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        from pip._vendor import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = {"build": project["build-system"]["requires"], **project["project"]["optional-dependencies"]}
    found = []
    for requirement in (r for group in groups for r in extras[group]):
        inner = re.fullmatch(r"fusedlstm\[(.+)\]", requirement)
        found += requirements(*inner[1].split(",")) if inner else [requirement]
    return list(dict.fromkeys(found))


def is_installed(requirement: str) -> bool:
    try:
        importlib.metadata.version(name_of(requirement))
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
