"""Loads the native libraries, once, and knows why one of them is not in use."""

import ctypes
import functools
import importlib.util
import json
import re
import types
import warnings
from pathlib import Path

import torch

from fusedlstm._namespace import NAMESPACE, REGISTERED

OLDEST_TORCH = (2, 10)  # the stable ABI that the libraries were built for

_LIB_DIR = Path(__file__).resolve().parent / "lib"
CPU_LIBRARY = _LIB_DIR / f"lib{NAMESPACE}_cpu.so"
CUDA_LIBRARY = _LIB_DIR / f"lib{NAMESPACE}_cuda.so"


def load() -> None:
    """Loads the CPU library, and the CUDA library where this PyTorch can use it.

    Raises:
        ImportError: torch is too old, the package was not built, or another copy of it is already loaded.
    """
    if torch.__version__ < OLDEST_TORCH:
        raise ImportError(
            f"fusedlstm expected torch >= {'.'.join(map(str, OLDEST_TORCH))}, got {torch.__version__}; "
            "upgrade torch to use it"
        )
    if _operators_are_registered():
        return
    if not CPU_LIBRARY.is_file():
        raise ImportError(
            f"fusedlstm expected its compiled library {CPU_LIBRARY}, found none: in a source tree run "
            "`python3 dev.py build`, otherwise reinstall the package"
        )
    torch.ops.load_library(CPU_LIBRARY)
    if cuda_inactive_reason() is None:
        torch.ops.load_library(CUDA_LIBRARY)
    elif cuda_inactive_reason().is_a_fault:
        message = f"fusedlstm uses PyTorch's own layers on GPUs: {cuda_inactive_reason()}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


class Reason(str):
    """A sentence that says why something is not in use; `is_a_fault`: the user will want to do something about it."""

    is_a_fault: bool

    def __new__(cls, sentence: str, is_a_fault: bool = False):
        reason = super().__new__(cls, sentence)
        reason.is_a_fault = is_a_fault
        return reason


@functools.cache
def build_facts() -> dict:
    """What the build wrote: version, torch_headers, compiler, cuda_toolkit, cuda_archs; {} where it did not run."""
    file = _LIB_DIR / "build.json"
    return json.loads(file.read_text()) if file.is_file() else {}


@functools.cache
def core() -> types.ModuleType | None:
    """The module `fusedlstm._core`, or None in a build without it (FUSEDLSTM_NO_PYBIND=1)."""
    spec = importlib.util.find_spec(f"{__package__}._core")
    return importlib.import_module(f"{__package__}._core") if spec else None


@functools.cache
def cuda_inactive_reason() -> Reason | None:
    """Why the CUDA library is not loaded, or None where it is. Starts no CUDA context."""
    if torch.version.cuda is None:
        return Reason(f"this PyTorch ({torch.__version__}) is not a CUDA build")
    if not CUDA_LIBRARY.is_file():
        return Reason(
            "this fusedlstm was built without CUDA kernels; install a wheel that has them, "
            "or build it where nvcc is found",
            is_a_fault=driver_version() is not None,
        )
    # Every driver of a major version serves all toolkits of it.
    oldest, driver = int(build_facts()["cuda_toolkit"].split(".")[0]), driver_version()
    if driver is not None and driver[0] < oldest:
        return Reason(
            f"expected a driver for CUDA {oldest} or newer, got one for CUDA {driver[0]}.{driver[1]}; "
            "update the NVIDIA driver, or build fusedlstm with this machine's older toolkit",
            is_a_fault=True,
        )
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
