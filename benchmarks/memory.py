"""Peak memory of one run of a program, beyond what existed before it."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from .timing import Program


def peak_mib(program: Program, device: torch.device) -> float:
    """Counts what goes through PyTorch's allocator; on a CPU memory that a library takes from the
    system behind its back is not seen."""
    peak = _cuda_peak_bytes(program) if device.type == "cuda" else _cpu_peak_bytes(program)
    return peak / 2**20


def _cuda_peak_bytes(program: Program) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    program(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak_bytes(program: Program) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        results = program(0)
    del results
    changes = [
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    current = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        current += change
        peak = max(peak, current)
    return peak
