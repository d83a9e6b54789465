"""Finds the PyTorch to build for, without importing it: that takes seconds, and may fail in a build environment."""

import ast
import importlib.util
import os
import site
import sysconfig
from pathlib import Path

# The header whose presence means: this torch has the LibTorch stable ABI (torch >= 2.10).
_STABLE_HEADER = Path("include/torch/csrc/stable/library.h")


def find_torch() -> Path | None:
    """The folder of an installed torch that has the stable-ABI headers, or None.

    pip's isolated builds hide the packages of the environment that is being installed into, but keep its prefix;
    `sysconfig` therefore still finds the torch that the user has.
    """
    for folder in _candidates():
        if (folder / _STABLE_HEADER).is_file():
            return folder
    return None


def unfit_torch() -> str:
    """What there is where `find_torch` finds nothing: "2.9.1 in /path/torch", or "none"."""
    for folder in _candidates():
        if (folder / "version.py").is_file():
            return f"{torch_version(folder)['version']} in {folder}"
    return "none"


def torch_version(torch_dir: Path) -> dict[str, str | None]:
    """`{"version": "2.13.0+cpu", "cuda": None}`: read from the text of torch/version.py."""
    values: dict[str, str | None] = {}
    for node in ast.parse((torch_dir / "version.py").read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(getattr(node, "value", None), ast.Constant):
            values[target.id] = node.value.value
    return {"version": values["__version__"], "cuda": values.get("cuda")}


def _candidates():
    if chosen := os.environ.get("FUSEDLSTM_TORCH_DIR"):
        yield Path(chosen)
        return  # a chosen torch that does not fit must not be replaced silently by another
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        yield Path(spec.origin).parent
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for folder in [*folders, *site.getsitepackages(), site.getusersitepackages()]:
        yield Path(folder) / "torch"
