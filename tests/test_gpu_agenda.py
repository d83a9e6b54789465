"""tools/gpu_visit/agenda.py: what a visit of a GPU runs, and whether that is all."""

import json
import re
import sys

import pytest
import scripts
from test_varied_kernels import SIZES

from fusedlstm.cells import CELLS

TOOLS = scripts.folder()
sys.path.append(str(TOOLS))

from gpu_visit import agenda  # noqa: E402


def test_the_texts_name_every_step():
    text = (TOOLS / "gpu_check").read_text().split("worth:")[1].split("A hang")[0]
    named = re.findall(r"^(?:first|second| +) +(\w+) ", text, re.MULTILINE)
    assert named == [step for shares in agenda.of_gpu().shares.values() for step in shares]


def test_the_items_reach_every_compiled_kernel():
    """By the planner, for an H200: the request of each item is taken, or there is no such kernel."""
    core = pytest.importorskip("fusedlstm._core")
    device = next(d for d in core.known_devices() if "H200" in d.name)
    dtypes = {"tf32": "float32"}
    reached, cells = set(), set()
    for item in agenda.of_gpu().experiments["kernels"].items:
        precision = item["precision"]
        problem = {key: item[key] for key in ("cell", "T", "B", "H")} | {"dtype": dtypes.get(precision, precision)}
        options = {"allow_tf32": precision == "tf32", "backward": item["pass"] == "backward", "request": item["plan"]}
        try:
            core.plan(device=device, **problem, **options)
        except ValueError as error:
            assert "none compiled" in str(error), item["name"]
        else:
            shape, sizes = item["name"].split(f" {precision} ", 1)
            assert sizes
            reached.add(f"{precision} {shape}")
            cells.add(item["cell"])
    assert cells == set(CELLS)
    assert reached == {name for name in kernels_with_budget() if name.split()[1] not in VARIED}


# The kernels of recurrences with variants that keep weight_hh on the chip, by the cell that they serve.
VARIED = {"variedlstm": "lstm", "normedgru": "gru"}


def kernels_with_budget():
    return json.loads((TOOLS / "sass_budget.json").read_text())["sm_90a"]


def test_the_tests_reach_every_kernel_with_variants():
    """No item does: those of tests/test_varied_kernels.py, which the second part runs, for an H200."""
    core = pytest.importorskip("fusedlstm._core")
    assert "tests/test_varied_kernels.py" in agenda.TESTS
    assert {name for name in kernels_with_budget() if name.split()[1] in VARIED} == {
        f"float32 {kernel} local {way}" for kernel in VARIED for way in ("forward", "backward")
    }
    device = next(d for d in core.known_devices() if "H200" in d.name)
    for cell in VARIED.values():
        for way in ("forward", "backward"):
            problem = {"device": device, "cell": cell, "backward": way == "backward"}
            plans = [core.varied_plan(T=T, B=B, H=H, **problem) for T, B, H in SIZES if T > 1]
            assert plans and all(f"local {way}" in plan for plan in plans)  # a single step gains nothing by it


def test_shares_name_every_step():
    visit = agenda.of_gpu()
    steps = {step for shares in visit.shares.values() for step in shares}
    assert steps == visit.experiments.keys() | visit.commands.keys()
    for name, experiment in visit.experiments.items():
        assert (TOOLS / f"gpu_visit/experiments/{name}.py").is_file()
        names = [item["name"] for item in experiment.items]
        assert len(set(names)) == len(names), name
    for file in agenda.TESTS:
        assert (TOOLS.parent / file).is_file()


def test_the_benchmark_ends_before_its_step_does():
    """Its rows come at its end."""
    visit = agenda.of_gpu()
    shares, command = visit.shares["second"], visit.commands["benchmark"]
    words = command.lines(None)[0]
    seconds = 60 * float(words[words.index("--limit") + 1])
    given = shares["benchmark"] / sum(shares.values()) * (visit.seconds["second"] - visit.ending)
    assert seconds < min(given, command.seconds) - 5  # in which it starts
