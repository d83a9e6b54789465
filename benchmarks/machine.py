"""The machine: what it is, and how fast it can possibly be (measured, not from a data sheet)."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of one device at one thread count.

    `mm_flops`: a large `torch.mm` in the dtype. `peak_flops`: the fastest dense product found (see
    `_peak_flops`), never below `mm_flops`; infinity for int8, whose products PyTorch does not offer alone: its floor is
    that of the bytes. `bandwidth`: bytes/s read plus written by a large copy.
    """

    mm_flops: float
    peak_flops: float
    bandwidth: float

    def floor_seconds(self, flops: float, bytes_moved: float) -> float:
        """No program doing these operations on this device can take less time."""
        return max(flops / self.peak_flops, bytes_moved / self.bandwidth)


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def ceilings(device: torch.device, precision: str, threads: int) -> Ceilings:
    """Measures the limits once per process for each argument; sets the number of threads.

    Threads above the usable CPUs add nothing to what a machine can do: as many as there are CPUs stand for them.
    """
    return _measured_ceilings(device, precision, min(threads, usable_cpus()))


@cache
def _measured_ceilings(device: torch.device, precision: str, threads: int) -> Ceilings:
    from .workload import INT8, PRECISIONS, precision_switches

    torch.set_num_threads(threads)
    dtype = PRECISIONS[precision]
    with precision_switches(precision), torch.no_grad():
        mm = _mm_flops(device, dtype)
        peak = math.inf if precision == INT8 else _peak_flops(device, dtype, mm)
        return Ceilings(mm, peak, _copy_bandwidth(device))


def _mm_flops(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: torch.mm(left, right), device)


def _peak_flops(device: torch.device, dtype: torch.dtype, mm: float) -> float:
    """The fastest of several dense products whose results serve this dtype.

    On a CPU torch.mm is no ceiling: BLAS and oneDNN differ by a factor of two on some processors,
    so a 3x3 convolution (a matrix product inside oneDNN) is measured too. A 16-bit type that the
    CPU has no instructions for can be computed in float32, whose rate is then the ceiling.
    """
    if device.type == "cuda":
        return mm
    candidates = {dtype, torch.float32} if dtype.itemsize == 2 else {dtype}
    return max(mm, *(_convolution_flops(device, candidate) for candidate in candidates))


def _convolution_flops(device: torch.device, dtype: torch.dtype) -> float:
    batch, channels, size = 4, 256, 28
    images = torch.randn(batch, channels, size, size, device=device).to(dtype)
    filters = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
    flops = 2 * batch * (size - 2) ** 2 * 9 * channels**2
    return flops / _best_seconds(lambda: F.conv2d(images, filters), device)


def _copy_bandwidth(device: torch.device) -> float:
    size_bytes = (1 << 30) if device.type == "cuda" else (1 << 28)
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size_bytes / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(run: Callable[[], object], device: torch.device, budget: float = 0.25) -> float:
    """Shortest of many runs: a ceiling is what the device can do undisturbed."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    best, deadline = once(), time.perf_counter() + budget
    while time.perf_counter() < deadline:
        best = min(best, once())
    return best


def describe(device: torch.device) -> dict[str, str]:
    """The `#` header lines of a result file."""
    description = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device_name(device),
        "cpu": f"{_cpu_model()}, {os.cpu_count()} logical cores, {_cpu_mhz()} MHz now",
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "load before": ", ".join(f"{load:.2f}" for load in os.getloadavg()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _git("describe", "--always", "--dirty", "--abbrev=12"),
    }
    onednn = re.search(r"MKL-DNN v(\S+)", torch.__config__.show())
    if onednn:
        description["oneDNN"] = onednn[1]
    for runtime in ("onnxruntime", "openvino"):
        with suppress(PackageNotFoundError):
            description[runtime] = version(runtime)
    if device.type == "cuda":
        description["CUDA runtime"] = str(torch.version.cuda)
        description["cuDNN"] = str(torch.backends.cudnn.version())
        description["driver, clocks"] = _nvidia_smi()
    return description


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model()


def folder_name(device: torch.device) -> str:
    """A directory name for the machine: `amd-epyc-2-cores-avx2`, `nvidia-h200`."""
    name = device_name(device)
    if device.type == "cpu":  # names of virtual machines tell little
        name += f" {os.cpu_count()} cores {torch.backends.cpu.get_cpu_capability()}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cpu_model() -> str:
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1].strip()
    except (OSError, TypeError):  # not Linux, or a kernel that names no model (Arm)
        return platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether the CPU has instructions that add products of 8 bits in 32 bits. Those before them add pairs in 16, where
    large ones saturate."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return re.search(r"\bavx(512)?_vnni\b", flags) is not None


def _cpu_mhz() -> str:
    try:
        return re.search(r"cpu MHz\s*:\s*(\d+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return "unknown"


def _git(*arguments: str) -> str:
    return _output_of("git", "-C", str(_ROOT), *arguments)


def _nvidia_smi() -> str:
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,persistence_mode"
    return _output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"


def import_seconds(module: str) -> float:
    """Time to import a module in a fresh interpreter that has already imported torch, and looks where this one does."""
    program = f"import time, torch; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    return float(result.stdout)
