"""The Markdown report that README links, from a result file: `python -m benchmarks.report FILE`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from .int8_table import int8_table
from .peer_table import peer_table
from .results import OTHER_WORK, Results, beside
from .rows import LEFT_OUT, OK, SKIPPED, Row
from .table import duration, left_out, losses, not_timed, summary


def markdown(results: Results, figures: dict[str, Path]) -> str:
    """Machine, summary, figures, every row, and what was not timed."""
    parts = [
        f"# {results.fused} on {results.machine['device']}",
        f"Ratio: time of the peer divided by time of {results.fused} (cell {results.cell}), median over interleaved "
        f"pairs; above 1 {results.fused} is faster. Every result was compared with float64 before it was timed. "
        "Every measured row is here.",
        *([f"**{said}.**"] if (said := results.machine.get(OTHER_WORK)) else []),
        _lines(f"* {name}: {value}" for name, value in results.machine.items()),
        "## Summary",
        markdown_table(
            [
                ("peer", "mode", "precision", "threads", "cases", "geometric mean", "worst", "best", "slower"),
                *([*map(str, group), *line] for group, line in summary(results.rows).items()),
            ]
        ),
    ]
    if table := peer_table(results):
        parts += ["## Cases by peers, float32", markdown_table(table)]
    if table := int8_table(results):
        parts += ["## Cases by peers, int8", _INT8_NOTE, markdown_table(table)]
    if below := losses(results.rows):
        parts += ["## Below 1", _lines(f"* {line}" for line in below)]
    if results.measures:
        parts += ["## Other measures", _measures(results.measures)]
    for title, path in figures.items():
        parts += [f"## {title}", f"![{title}]({path.name})"]
    parts += ["## All rows", _floor_note(results.fused), _rows_table(results)]
    if names := left_out(results.rows):
        parts += ["## Left out", _lines(f"* {line}" for line in names)]
    if reasons := not_timed(results.rows):
        parts += [
            "## Not timed",
            _lines(f"* {status}, {peer}: {note} ({count} rows)" for (status, peer, note), count in reasons.items()),
        ]
    return "\n\n".join(parts) + "\n"


_INT8_NOTE = (
    "Time of ours, and of the others over it; losses are bold. Errors are the root mean square of the difference from "
    "float64 with the weights before quantization, in percent of that of the result; of outputs and last states the "
    "largest. Bytes are those of the stored weights and biases in percent of float32's."
)


def _floor_note(fused: str) -> str:
    return (
        f"`% mm`: {fused}'s rate of matrix operations relative to a large `torch.mm` in the same "
        "run; it can pass 100 where `torch.mm` is not the fastest product of the machine. "
        "`% floor`: the least time any program needs (operations at the fastest measured product, "
        f"or compulsory bytes at copy bandwidth) relative to {fused}'s time. "
        "Errors are relative to the largest value of each result; in int8, root mean squares to each other."
    )


def _rows_table(results: Results) -> str:
    names = "case, cell, T, B, I, H, layers, feature, mode, precision, threads, peer, "
    names += f"{results.fused}, peer's, ratio, quartiles, "
    names += "GFLOP/s, % mm, % floor, error, peer's, peak MiB, peer's, plan"
    shown = (row for row in results.rows if row.status not in (SKIPPED, LEFT_OUT))
    return markdown_table([names.split(", "), *map(_cells, shown)])


def _cells(row: Row) -> list[str]:
    layers = f"{row.layers}" + " bidirectional" * (row.directions > 1)
    feature = row.feature + f" proj {row.proj_size}" * bool(row.proj_size)
    sizes = map(str, (row.T, row.B, row.I, row.H))
    head = [row.case, row.cell, *sizes, layers, feature, row.setting, row.precision, str(row.threads), row.peer]
    if row.fused_us is None:
        return [*head, row.status, *[""] * 11]
    if row.status == OK:
        quartiles = f"{row.ratio_low:.2f} to {row.ratio_high:.2f}"
        pair = [duration(row.peer_us), f"{row.ratio:.2f}", quartiles]
    else:
        pair = [row.status, "", ""]
    rates = [row.fused_gflops, row.percent_of_mm, row.percent_of_floor]
    numbers = [f"{value:.0f}" for value in rates]
    numbers += [_optional(value, ".1e") for value in (row.fused_error, row.peer_error)]
    numbers += [_optional(value, ".1f") for value in (row.fused_peak_mib, row.peer_peak_mib)]
    return [*head, duration(row.fused_us), *pair, *numbers, row.plan]


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _measures(measures: dict, indent: str = "") -> str:
    lines = []
    for name, value in measures.items():
        if isinstance(value, dict):
            lines += [f"{indent}* {name}", _measures(value, indent + "  ")]
        elif not isinstance(value, list):
            text = f"{value:.4g}" if isinstance(value, float) else value
            lines.append(f"{indent}* {name}: {text}")
    return _lines(lines)


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head."""
    head, *rows = lines
    return _lines(map(markdown_line, (head, ["---"] * len(head), *rows)))


def markdown_line(cells: Sequence[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def write(results: Results, stem: Path) -> Path:
    """CSV, JSON, figures and report next to each other; returns the report's path."""
    from .plots import draw_all  # matplotlib takes a second to import

    results.write(stem)
    figures = draw_all(results, stem.parent, stem.name)
    path = beside(stem, ".md")
    path.write_text(markdown(results, figures))
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("file", type=Path, help="a .json (or .csv next to one); figures and report go beside it")
    source = parser.parse_args(argv).file
    try:
        results = Results.read(source)
    except ValueError as error:
        parser.error(str(error))
    print(write(results, source.with_suffix("")))


if __name__ == "__main__":
    main()
