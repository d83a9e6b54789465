"""What the environment's variables say of a build (docs/install.md lists them)."""

import os
import shlex


def is_set(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def words_of(variable: str) -> list[str]:
    """The words of an environment variable, as a shell would split them."""
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise SystemExit(f"fusedlstm: expected words in {variable}, got {os.environ[variable]!r}: {error}") from None


def jobs() -> int:
    """MAX_JOBS, else one job a core, but no more than one for every 2 GiB of memory: nvcc is hungry."""
    if chosen := os.environ.get("MAX_JOBS"):
        if not chosen.isdecimal():
            raise SystemExit(f"fusedlstm: expected a number of compilers in MAX_JOBS, got {chosen!r}")
        return int(chosen)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(memory_gib / 2)))
