"""What other processes do on this process's CPUs: times that are taken beside their work are not the machine's."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from .machine import usable_cpus

_TICKS = os.sysconf("SC_CLK_TCK")
BUSY = 0.5  # cores from which on it is worth a warning


@dataclass(frozen=True)
class _Moment:
    """Seconds: of the wall clock; in which the usable CPUs worked, summed; that this process and its ended children
    worked."""

    wall: float
    busy: float
    own: float


def _now(stat: Path) -> _Moment | None:
    """None where the system does not say (no Linux, a sandbox)."""
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
        counts = [list(map(int, numbers[:8])) for name, *numbers in filter(None, lines) if name in usable]
    except (OSError, ValueError):
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    busy = sum(sum(count) - sum(count[3:5]) for count in counts) / _TICKS
    return _Moment(time.monotonic(), busy, sum(os.times()[:4])) if any(map(any, counts)) else None


class OtherWork:
    """Counts from when it is made."""

    def __init__(self, stat: Path = Path("/proc/stat")):
        self._stat = stat
        self._last = _now(stat)

    def cores(self) -> float | None:
        """How many cores other processes kept busy since the last call, on average; None where it is not known."""
        before, self._last = self._last, _now(self._stat)
        if before is None or self._last is None or self._last.wall <= before.wall:
            return None
        others = (self._last.busy - before.busy) - (self._last.own - before.own)
        return min(max(others / (self._last.wall - before.wall), 0.0), float(usable_cpus()))


def cores_busy_now(seconds: float = 0.5) -> float | None:
    """As OtherWork.cores, of a moment in which this process does nothing."""
    work = OtherWork()
    time.sleep(seconds)
    return work.cores()


def said_before(cores: float | None) -> str:
    """The sentence for the top of a report."""
    if cores is None:
        return "it is not known how many cores were busy with other work when this began"
    return f"{cores:.1f} of {usable_cpus()} cores were busy with other work when this began"


def said_meanwhile(rows_cores: list[float]) -> str:
    """As said_before, of the run: from the mean of each row."""
    mean = sum(rows_cores) / len(rows_cores)
    return f"{mean:.1f} of {usable_cpus()} cores on average over the rows, at most {max(rows_cores):.1f}"
