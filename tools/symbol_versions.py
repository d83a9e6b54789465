"""Versions of symbols: what a library offers, what it asks of others, and what a platform tag of a wheel allows.

`dlopen@GLIBC_2.34` is a function that glibc has under this name since 2.34. The newest version that a library asks for
says how old a system may be.
"""

import re
from pathlib import Path
from typing import NamedTuple

from auditwheel.architecture import Architecture
from auditwheel.libc import Libc
from auditwheel.policy import WheelPolicies
from elftools.elf.elffile import ELFFile

# Versions are compared within one of these families: "GLIBC_2.28", "GLIBCXX_3.4.24".
FAMILIES = ("GLIBC", "GLIBCXX", "CXXABI", "GCC")
PROCESSORS = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}
HIDDEN = 0x8000  # the bit of a version that is not the one by default


class Symbol(NamedTuple):
    name: str
    version: str | None  # "GLIBC_2.28"; None where the library that offers it has no versions
    kind: str = "STT_FUNC"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name


def offered_by(library: Path) -> list[Symbol]:
    """What others may link with, under every version of it."""
    return [symbol for symbol, section in _symbols(library) if section not in ("SHN_UNDEF", "SHN_ABS")]


def asked_by(library: Path) -> list[Symbol]:
    """What others have to offer; not what a library can do without."""
    return [symbol for symbol, section in _symbols(library) if section == "SHN_UNDEF"]


def allowed_by(tag: str) -> set[str]:
    """{"GLIBC_2.28", "GLIBCXX_3.4.24", ...} of "manylinux_2_28_x86_64", as auditwheel has them."""
    policies = WheelPolicies(libc=Libc.GLIBC, arch=Architecture(processor_of(tag)))
    versions = policies.get_policy_by_name(tag).symbol_versions
    return {f"{family}_{number}" for family, numbers in versions.items() for number in numbers}


def processor_of(tag: str) -> str:
    """ "x86_64" of "manylinux_2_28_x86_64"."""
    if not (found := re.fullmatch(r"manylinux_\d+_\d+_(\w+)", tag)):
        raise ValueError(f"expected a tag such as manylinux_2_28_x86_64, got {tag!r}")
    return found[1]


def processor_in(library: Path) -> str:
    """The processor that a library is for."""
    with open(library, "rb") as file:
        machine = ELFFile(file)["e_machine"]
    return PROCESSORS.get(machine, machine)


def family_of(version: str) -> str:
    return version.partition("_")[0]


def number_of(version: str) -> tuple[int, ...]:
    """(2, 28) of "GLIBC_2.28"; () of one without a number, such as "GLIBC_PRIVATE", which comes before all others."""
    number = version.partition("_")[2]
    return tuple(map(int, number.split("."))) if re.fullmatch(r"[\d.]+", number) else ()


def newest(versions: set[str]) -> dict[str, str]:
    """{"GLIBC": "2.28", ...}: the newest of each family; "-" where there is none."""
    found = {}
    for family in FAMILIES:
        own = [version for version in versions if family_of(version) == family]
        found[family] = max(own, key=number_of).partition("_")[2] if own else "-"
    return found


def _symbols(library: Path):
    """Pairs of a dynamic symbol and the section that it is in."""
    with open(library, "rb") as file:
        elf = ELFFile(file)
        names = _version_names(elf)
        versions = elf.get_section_by_name(".gnu.version")
        for index, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
            is_optional = symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_WEAK"
            if symbol.name and not is_optional:
                number = versions.get_symbol(index)["ndx"] if versions else None
                version = names.get(number & ~HIDDEN) if isinstance(number, int) else None
                yield Symbol(symbol.name, version, symbol["st_info"]["type"]), symbol["st_shndx"]


def _version_names(elf: ELFFile) -> dict[int, str]:
    """What the numbers in .gnu.version stand for; a library's own name, its number 1, is no version."""
    names = {}
    if offered := elf.get_section_by_name(".gnu.version_d"):
        names |= {d["vd_ndx"]: next(aux).name for d, aux in offered.iter_versions() if d["vd_ndx"] > 1}
    if asked := elf.get_section_by_name(".gnu.version_r"):
        names |= {aux["vna_other"]: aux.name for _, auxes in asked.iter_versions() for aux in auxes}
    return names
