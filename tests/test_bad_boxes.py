"""Machines that fusedlstm does not serve, or not with all that it has: stand-ins of them, and the sentence each gets.

Here is what happens to a process that imports the package, and what pip says; the sentences about GPUs are in
test_library.py, and what the CUDA runtime says of drivers in test_driver.py.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import forked_python
import pytest

from fusedlstm import _library

PACKAGE = _library.CPU_LIBRARY.parent.parent
OTHER = {"x86_64": "aarch64"}.get(platform.machine(), "x86_64")
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


def run_python(code: str, **environment) -> subprocess.CompletedProcess:
    variables = {name: str(value) for name, value in environment.items()}
    return subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True)


# Import, of a copy of the package with other libraries.


@pytest.fixture
def site(tmp_path) -> Path:
    """The folder that the copy is in; it says that it was built with CUDA 12, and has no CUDA library yet."""
    folder = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__", _library.CUDA_LIBRARY.name)
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignored)
    set_facts(folder, cuda_toolkit="12.9", cuda_archs=["9.0a"])
    return folder


def set_facts(site, **changed):
    file = library_in(site, "build.json")
    file.write_text(json.dumps(_library.build_facts() | changed))


def library_in(site, name) -> Path:
    return site / "fusedlstm/lib" / name


def compile_c(library, source):
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=source, text=True, check=True)


def import_and_run(site, run_python=forked_python.run_python, **environment) -> subprocess.CompletedProcess:
    """With what passes for a CUDA build of torch; prints the size of a layer's output on the CPU."""
    return run_python(
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import torch; torch.version.cuda = '12.8'\n"
        "import fusedlstm\n"
        "print(fusedlstm.FusedLSTM(3, 4)(torch.ones(2, 1, 3))[0].shape)",
        **environment,
    )


def test_driver_470(site, tmp_path):
    compile_c(library_in(site, "libfusedlstm_cuda.so"), "")
    compile_c(tmp_path / "libcuda.so.1", (Path(__file__).parent / "stub_driver.c").read_text())
    done = import_and_run(site, run_python, LD_LIBRARY_PATH=tmp_path, STUB_DRIVER=11040)
    assert done.stdout == "torch.Size([2, 1, 4])\n", done.stderr
    sentence = "expected a driver for CUDA 12 or newer, got one for CUDA 11.4; update the NVIDIA driver"
    assert f"RuntimeWarning: fusedlstm uses PyTorch's own layers on GPUs: {sentence}\n" in done.stderr


def test_a_cuda_library_that_does_not_load_leaves_the_cpu_kernels(site):
    """Such as one that was built for another torch."""
    source = "void of_another_torch(void); void use(void) { of_another_torch(); }"
    compile_c(library_in(site, "libfusedlstm_cuda.so"), source)
    done = import_and_run(site)
    assert done.stdout == "torch.Size([2, 1, 4])\n", done.stderr
    assert "own layers on GPUs: expected to load libfusedlstm_cuda.so, got " in done.stderr
    assert "undefined symbol: of_another_torch; reinstall fusedlstm\n" in done.stderr


def test_a_wheel_for_another_processor_that_was_unpacked_by_hand(site):
    library = library_in(site, "libfusedlstm_cpu.so")
    content = bytearray(library.read_bytes())
    content[18:20] = ELF_MACHINES[OTHER].to_bytes(2, "little")
    library.write_bytes(content)
    set_facts(site, processor=OTHER)
    here = platform.machine()
    sentence = f"expected libraries for {here}, got those for {OTHER}; install the wheel for {here}"
    assert import_and_run(site).stderr.endswith(f"\nImportError: fusedlstm {sentence}\n")


def test_a_cpu_library_that_does_not_load(site):
    library_in(site, "libfusedlstm_cpu.so").write_bytes(b"")
    last = import_and_run(site).stderr.splitlines()[-1]
    assert last.startswith("ImportError: fusedlstm expected to load libfusedlstm_cpu.so, got /")
    assert last.endswith("file too short; reinstall fusedlstm")


@pytest.mark.parametrize("version, is_refused", [("2.9.1+cu128", True), ("1.13.1", True), ("2.10.0a0+gitabc", False)])
def test_an_old_torch_is_refused_before_anything_else_of_it_is_used(version, is_refused, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(f"__version__ = {version!r}\n")  # and nothing else
    paths = [str(tmp_path), str(PACKAGE.parent)]
    last = run_python(f"import sys; sys.path[:0] = {paths}\nimport fusedlstm").stderr.splitlines()[-1]
    sentence = f"ImportError: fusedlstm expected torch >= 2.10, got {version}; upgrade torch to use it"
    assert (last == sentence) == is_refused


# Installation: pip alone speaks to the user, whom docs/install.md tells what to do.

REFUSED = "is not a supported wheel on this platform."


@pytest.fixture
def wheel(tmp_path) -> Path:
    """As a release has it for every Python, but empty."""
    tag = f"py3-none-manylinux_2_28_{platform.machine()}"
    file = tmp_path / f"fusedlstm-0.1.0-{tag}.whl"
    with zipfile.ZipFile(file, "w") as archive:
        folder = "fusedlstm-0.1.0.dist-info"
        archive.writestr(f"{folder}/METADATA", "Metadata-Version: 2.1\nName: fusedlstm\nVersion: 0.1.0\n")
        archive.writestr(f"{folder}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        archive.writestr(f"{folder}/RECORD", "")
    return file


def pip_installs(wheel, box="") -> str:
    """What pip says in a process that `box`, Python code, makes a stand-in of another machine."""
    command = ["pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--no-index", str(wheel)]
    code = f"import os, platform, runpy, sys, sysconfig\n{box}\nsys.argv = {command}\n"
    done = run_python(f"{code}runpy.run_module('pip', run_name='__main__', alter_sys=True)")
    return done.stdout + done.stderr


GLIBC = "os.confstr = lambda name: 'glibc {}'"
# Whose C library does not know the question, nor has the function that is looked for then.
MUSL = "def confstr(name): raise ValueError(name)\nos.confstr = confstr; sys.modules['ctypes'] = None"
PROCESSOR = f"sysconfig.get_platform = lambda: 'linux-{OTHER}'"


@pytest.mark.parametrize("box", ["", GLIBC.format("2.28")], ids=["here", "glibc 2.28"])
def test_where_a_wheel_installs(wheel, box):
    assert "Would install fusedlstm-0.1.0" in pip_installs(wheel, box)


@pytest.mark.parametrize("box", [GLIBC.format("2.27"), MUSL, PROCESSOR], ids=["glibc 2.27", "musl", "processor"])
def test_where_pip_refuses_a_wheel(wheel, box):
    said = pip_installs(wheel, box)
    assert f"{wheel.name} {REFUSED}" in said and "Would install" not in said
