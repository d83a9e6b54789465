"""Builds the native libraries (see _build_backend/native_build.py); everything else is in pyproject.toml."""

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    raise SystemExit("fusedlstm: expected setuptools >= 77 to build with, got an older one") from None

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_build_backend"))
import native_build  # noqa: E402
from build_variables import is_set  # noqa: E402


class Build(build_ext):
    """Builds and puts what comes out into the package: in the source tree, or in the wheel to be."""

    def run(self):
        if not sys.platform.startswith("linux"):
            raise SystemExit(f"fusedlstm: expected to be built on Linux, got {sys.platform!r}")
        built = native_build.build(self.distribution.get_version())
        self.built_names = list(built)
        for name, source in built.items():
            _replace(source, self._package_dir() / name)
        for file in (self._package_dir() / "lib").iterdir():
            if f"lib/{file.name}" not in built:
                file.unlink()  # of an earlier build with other settings

    def get_outputs(self):
        return [str(self._package_dir() / name) for name in self.built_names]

    def get_output_mapping(self):
        if not self._in_source_tree():
            return {}
        in_wheel = Path(self.build_lib) / "fusedlstm"
        return {str(in_wheel / name): str(ROOT / "fusedlstm" / name) for name in self.built_names}

    def _in_source_tree(self) -> bool:
        return bool(self.inplace or self.editable_mode)

    def _package_dir(self) -> Path:
        return (ROOT if self._in_source_tree() else Path(self.build_lib)) / "fusedlstm"


class Wheel(bdist_wheel):
    """Without the pybind11 module nothing in the wheel depends on the version of Python. CXX says which processor."""

    def get_tag(self):
        python, abi, plat = super().get_tag()
        plat = plat.replace(platform.machine(), native_build.machine_of(native_build.compiler()))
        return ("py3", "none", plat) if is_set("FUSEDLSTM_NO_PYBIND") else (python, abi, plat)


def _replace(source: Path, target: Path) -> None:
    """Copies so that a process that has the old file mapped keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(source, partial)
    partial.replace(target)


setup(
    # A name for what is built: it makes the wheel a platform wheel. `Build` knows the sources.
    ext_modules=[Extension("fusedlstm._core", sources=[])],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
