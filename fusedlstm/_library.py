"""Loads the native libraries, once, and knows why one of them is not in use."""

import ctypes
import functools
import importlib.util
import json
import platform
import re
import types
import warnings
from pathlib import Path

import torch

from fusedlstm._namespace import NAMESPACE, REGISTERED

OLDEST_CAPABILITY = (7, 5)  # of a GPU that the CUDA kernels can be compiled for

_LIB_DIR = Path(__file__).resolve().parent / "lib"
CPU_LIBRARY = _LIB_DIR / f"lib{NAMESPACE}_cpu.so"
CUDA_LIBRARY = _LIB_DIR / f"lib{NAMESPACE}_cuda.so"


def load() -> None:
    """Loads the CPU library, and the CUDA library where this PyTorch can use it.

    Raises:
        ImportError: the package was not built, or not for this machine, or another copy of it is already loaded.
    """
    if _operators_are_registered():
        return
    if not CPU_LIBRARY.is_file():
        raise ImportError(
            f"fusedlstm expected its compiled library {CPU_LIBRARY}, found none: in a source tree run "
            "`python3 dev.py build`, otherwise reinstall the package"
        )
    if failure := _failure_to_load(CPU_LIBRARY):
        raise ImportError(f"fusedlstm {failure}")
    reason = cuda_inactive_reason()
    if reason is not None and reason.is_a_fault:
        warnings.warn(f"fusedlstm uses PyTorch's own layers on GPUs: {reason}", RuntimeWarning, stacklevel=3)


class Reason(str):
    """A sentence that says why something is not in use; `is_a_fault`: the user will want to do something about it."""

    is_a_fault: bool

    def __new__(cls, sentence: str, is_a_fault: bool = False):
        reason = super().__new__(cls, sentence)
        reason.is_a_fault = is_a_fault
        return reason


@functools.cache
def build_facts() -> dict:
    """What the build wrote, see `facts` in _build_backend/native_build.py; {} where it did not run."""
    file = _LIB_DIR / "build.json"
    return json.loads(file.read_text()) if file.is_file() else {}


@functools.cache
def core() -> types.ModuleType | None:
    """The module `fusedlstm._core`, or None in a build without it (FUSEDLSTM_NO_PYBIND=1)."""
    spec = importlib.util.find_spec(f"{__package__}._core")
    return importlib.import_module(f"{__package__}._core") if spec else None


@functools.cache
def cuda_inactive_reason() -> Reason | None:
    """Why the CUDA library is not in use, or None where it is. Loads it when first asked; starts no CUDA context."""
    if (reason := _why_not_to_load_cuda()) is not None:
        return reason
    is_loaded = hasattr(REGISTERED, "_cuda_obstacle")  # by an embedding program
    failure = None if is_loaded else _failure_to_load(CUDA_LIBRARY)
    return Reason(failure, is_a_fault=True) if failure else None


def _why_not_to_load_cuda() -> Reason | None:
    """What torch, this build and the driver have against the CUDA library."""
    if torch.version.hip is not None:
        return Reason(f"its kernels are for CPUs and NVIDIA GPUs, and this PyTorch ({torch.__version__}) is for ROCm")
    if torch.version.cuda is None:
        # It may be what the user wants, with a GPU too.
        advice = "" if driver_version() is None else "; install one for this machine's GPUs"
        return Reason(f"this PyTorch ({torch.__version__}) is not a CUDA build{advice}")
    if not CUDA_LIBRARY.is_file():
        return Reason(
            "this fusedlstm was built without CUDA kernels; install a wheel that has them, "
            "or build it where nvcc is found",
            is_a_fault=driver_version() is not None,
        )
    # Every driver of a major version serves all toolkits of it.
    oldest, driver = int(build_facts()["cuda_toolkit"].split(".")[0]), driver_version()
    if driver is not None and driver[0] < oldest:
        # What can be built with CUDA 12 would serve a driver of CUDA 12; older toolkits do not know C++20.
        other_build = ", or build fusedlstm with a toolkit of CUDA 12" if driver[0] >= 12 else ""
        return Reason(
            f"expected a driver for CUDA {oldest} or newer, got one for CUDA {driver[0]}.{driver[1]}; "
            f"update the NVIDIA driver{other_build}",
            is_a_fault=True,
        )
    return None


def _failure_to_load(library: Path) -> str | None:
    """Loads a library; where it cannot be, says why."""
    try:
        torch.ops.load_library(library)
    except OSError as error:
        made_for, here = build_facts()["processor"], platform.machine()
        if made_for != here:  # which the linker says in words that mislead
            return f"expected libraries for {here}, got those for {made_for}; install the wheel for {here}"
        return f"expected to load {library.name}, got {error.__cause__ or error}; reinstall fusedlstm"
    return None


@functools.cache
def why_no_kernels(device: torch.device) -> Reason | None:
    """Why there are no native kernels for tensors on `device`, or None where there are."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return Reason(f"fusedlstm has kernels for cpu and cuda, not for {device.type}")
    if (reason := cuda_inactive_reason()) is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if any(_runs_on(arch, capability) for arch in build_facts()["cuda_archs"]):
        obstacle = _cuda_obstacle(device)
        return Reason(obstacle, is_a_fault=True) if obstacle else None
    wanted = f"{capability[0]}.{capability[1]}"
    if capability < OLDEST_CAPABILITY:
        oldest = f"{OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}"
        return Reason(f"expected a GPU of compute capability {oldest} or newer, got {wanted}; use a newer GPU", True)
    return Reason(
        f"expected kernels for compute capability {wanted}, got only {' '.join(build_facts()['cuda_archs'])}; "
        f"rebuild with TORCH_CUDA_ARCH_LIST={wanted}",
        is_a_fault=True,
    )


def _cuda_obstacle(device: torch.device) -> str:
    """Why the driver cannot run the CUDA library's kernels on `device`, by asking it; "" where it can."""
    return REGISTERED._cuda_obstacle(ordinal_of(device)).removeprefix("fusedlstm: ")


def ordinal_of(device: torch.device) -> int:
    """The number of a CUDA device, the current one unless it says which."""
    return torch.cuda.current_device() if device.index is None else device.index


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA version that the installed NVIDIA driver serves, or None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    return (number.value // 1000, number.value % 1000 // 10) if number.value else None


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code built for `arch` ("8.0", "9.0a", "12.0+PTX") runs on a GPU of this compute capability."""
    major, minor, suffix, ptx = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch).groups()
    built_for = (int(major), int(minor))
    if suffix == "a":
        return capability == built_for  # architecture-specific instructions: nowhere else
    same_family = capability[0] == built_for[0] and capability[1] >= built_for[1]
    return same_family or (ptx is not None and capability >= built_for)


def _operators_are_registered() -> bool:
    """Whether the operators exist already: of this copy, or brought by an embedding program.

    Raises:
        ImportError: they come from another copy of the package; loading a second one would replace its kernels.
    """
    if not hasattr(REGISTERED, "lstm_layer"):
        return False
    others = {Path(path) for path in torch.ops.loaded_libraries if Path(path).name == CPU_LIBRARY.name} - {CPU_LIBRARY}
    if others:
        raise ImportError(
            f"fusedlstm expected to be the only copy in this process, got a second one: {others.pop()} is loaded, "
            f"so {CPU_LIBRARY} cannot be; remove one of the two from sys.path, or uninstall it; "
            'in torch.package: extern("fusedlstm.**")'
        )
    return True
