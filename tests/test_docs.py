"""The Python examples in README.md and docs/ run, from top to bottom of each page; its numbers are those measured."""

import re
from pathlib import Path

import pytest
from cases import ACCEPTANCE, BENCHMARK

from benchmarks.results import FOLDER, Results, geometric_mean

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec("\n".join(blocks), {"__name__": "__main__"})


NOT_MEASURED = "\N{EN DASH}"


def _label(case):
    """As the table of README.md names a case."""
    parts = [str(size) for size in (case.T, case.B, case.input_size, case.hidden_size)]
    parts += [f"{case.num_layers} layers"] * (case.num_layers > 1) + ["bidirectional"] * case.bidirectional
    parts += ["resets"] * case.resets + [case.variable] * bool(case.variable)
    return ", ".join(parts + [f"projection {case.proj_size}"] * (case.proj_size > 0))


def test_the_table_of_the_readme_is_the_report():
    results = Results.read(FOLDER / "amd-epyc-2-cores" / "main.json")
    ratios = {(row.case, row.setting, row.threads): row.ratio for row in results.rows}
    columns = [(mode, threads) for mode in ("inference", "train") for threads in (1, 2)]
    names = {_label(case): [case.name] for case in BENCHMARK} | {
        "**geometric mean of the plain shapes**": [case.name for case in ACCEPTANCE]
    }
    table = re.search(r"\n\| T, B, I, H \|.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    lines = [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]
    assert len(lines) > len(ACCEPTANCE)
    for label, *numbers in lines:
        for number, column in zip(numbers, columns, strict=True):
            keys = [(name, *column) for name in names[label]]
            found = [ratios[key] for key in keys if key in ratios]
            assert number.strip("*") == (f"{geometric_mean(found):.2f}" if found else NOT_MEASURED), (label, column)
