"""When threads give up meeting, and for how long, by a clock of the test; faults planted in that."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from planted_faults import change, copy_of_sources

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"

# A host that takes a CPU away for 20 ms in 130 ends no team, of any size. A process on the same CPUs, for which a
# thread is 4 ms late in 8, does at the first loss that is more than the reserve and a quarter of the time: of n times
# 4 ms, 4 n > 26.8 + 8 (n - 1) / 4, since a full reserve does not grow.
EXPECTED = """\
host -1, neighbour 52
host -1, neighbour 52
after a loss of 10 s takes 1
pauses 27 54 108 215 430 859 859, after two good calls 430
"""
FAULTS = [
    ("kMost = 1 << 26", "kMost = 1 << 23"),  # as much as one absence of a CPU
    ("kShare = 4;", "kShare = 16;"),
    ("kShare = 4;", "kShare = 2;"),
    ("lost /= waiting;", ""),
    ("std::max<int64_t>(left.load(std::memory_order_relaxed), 0)", "left.load(std::memory_order_relaxed)"),
    ("std::min(now + elapsed / kShare, kMost)", "now + elapsed / kShare"),
    ("std::clamp(2 * length", "std::clamp(1 * length"),
    ("int64_t(1) << 31", "int64_t(1) << 33"),
    ("length.store(last / 2", "length.store(last"),
    ("end.store(now + next", "end.store(now"),
]


PROGRAM = HERE / "tolerance_program.cpp"


def compile(*arguments):
    subprocess.run([os.environ.get("CXX", "g++"), "-std=c++20", "-O1", *arguments], check=True)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """The headers of C++ that the program includes, compiled once: of its compilation they are nearly all."""
    header = tmp_path_factory.mktemp("prefix") / "prefix.h"
    text = PROGRAM.read_text() + (CSRC / "cpu" / "tolerance.h").read_text()
    header.write_text("".join(re.findall(r"#include <.*>\n", text)))
    compile("-x", "c++-header", header, "-o", f"{header}.gch")  # where g++ looks for it
    return header


def said(folder, prefix, sources=CSRC):
    program = folder / "program"
    compile("-include", prefix, f"-I{sources}", PROGRAM, "-o", program)
    return subprocess.run([program], capture_output=True, text=True, check=True, timeout=60).stdout


def test_teams_outlast_a_host_and_yield_to_neighbours(tmp_path, prefix):
    assert said(tmp_path, prefix) == EXPECTED


@pytest.mark.parametrize(("old", "new"), FAULTS)
def test_fault_is_noticed(tmp_path, prefix, old, new):
    sources = copy_of_sources(tmp_path)
    change(sources, "tolerance.h", old, new)
    assert said(tmp_path, prefix, sources) != EXPECTED
