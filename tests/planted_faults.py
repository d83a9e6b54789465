"""Faults planted in the sources: a copy of csrc in which some text is another, or becomes another while a test runs.

Compiling is what a fault costs. So all that the same sources show are planted side by side and compiled once, each of
them asleep until `emulator.options(module, fault=number)` wakes it.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from emulator import build


@dataclass(frozen=True)
class Fault:
    """A text and what stands in its place: an expression of the same type, or whole statements, which end with ";" and
    declare nothing that others need. The control is the module with none awake: that planting changes nothing else."""

    name: str
    file: str
    old: str  # occurs once in the file
    new: str
    reported: str  # what the error says, or that numbers are wrong

    def __str__(self):
        return self.name.replace(" ", "_")


def module_with(faults, sources):
    """The emulated module with faults, the first being number 1.

    Args:
        sources: {names of files that are compiled: what else is changed in what they see, as change() takes it}
    """
    changed = {}
    with tempfile.TemporaryDirectory() as folder:
        for names, changes in sources.items():
            csrc = copy_of_sources(Path(folder, str(len(changed))))
            plant(csrc, faults)
            for file, old, new in changes:
                change(csrc, file, old, new)
            changed |= dict.fromkeys(names, csrc)
        return build.load(build.build(changed))


def plant(csrc, faults):
    """Plants faults side by side."""
    # The longest first: where the text of one is a part of another's, it is looked for in what that leaves.
    numbered = sorted(enumerate(faults, 1), key=lambda pair: -len(pair[1].old))
    for number, fault in numbered:
        change(csrc, fault.file, fault.old, switch(number, fault.old))
    for number, fault in numbered:
        change(csrc, fault.file, place(number), fault.new)


def switch(number, old):
    """C++ that is `old` unless the fault is awake."""
    is_awake = f"::emulator::planted({number})"
    if old.endswith(";"):
        return f"{{\nif ({is_awake}) {{\n{place(number)}\n}} else {{\n{old}\n}}\n}}"
    return f"({is_awake} ? ({place(number)}) : ({old}))"


def place(number):
    """Stands for the text of a fault until all have their places: it may have that of others in it."""
    return f"@{number}@"


def copy_of_sources(folder):
    """A copy of csrc in a folder."""
    return shutil.copytree(build.CSRC, Path(folder, "csrc"))


def change(csrc, file, old, new):
    """Replaces a text of one of the sources, in which it occurs once.

    Args:
        csrc: of copy_of_sources().
        file: its name, with folders where there are several of that name.
    """
    (target,) = csrc.rglob(file)
    text = target.read_text()
    assert text.count(old) == 1, f"{file}: expected the text once, got {text.count(old)} times:\n{old}"
    target.write_text(text.replace(old, new))
