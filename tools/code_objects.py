"""Lists the GPU code in a library as a driver finds it: in containers that fatbinary writes, each holding several.

A driver refuses machine code in a newer format than its own, and code compressed in a way that came after it.
"""

import struct
from pathlib import Path
from typing import NamedTuple

# Of a container: its magic number, version, and the size of its header.
START = bytes.fromhex("50ed55ba 0100 1000")
PTX = 1


class CodeObject(NamedTuple):
    is_ptx: bool  # or machine code
    arch: int
    version: tuple[int, int]  # of PTX, or of the format of machine code
    is_zstd: bool  # how CUDA 13 compresses
    size: int  # in bytes, as stored

    @property
    def is_for_cuda12(self) -> bool:
        """Whether the drivers of CUDA 12 that know the GPU take it."""
        # Machine code got another format with compute capability 10.0, and CUDA 13 gives it to all.
        newest = (8, 8) if self.is_ptx else (1, 8) if self.arch >= 100 else (1, 7)
        return not self.is_zstd and self.version <= newest


def in_library(library: Path) -> list[CodeObject]:
    data, found = library.read_bytes(), []
    start = data.find(START)
    while start >= 0:
        (size,) = struct.unpack_from("<Q", data, start + len(START))
        place = start + 16
        start = place + size
        while place < start:
            kind, _, header, stored = struct.unpack_from("<HHIQ", data, place)
            minor, major, arch = struct.unpack_from("<HHI", data, place + 24)
            (flags,) = struct.unpack_from("<Q", data, place + 40)
            found.append(CodeObject(kind == PTX, arch, (major, minor), bool(flags & 0x8000), stored))
            place += header + stored
        start = data.find(START, start)
    return found
