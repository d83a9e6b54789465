"""What a visit takes along: a folder that `python3 dev.py gpu-kit` fills, without a GPU.

kit.json        commit, modified, torch, arch, cuda_toolkit
fusedlstm/      the package, with both libraries in lib/; put before the source tree on PYTHONPATH
gpu_constants   tools/gpu_constants/ as a program
primitives.so   tests/emulator/primitive_kernels.cu as a library
"""

import json
from pathlib import Path


class Kit:
    """The files of a kit.

    Raises:
        FileNotFoundError: one of them is missing; the sentence names it.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.constants = self.folder / "gpu_constants"
        self.primitives = self.folder / "primitives.so"
        self.library = self.folder / "fusedlstm/lib/libfusedlstm_cuda.so"
        about = self.folder / "kit.json"
        for file in (about, self.constants, self.primitives, self.library):
            if not file.is_file():
                raise FileNotFoundError(f"expected {file}, found none: `python3 dev.py gpu-kit` makes a kit")
        self.about = json.loads(about.read_text())
