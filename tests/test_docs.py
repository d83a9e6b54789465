"""The Python examples in README.md and docs/ run, from top to bottom of each page; its numbers are those measured, or
the planner's.
"""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.cases import ACCEPTANCE
from benchmarks.peer_table import peer_table
from benchmarks.report import markdown_table
from benchmarks.results import FOLDER, Results

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.usefixtures("cheap_onnx")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # One page turns it on, which tests that follow in this process would see.
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec("\n".join(blocks), {"__name__": "__main__"})


def test_the_table_of_the_readme_is_the_report():
    table = markdown_table(peer_table(Results.read(FOLDER / "intel-r-xeon-r-processor-2-cores-avx512" / "main.json")))
    assert len(table.splitlines()) > len(ACCEPTANCE)
    assert f"\n\n{table}\n\n" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tests_that_a_page_names_are_there(page):
    names = re.findall(r"\btest_\w+\.py\b", page.read_text())
    assert {name for name in names if not (ROOT / "tests" / name).is_file()} == set()


def test_the_estimates_of_layer_norm_are_the_planners():
    """docs/regularised.md: microseconds of an H100, forward / backward."""
    core = pytest.importorskip("fusedlstm._core", reason="built without pybind11")
    device = next(d for d in core.known_devices() if "H100" in d.name)
    rows = re.findall(r"^\| (LSTM|GRU), H = (\d+) \|(.*)\|$", (ROOT / "docs/regularised.md").read_text(), re.MULTILINE)
    assert rows
    for cell, hidden, columns in rows:
        problem = {"device": device, "cell": cell.lower(), "T": 100, "B": 16, "H": int(hidden)}
        on_chip, by_steps, plain = (
            [call(**problem, **of_column, backward=backward) for backward in (False, True)]
            for call, of_column in (
                (core.varied_plan, {"request": "local"}),
                (core.varied_plan, {"request": "stream"}),
                (core.plan, {"dtype": "float32"}),
            )
        )
        for column, plans in zip(columns.split("|"), (on_chip, by_steps, plain), strict=True):
            estimates = [re.search(r"estimated ([\d.]+) us", str(plan))[1] for plan in plans]
            assert column.strip() == " / ".join(estimates)
