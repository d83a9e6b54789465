"""Files of what was measured on a GPU: which kernels, or cuDNN, run a problem fastest there.

A table is JSON: {"format": 1, "gpu": its name, "problems": {problem: entry}}, with names as `_planner.Problem` has them
and entries as `_measure.py` makes them. There are up to three for a GPU, and the first that has a problem counts: the
file that FUSEDLSTM_PLANS names, which a program may bring along; that of this user, machine and versions, which is
written to; and one that comes with the package.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
import warnings
from pathlib import Path

FORMAT = 1
SHIPPED = Path(__file__).resolve().parent / "plans"


class Tables:
    """Those of one GPU.

    Args:
        gpu: its name.
        versions: of what the times depend on; a table of other versions is another file.
    """

    def __init__(self, gpu: str, versions: dict[str, str]) -> None:
        self.gpu = gpu
        name = _words(gpu)
        self.path = _cache() / "-".join([name, *(f"{_words(of)}{_words(version)}" for of, version in versions.items())])
        self.path = self.path.with_name(f"{self.path.name}.json")
        given = os.environ.get("FUSEDLSTM_PLANS")
        self._given = self._read(Path(given), is_expected=True) if given else {}
        self._own = self._read(self.path)
        self._shipped = self._read(SHIPPED / f"{name}.json")

    def find(self, problem: str) -> dict | None:
        """The entry of a problem, by its name."""
        for table in (self._given, self._own, self._shipped):
            if problem in table:
                return table[problem]
        return None

    def add(self, problem: str, entry: dict) -> None:
        """Adds an entry to the user's own table, and to what other processes have written there in the meantime."""
        self._own[problem] = entry
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._own = self._read(self.path) | self._own
                self._write()
        except OSError as error:
            warnings.warn(
                f"fusedlstm measured {problem}, and could not keep it in {self.path}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _write(self) -> None:
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".tmp", delete=False) as file:
            json.dump(table_of(self.gpu, self._own), file, indent=1)
        os.replace(file.name, self.path)  # readers see the one or the other

    def _read(self, path: Path, is_expected: bool = False) -> dict[str, dict]:
        """The problems of a file; none where there is no file. A warning says what is wrong with it."""
        try:
            if not (is_expected or path.is_file()):
                return {}
            table = json.loads(path.read_text())
            problems = table["problems"]
            if table["format"] != FORMAT or not isinstance(problems, dict):
                raise ValueError(f"expected a table of format {FORMAT}, got {str(table['format'])[:20]}")
            for problem, entry in problems.items():
                if not (isinstance(entry.get("plan"), str) or isinstance(entry.get("cudnn"), bool)):
                    raise ValueError(f"expected a plan, or whether cuDNN is faster, got {entry} for {problem}")
            if table["gpu"] != self.gpu:
                raise ValueError(f"expected a table of {self.gpu}, got one of {table['gpu']}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(
                f"fusedlstm chooses kernels without {path}: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=3,
            )
            return {}
        return problems


def table_of(gpu: str, problems: dict[str, dict]) -> dict:
    """A table as its file has it."""
    return {"format": FORMAT, "gpu": gpu, "problems": dict(sorted(problems.items()))}


def _cache() -> Path:
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as containers have them
        root = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return root / "fusedlstm" / "plans"


def _words(text: str) -> str:
    """As a part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
