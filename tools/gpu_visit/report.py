"""Rows as they come, and what is made of them: at most four files, whole after every second and every step.

    report.json     {part: {kit, device, steps: {step: {seconds, failures, rows}}}}
    report.md       the same as tables
    log.txt         what the processes printed, and every row at once
    constants.json  the rows of the step "constants"

A part that is run into the same folder as another keeps what is there of the other one.
"""

import contextlib
import json
import os
import threading
import time

from gpu_visit import findings

SECONDS_BETWEEN_WRITES = 1.0
MOST_FAILURES = 40  # that are named at the end; all are in report.md


class Log:
    """log.txt; the processes write into `file` too."""

    def __init__(self, path):
        self.file = open(path, "a", buffering=1, errors="replace")  # noqa: SIM115  (open as long as this object)

    def write(self, text):
        if text.strip():
            self.file.write(text.rstrip("\n") + "\n")


class Report:
    """The results of one part, in `out`."""

    def __init__(self, out, part, kit):
        self.out, self.log = out, Log(out / "log.txt")
        self.parts = {}
        with contextlib.suppress(OSError, ValueError):
            self.parts = json.loads((out / "report.json").read_text())
        self.part = self.parts[part] = {"kit": kit, "device": None, "steps": {}}
        self.lock, self.written = threading.Lock(), 0.0

    def begin(self, step):
        """Returns the record of a step, for add() and end()."""
        record = self.part["steps"][step] = {"seconds": 0.0, "failures": [], "rows": []}
        self.log.write(f"==== {step}")
        return record

    def add(self, record, row):
        with self.lock:
            record["rows"].append(row)
            self.log.write(json.dumps(row))
            if time.monotonic() - self.written > SECONDS_BETWEEN_WRITES:
                self._write()

    def end(self, record, seconds, failures):
        with self.lock:
            record |= {"seconds": round(seconds, 1), "failures": failures}
            for failure in failures:
                self.log.write(f"FAILED {failure}")
            self._write()

    def is_good(self):
        return not any(problems(step) for step in self.part["steps"].values())

    def _write(self):
        files = {"report.json": json.dumps(self.parts, indent=1) + "\n", "report.md": everything(self.parts)}
        if constants := self.part["steps"].get("constants"):
            files["constants.json"] = json.dumps(constants["rows"], indent=1) + "\n"
        for name, text in files.items():
            partial = self.out / f".{name}"
            partial.write_text(text)
            os.replace(partial, self.out / name)
        self.written = time.monotonic()


def problems(step):
    """(name, why) of all that failed in a step: rows, and the step itself."""
    rows = [(str(row.get("name", "")), row["failed"]) for row in step["rows"] if "failed" in row]
    return rows + [("", failure) for failure in step["failures"]]


def markdown(columns, rows):
    """A table, its columns padded so that it can be read as it is."""
    cells = [[str(cell).replace("|", "/").replace("\n", " ") for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    head, *body = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in cells]
    return [head, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *body]


def outcomes(steps):
    rows = []
    for name, step in steps.items():
        failed, skipped = len(problems(step)), sum("skipped" in row for row in step["rows"])
        outcome = f"{failed} FAILED" if failed else "passed"
        rows.append((name, step["seconds"], len(step["rows"]), skipped, outcome))
    return markdown(("step", "seconds", "rows", "skipped", "outcome"), rows)


def failures(steps, most=None):
    lines = [
        f"{step}: {name + ': ' if name else ''}{why}"
        for step, record in steps.items()
        for name, why in problems(record)
    ]
    more = [f"... and {len(lines) - most} more, see report.md"] if most and len(lines) > most else []
    return lines[:most] + more


def tables(steps):
    """What to look at first: the steps, the model's constants, and the speed against cuDNN."""
    rows = {name: step["rows"] for name, step in steps.items()}
    lines = outcomes(steps)
    if constants := findings.model_constants(rows.get("constants", [])):
        lines += ["", *markdown(("cycles", "cost.h", "measured"), constants)]
    if speed := findings.speedups(rows.get("speed", [])):
        lines += ["", *markdown(("x cuDNN's speed", "precision", "mean", "worst", "best"), speed)]
    return lines


def summary(steps, width):
    """The last lines that are printed, none wider than the terminal."""
    lines = tables(steps)
    if failed := failures(steps, MOST_FAILURES):
        lines += ["", "Failed:", *failed]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def everything(parts):
    """All rows of all steps of all parts."""
    lines = []
    for part, record in parts.items():
        lines += [f"# {part} part", "", f"kit: {record['kit']}", "", f"device: {record['device']}", ""]
        lines += tables(record["steps"])
        if failed := failures(record["steps"]):
            lines += ["", "Failed:", "", *(f"* {line}" for line in failed)]
        for name, step in record["steps"].items():
            if rows := step["rows"]:
                columns = list(dict.fromkeys(key for row in rows for key in row))
                lines += ["", f"## {name}", ""]
                lines += markdown(columns, [[shown(row.get(column, "")) for column in columns] for row in rows])
        lines.append("")
    return "\n".join(lines)


def shown(value):
    return f"{value:.4g}" if isinstance(value, float) else value
