"""What can be said about built libraries without loading them: of a wheel, or of a package for `kernels`.

Versions of symbols against the platform tag, the processor, paths of this machine, GPU architectures against the
promise, GPU code against the oldest drivers, and what build.json says of them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import code_objects
import cuda_toolkit
import symbol_versions

ROOT = Path(__file__).resolve().parent.parent
# What a library may ask for without a version: it comes from torch and Python, which have none.
WITHOUT_VERSION = ("aoti_torch_", "torch_", "Py", "_Py")


def check(folder: Path, tag: str, has_cuda: bool) -> None:
    """All checks of the libraries in a package's folder, with the CUDA library or without."""
    check_symbols(folder, tag)
    check_facts(folder, tag, has_cuda)
    for library in libraries_in(folder):
        for path in (ROOT, Path(sys.prefix), Path.home()):
            demand(
                str(path).encode() not in library.read_bytes(),
                f"expected no path of this machine in {library.name}, got {path}",
            )
    for library in folder.glob("lib/*_cuda.so"):
        check_code_objects(library)
        found = archs_in(library)
        promised = promised_archs(os.environ.get("TORCH_CUDA_ARCH_LIST", cuda_toolkit.RELEASE_ARCHS))
        print(f"GPU code: {' '.join(sorted(found))}")
        demand(found == promised, f"expected GPU code for {sorted(promised)}, got {sorted(found)}")


def libraries_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.so"))


def check_facts(folder: Path, tag: str, has_cuda: bool) -> None:
    """The libraries that there are, and what the package says of them where they do not load."""
    facts, processor = json.loads((folder / "lib/build.json").read_text()), symbol_versions.processor_of(tag)
    demand(facts["processor"] == processor, f"expected build.json to say {processor}, got {facts['processor']}")
    for kind, is_expected in {"cpu": True, "cuda": has_cuda}.items():
        found = [library.name for library in folder.glob(f"lib/*_{kind}.so")]
        demand(len(found) == is_expected, f"expected {int(is_expected)} library lib/*_{kind}.so, got {found}")
    demand(
        (facts["cuda_toolkit"] is not None) == has_cuda,
        f"expected build.json to be of a build with{'' if has_cuda else 'out'} CUDA, got {facts}",
    )


def check_symbols(folder: Path, tag: str) -> None:
    """Prints the newest versions of symbols that each library asks for, beside those that the tag allows.

    A library for another processor than the tag's is refused too.
    """
    allowed, too_new, processor = symbol_versions.allowed_by(tag), [], symbol_versions.processor_of(tag)
    rows = [(f"{tag} allows", symbol_versions.newest(allowed))]
    for library in libraries_in(folder):
        name = str(library.relative_to(folder))
        made_for = symbol_versions.processor_in(library)
        demand(made_for == processor, f"expected {name} for {processor}, as {tag} says, got one for {made_for}")
        symbols = symbol_versions.asked_by(library)
        rows.append((name, symbol_versions.newest({symbol.version for symbol in symbols if symbol.version})))
        refused = [symbol for symbol in symbols if not is_allowed(symbol, allowed)]
        too_new += [f"{name} asks for {', '.join(map(str, refused))}"] if refused else []
    width = max(len(row[0]) for row in rows)
    for label, versions in [("newest symbols", {family: family for family in symbol_versions.FAMILIES}), *rows]:
        print(label.ljust(width), *(version.rjust(8) for version in versions.values()), flush=True)
    demand(not too_new, f"expected symbols that {tag} allows, got others: {'; '.join(too_new)}")


def is_allowed(symbol: symbol_versions.Symbol, allowed: set[str]) -> bool:
    return symbol.version in allowed if symbol.version else symbol.name.startswith(WITHOUT_VERSION)


def check_code_objects(library: Path) -> None:
    """Prints what the code for each GPU takes, and refuses what a driver of CUDA 12 cannot load."""
    objects, bytes_of = code_objects.in_library(library), Counter()
    for code in objects:
        bytes_of[f"{'compute' if code.is_ptx else 'sm'}_{code.arch}"] += code.size
    print("size of GPU code:", ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in bytes_of.items()))
    refused = {code._replace(size=0) for code in objects if not code.is_for_cuda12}
    demand(objects and not refused, f"expected GPU code that drivers of CUDA 12 load, got {refused or 'none'}")


def archs_in(library: Path) -> set[str]:
    """{"sm_90a", "compute_120", ...}: the machine code and the PTX in a library."""
    cuobjdump = find_cuobjdump()
    code = re.findall(r"\.(sm_\w+)\.cubin", output_of(cuobjdump, "--list-elf", library))
    ptx = re.findall(r"\.sm_(\w+)\.ptx", output_of(cuobjdump, "--list-ptx", library))
    return {*code, *(f"compute_{number}" for number in ptx)}


def promised_archs(arch_list: str) -> set[str]:
    flags = " ".join(cuda_toolkit.gencode_flags(cuda_toolkit.parse_archs(arch_list)))
    codes = re.findall(r",code=\[?([\w,]+)", flags)
    return {code for group in codes for code in group.split(",")}


def find_cuobjdump() -> str:
    """Of the toolkit, or of PyPI's nvidia-cuda-cuobjdump."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders += sorted(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu*/bin"))
    found = shutil.which("cuobjdump", path=os.pathsep.join(map(str, folders)))
    demand(found, "expected cuobjdump, got none: pip install nvidia-cuda-cuobjdump")
    return found


def demand(condition: object, sentence: str) -> None:
    if not condition:
        sys.exit(f"dev.py check-wheel: {sentence}")


def output_of(*command, folder: str | Path = ROOT) -> str:
    return subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
