"""Result files: CSV with `#` header lines for spreadsheets and eyes, JSON for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from fusedlstm.cells import CELLS, LSTM

from .contenders import baseline_name, fused_name
from .rows import OK, Row

OTHER_WORK = "other work"  # among the facts of the machine: what load.said_before says
FOLDER = Path(__file__).resolve().parent / "results"


@dataclass
class Results:
    """A run: the machine's description, the rows, what was measured besides rows, and the cell of all of these."""

    machine: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    measures: dict[str, object] = field(default_factory=dict)
    cell: str = LSTM.name

    @property
    def fused(self) -> str:
        """The name of our layer; a run is of int8 as a whole or not at all."""
        return fused_name(CELLS[self.cell], self.rows[0].precision if self.rows else "float32")

    @property
    def baseline(self) -> str:
        """The name of torch.nn's."""
        return baseline_name(CELLS[self.cell])

    def write(self, stem: Path) -> None:
        """`stem`.csv and `stem`.json; directories are made."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        with beside(stem, ".csv").open("w", newline="") as file:
            for name, value in (self.machine | _flat(self.measures)).items():
                file.write(f"# {name}: {value}\n")
            writer = csv.DictWriter(file, [column.name for column in fields(Row)])
            writer.writeheader()
            writer.writerows(_rounded(asdict(row)) for row in self.rows)
        content = {
            "cell": self.cell,
            "machine": self.machine,
            "measures": self.measures,
            "rows": [asdict(row) for row in self.rows],
        }
        beside(stem, ".json").write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """From the JSON file, or the one next to the CSV file; raises ValueError where there is none."""
        try:
            if path.suffix not in (".json", ".csv"):
                raise ValueError("not named so")
            content = json.loads(path.with_suffix(".json").read_text())
            rows = [Row(**row) for row in content["rows"]]
            # Files of before there were other cells do not name it.
            return cls(content["machine"], rows, content["measures"], content.get("cell", LSTM.name))
        except (OSError, ValueError, TypeError, KeyError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise ValueError(f"expected the .json or .csv of a benchmark run, got {path} ({problem})") from error


def beside(stem: Path, suffix: str) -> Path:
    """`stem` with the suffix behind it: what follows a dot in the stem's name is part of the name."""
    return stem.with_name(stem.name + suffix)


def timed(rows: Sequence[Row], peer: str) -> list[Row]:
    """The rows with a ratio against the peer."""
    return [row for row in rows if row.peer == peer and row.status == OK]


def geometric_mean(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def key(row: Row) -> tuple:
    """What makes two rows of different runs the same measurement."""
    return (row.cell, row.case, row.setting, row.precision, row.device, row.threads, row.peer)


def _rounded(columns: dict) -> dict:
    return {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in columns.items()}


def _flat(measures: dict, prefix: str = "") -> dict[str, str]:
    """Nested measures as `outer inner: value` lines; lists stay in the JSON file."""
    lines = {}
    for name, value in measures.items():
        if isinstance(value, dict):
            lines |= _flat(value, f"{prefix}{name} ")
        elif not isinstance(value, list):
            lines[prefix + name] = f"{value:.5g}" if isinstance(value, float) else str(value)
    return lines
