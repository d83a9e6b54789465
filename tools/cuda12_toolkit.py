"""A CUDA toolkit whose code runs on every driver from CUDA 12.0 on, those of CUDA 13 included.

What an older driver refuses is not the work of the compiler: it is the format of the machine code, which the assembler
chooses, and the CUDA runtime. Package indexes have both for CUDA 12, but no nvcc; so they are put behind that of a
toolkit of CUDA 13. Two of its programs need a word:

    cicc        calls its PTX by a version that is newer than the assembler. The kernels use nothing of that version;
                if they did, the assembler would refuse it.
    fatbinary   compresses in a way that drivers read only from CUDA 12.4 on.
"""

import shutil
import site
import sysconfig
from pathlib import Path

from cuda_toolkit import Toolkit

NEWEST_PTX = "8.8"  # of the assembler of CUDA 12.9
PACKAGES = ("cuda_nvcc", "cuda_runtime", "cuda_cccl")  # folders of PyPI's nvidia-cuda-nvcc-cu12 and its companions

# The PTX is the last argument of cicc.
CICC = """\
#!/bin/sh
"{cicc}" "$@" || exit
for ptx; do :; done
exec sed -i 's/^\\.version 9\\..*/.version {version}/' "$ptx"
"""
FATBINARY = """\
#!/bin/sh
exec "{fatbinary}" --compress-mode=speed "$@"
"""
PROFILE = """\
TOP = $(_HERE_)/..
CICC_PATH = $(TOP)/nvvm/bin
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(CICC_PATH):$(_HERE_):{programs}:
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES =+ $(_SPACE_) "-L$(TOP)/lib"
"""


def make(folder: Path, found: Toolkit) -> Path:
    """The root of the toolkit that was found if it is one of CUDA 12, else `folder`, filled around its compiler."""
    root = found.nvcc.resolve().parent.parent
    if found.version.startswith("12."):
        return root
    shutil.rmtree(folder, ignore_errors=True)
    folder = folder.resolve()
    nvcc, runtime, cccl = (_folder_of(package) for package in PACKAGES)
    (folder / "bin").mkdir(parents=True)
    shutil.copy2(root / "bin/nvcc", folder / "bin")  # not a link: nvcc reads the profile beside itself
    _write_program(folder / "bin/fatbinary", FATBINARY.format(fatbinary=root / "bin/fatbinary"))
    (folder / "bin/ptxas").symlink_to(nvcc / "bin/ptxas")
    (folder / "bin/nvcc.profile").write_text(PROFILE.format(programs=root / "bin"))

    (folder / "nvvm/bin").mkdir(parents=True)
    _write_program(folder / "nvvm/bin/cicc", CICC.format(cicc=root / "nvvm/bin/cicc", version=NEWEST_PTX))
    (folder / "nvvm/libdevice").symlink_to(root / "nvvm/libdevice")

    (folder / "include").mkdir()
    of_compiler = [found.include_dir / name for name in ("crt", "fatbinary_section.h")]
    for header in (*of_compiler, *runtime.glob("include/*"), *cccl.glob("include/*")):
        if header.name != "__init__.py":
            (folder / "include" / header.name).symlink_to(header)
    (folder / "lib").symlink_to(runtime / "lib")
    return folder


def _folder_of(package: str) -> Path:
    for site_packages in [sysconfig.get_path("purelib"), *site.getsitepackages()]:
        if (folder := Path(site_packages) / "nvidia" / package).is_dir():
            return folder
    name = f"nvidia-{package.replace('_', '-')}-cu12"
    raise SystemExit(
        f"dev.py wheel: expected {name} beside the toolkit of CUDA 13, found none (pip install {name}==12.9.*)"
    )


def _write_program(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)
