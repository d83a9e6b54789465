"""The shape of the source tree: which folder may include which (docs/design.md says why)."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"

# Files of a folder include files of their own, and of these; "" is csrc itself.
MAY_INCLUDE = {
    "": {"call", "cells", "cuda/binding"},  # library.cpp, core_module.cpp
    "cells": set(),
    "call": {"cells", ""},
    "cpu": {"call", "cells", ""},
    "cpu/instances": {"cpu/kernel"},
    "cpu/kernel": {"cells", "cpu", ""},
    "cuda/host": {"cells", ""},
    "cuda/device": {"cells", "cuda/host", ""},
    "cuda/binding": {"call", "cells", "cuda/device", "cuda/host", ""},
}
# Headers of cpu/ that kernels may see: no torch, and nothing of the standard library.
SEEN_BY_KERNELS = {"args.h", "division.h", "kernel_table.h", "varied_args.h"}

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="not in the source tree")


def includes():
    for file in sorted(CSRC.rglob("*.*")):
        for name in re.findall(r'^#include "(.+)"$', file.read_text(), re.MULTILINE):
            if name == "primitives_emulated.h":  # the emulator's, which brings its own folder
                continue
            target = CSRC / name if "/" in name or not (file.parent / name).is_file() else file.parent / name
            yield file.relative_to(CSRC), target.relative_to(CSRC)


def folder_of(file):
    return file.parent.as_posix().removeprefix(".")


def test_every_folder_is_known():
    assert {folder_of(file.relative_to(CSRC)) for file in CSRC.rglob("*.*")} == set(MAY_INCLUDE)


@pytest.mark.parametrize("folder", MAY_INCLUDE)
def test_arrows_point_down(folder):
    for file, target in includes():
        if folder_of(file) == folder != folder_of(target):
            assert folder_of(target) in MAY_INCLUDE[folder], f"{file} includes {target}"
            assert (CSRC / target).is_file(), f"{file} includes {target}, which does not exist"


def test_kernels_see_plain_structs_only():
    pairs = [(folder_of(file), target) for file, target in includes()]
    seen = {target.name for folder, target in pairs if folder == "cpu/kernel" and folder_of(target) == "cpu"}
    assert seen <= SEEN_BY_KERNELS


def test_files_of_one_folder_are_named_without_it():
    for file, target in includes():
        if folder_of(file) == folder_of(target):
            assert f'#include "{target.name}"' in (CSRC / file).read_text(), file


def test_no_literal_number_of_gates():
    """What runs a layer asks the cell for its sizes (csrc/cells)."""
    literal = re.compile(r"\b[34] \* (\w+\.)?(hidden|H)\b|\[4 ?\* ?H\]|\[4H|% 4 \* H|\b(gate|sums|d_gates)\[4\]")
    for folder in ("call", "cpu", "cpu/kernel", "cuda/binding", "cuda/device", "cuda/host"):
        for file in sorted((CSRC / folder).glob("*.*")):
            found = literal.search(file.read_text())
            assert found is None, f"{file.name} has {found[0]!r}"


def test_the_operators_namespace_is_compiled_into_short_files_alone():
    """A package for `kernels` has one of its own, and compiles them anew."""
    named = {file for file in CSRC.rglob("*.*") if "FUSEDLSTM_NAMESPACE" in file.read_text()}
    assert {file.relative_to(CSRC).as_posix() for file in named} == {
        "cpu/registration.cpp",
        "cuda/binding/registration.cpp",
    }
