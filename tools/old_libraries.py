"""Libraries of the system to link a wheel with: those of this machine without what is newer than a platform tag.

A linker binds every symbol to the version that the library it finds has by default, the newest: `dlopen@GLIBC_2.34` on
a new machine, although `dlopen@GLIBC_2.2.5` is still there, and is all that an older one has. The stand-ins made here
hold no code, only the names, each under its newest version that the tag allows; so the compiler, its flags and what it
makes stay those of any other build. A name without such a version is not in them: what is new in the C++ library is
linked statically, what newer headers put into every program is in newer_glibc.c, and the rest is an undefined symbol.
"""

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

from auditwheel.elfutils import elf_read_dt_needed

import symbol_versions
from symbol_versions import Symbol

NEWER_GLIBC = Path(__file__).resolve().parent / "newer_glibc.c"
# The archives that have what the stand-in of a library lacks.
BESIDES = {
    "libstdc++.so.6": ["libstdc++.a"],
    "libgcc_s.so.1": ["libgcc.a"],
    "libm.so.6": [],
    "libc.so.6": ["libc_nonshared.a"],
    # Parts of glibc before 2.34: a library that has to run there names them, wherever this machine has their contents.
    "libpthread.so.0": [],
    "libdl.so.2": [],
    "librt.so.1": [],
}


def make(folder: Path, tag: str, compiler: list[str]) -> list[str]:
    """Fills `folder`; returns the linker's options, which come before those that name other libraries."""
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    allowed = symbol_versions.allowed_by(tag)
    besides = {name: [_file_of(compiler, archive) for archive in archives] for name, archives in BESIDES.items()}
    besides["libc.so.6"] += [_newer_glibc(folder, compiler), *_loader(folder, allowed, compiler)]
    for name, archives in besides.items():
        library = without_newer(folder / name, _file_of(compiler, name), allowed, compiler)
        words = " ".join(f'"{path}"' for path in (library, *archives))
        (folder / f"{name.partition('.so')[0]}.so").write_text(f"GROUP({words})\n")
    # Torch offers what it has of the C++ library's templates too, without a version: they are not to be taken there.
    return [f"-L{folder}", "-lstdc++"]


def without_newer(library: Path, real: Path, allowed: set[str], compiler: list[str]) -> Path:
    """A stand-in for a library, with the newest of its allowed versions of each symbol."""
    newest = {}
    for symbol in symbol_versions.offered_by(real):
        if symbol.version in allowed:
            known = newest.setdefault(symbol.name, symbol)
            newest[symbol.name] = max(known, symbol, key=lambda one: symbol_versions.number_of(one.version))
    return stand_in(library, list(newest.values()), compiler)


def stand_in(library: Path, symbols: list[Symbol], compiler: list[str]) -> Path:
    """A shared library of this name that offers the symbols, and has nothing behind them."""
    assembly, versions = [], defaultdict(list)
    for name, version, kind in symbols:
        section = '.section .tbss, "awT", %nobits' if kind == "STT_TLS" else ".text"
        kind = kind.replace("STT_LOOS", "STT_FUNC")  # a function in several versions, for processors
        assembly += [section, f".globl {name}", f".type {name} {kind}", f"{name}:"]
        if version:
            versions[version].append(name)
    assembly.append('.section .note.GNU-stack, "", %progbits')
    source, script = library.with_name(f"{library.name}.s"), library.with_name(f"{library.name}.map")
    source.write_text("\n".join([*assembly, ""]))
    script.write_text("".join(f"{version} {{ {'; '.join(names)}; }};\n" for version, names in versions.items()))
    named = [f"-Wl,-soname,{library.name}", *([f"-Wl,--version-script={script}"] if versions else [])]
    _run(*compiler, "-shared", "-nostdlib", *named, source, "-o", library)
    return library


def _loader(folder: Path, allowed: set[str], compiler: list[str]) -> list[Path]:
    """The dynamic loader, which has a part of glibc; each processor's has its own name."""
    names = [name for name in elf_read_dt_needed(_file_of(compiler, "libc.so.6")) if name.startswith("ld-")]
    return [without_newer(folder / name, _file_of(compiler, name), allowed, compiler) for name in names]


def _newer_glibc(folder: Path, compiler: list[str]) -> Path:
    compiled, archive = folder / "newer_glibc.o", folder / "newer_glibc.a"
    _run(*compiler, "-x", "c", "-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-c", NEWER_GLIBC, "-o", compiled)
    _run(_run(*compiler, "-print-prog-name=ar").strip(), "rcs", archive, compiled)
    return archive


def _file_of(compiler: list[str], name: str) -> Path:
    """Where the linker finds a library or archive."""
    found = Path(_run(*compiler, f"-print-file-name={name}").strip())
    if not found.is_absolute():
        raise SystemExit(f"dev.py wheel: expected {compiler[-1]} to have {name}, found none")
    return found.resolve()


def _run(*command) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"dev.py wheel: failed: {' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout
