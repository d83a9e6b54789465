"""Faults planted in the sources: a copy of csrc in which some text is another."""

import shutil
from dataclasses import dataclass

from emulator import build


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str  # occurs once in the file
    new: str
    reported: str  # what the error says, or that numbers are wrong

    def __str__(self):
        return self.name.replace(" ", "_")

    def planted(self, csrc):
        """Changes the sources; the path of the changed one."""
        return change(csrc, self.file, self.old, self.new)


def copy_of_sources(folder):
    """A copy of csrc in a folder."""
    return shutil.copytree(build.CSRC, folder / "csrc")


def change(csrc, file, old, new):
    """Replaces a text of one of the sources, in which it occurs once. Returns its path.

    Args:
        csrc: of copy_of_sources().
        file: its name, with folders where there are several of that name.
    """
    (target,) = csrc.rglob(file)
    text = target.read_text()
    assert text.count(old) == 1, f"{file}: expected the text once, got {text.count(old)} times:\n{old}"
    target.write_text(text.replace(old, new))
    return target
