"""The scripts of tools/ as modules, for tests of what they make of their input."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "tools"


def folder():
    """That of the tools; skips the test, or the test module, that asks outside of the source tree, where it is not."""
    if not FOLDER.is_dir():
        pytest.skip("the tools are in the source tree only", allow_module_level=True)
    return FOLDER


def load(name):
    """The script as a module; outside of the source tree as `folder`."""
    file = folder() / name
    module = module_from_spec(spec_from_loader(name, SourceFileLoader(name, str(file))))
    module.__spec__.loader.exec_module(module)
    return module
