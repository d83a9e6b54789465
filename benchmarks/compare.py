"""Two result files side by side: `python -m benchmarks.compare BEFORE AFTER`.

Shows the rows both have whose ratio moved by more than the spread: the quartiles of the two runs do
not overlap. Ratios are compared and not times, since both sides of a ratio met the same machine.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .results import Results, geometric_mean, key
from .rows import OK, Row
from .table import duration, print_wide


@dataclass(frozen=True)
class Change:
    """The same measurement in two runs."""

    before: Row
    after: Row

    @property
    def factor(self) -> float:
        """Above 1: the fused layer gained on its peer."""
        return self.after.ratio / self.before.ratio

    @property
    def beyond_spread(self) -> bool:
        before, after = self.before, self.after
        return after.ratio_low > before.ratio_high or after.ratio_high < before.ratio_low


def changes(before: Results, after: Results) -> list[Change]:
    """Rows timed in both, the largest loss first."""
    old = {key(row): row for row in before.rows if row.status == OK}
    pairs = [Change(old[key(row)], row) for row in after.rows if row.status == OK and key(row) in old]
    return sorted(pairs, key=lambda change: change.factor)


def status_changes(before: Results, after: Results) -> list[tuple[Row, Row]]:
    """Rows of both runs whose status differs (a result that became wrong, a peer now present)."""
    old = {key(row): row for row in before.rows}
    pairs = [(old[key(row)], row) for row in after.rows if key(row) in old]
    return [pair for pair in pairs if pair[0].status != pair[1].status]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, help="a .json (or .csv next to one)")
    parser.add_argument("after", type=Path)
    parser.add_argument("--all", action="store_true", help="also what stayed within the spread")
    arguments = parser.parse_args(argv)
    try:
        before, after = Results.read(arguments.before), Results.read(arguments.after)
    except ValueError as error:
        parser.error(str(error))
    console = Console()
    for name in sorted(before.machine.keys() | after.machine.keys()):
        old, new = before.machine.get(name, "-"), after.machine.get(name, "-")
        if old != new:
            console.print(f"{name}: {old} -> {new}", highlight=False, markup=False)
    pairs = changes(before, after)
    if pairs:
        print_wide(console, _table([pair for pair in pairs if arguments.all or pair.beyond_spread], after.fused))
    for old_row, new_row in status_changes(before, after):
        name = " ".join(map(str, key(old_row)))
        console.print(f"{name}: {old_row.status} -> {new_row.status} {new_row.note}", markup=False)
    if not pairs:
        console.print("No measurement was timed in both files.")
        return
    moved = sum(pair.beyond_spread for pair in pairs)
    mean = geometric_mean([pair.factor for pair in pairs])
    console.print(
        f"{len(pairs)} measurements in both, {moved} moved beyond the spread, geometric mean of the change {mean:.3f}x"
    )


def _table(pairs: list[Change], fused: str) -> Table:
    table = Table(title="Ratio against the peer, before and after")
    for name in ("case", "mode", "precision", "thr", "peer"):
        table.add_column(name)
    for name in (fused, "then", "ratio", "then", "change"):
        table.add_column(name, justify="right")
    for pair in pairs:
        old, new = pair.before, pair.after
        color = "dim" if not pair.beyond_spread else "green" if pair.factor > 1 else "red"
        times = (duration(old.fused_us), duration(new.fused_us))
        ratios = (f"{old.ratio:.2f}", f"{new.ratio:.2f}", f"[{color}]{pair.factor:.2f}x[/]")
        table.add_row(new.case, new.setting, new.precision, str(new.threads), new.peer, *times, *ratios)
    return table


if __name__ == "__main__":
    main()
