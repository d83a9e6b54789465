"""Tensors of the CPU in memory of huge pages."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

PAGE = 1 << 21  # bytes
_LINE = 64  # of a cache


def side_by_side(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, one behind the other in huge pages, for kernels that read all of them in every step: in small ones
    they also wait for where each page is, most of all while other programs use the same memory.

    Each has a storage of its own, of its own bytes, as any other tensor. Fewer bytes than two huge pages, and tensors
    that are not plain ones of the CPU, stay where they are.
    """
    sizes = [-(-tensor.nbytes // _LINE) * _LINE for tensor in tensors]
    if sum(sizes) < 2 * PAGE or not all(type(tensor) is Tensor and tensor.is_cpu for tensor in tensors):
        return tensors
    memory = mmap.mmap(-1, sum(sizes) + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    place = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % PAGE
    with contextlib.suppress(OSError):  # of a system without them
        memory.madvise(mmap.MADV_HUGEPAGE, place, sum(sizes) // PAGE * PAGE)
    moved = []
    for tensor, size in zip(tensors, sizes):
        # The tensor keeps the memory.
        flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=place)
        moved.append(flat.view(tensor.shape).copy_(tensor))
        place += size
    return moved
