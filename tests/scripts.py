"""The scripts of tools/ as modules, for tests of what they make of their input."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "tools"


def load(name):
    """The script as a module; outside the source tree, where there are no tools, skips the test module that asks."""
    file = FOLDER / name
    if not file.is_file():
        pytest.skip("the tools are in the source tree only", allow_module_level=True)
    module = module_from_spec(spec_from_loader(name, SourceFileLoader(name, str(file))))
    module.__spec__.loader.exec_module(module)
    return module
