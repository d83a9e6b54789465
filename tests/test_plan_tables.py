"""Files of what was measured on a GPU: shared by processes, brought along by programs, and damaged."""

import json

import pytest
import torch
from contest_stand_in import contest  # noqa: F401  (a fixture)
from forked_python import run_python

from fusedlstm import FusedLSTM, _contest


def test_shipped_file(contest, monkeypatch):  # noqa: F811
    """FUSEDLSTM_PLANS comes before what this machine measured."""
    module, x = FusedLSTM(4, 20), torch.randn(6, 3, 4)
    with torch.no_grad():
        module(x)
    name = _contest.last[1].name
    contest.planner.tables.add(name, {"cudnn": False, "microseconds": {}})
    file = contest.tmp_path / "plans.json"
    file.write_text(json.dumps({"format": 1, "gpu": "NVIDIA H200", "problems": {name: {"cudnn": True}}}))
    monkeypatch.setenv("FUSEDLSTM_PLANS", str(file))
    contest.planner.reload()
    _contest._decisions.clear()
    with torch.no_grad():
        module(x)
    assert contest.ran == ["cudnn"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"format": 2, "gpu": "NVIDIA H200", "problems": {}}', "expected a table of format 1, got 2"),
        ('{"format": 1, "gpu": "Tesla T4", "problems": {}}', "expected a table of NVIDIA H200, got one of Tesla T4"),
        ('{"format": 1, "gpu": "NVIDIA H200", "problems": {"a": {"plan": 3}}}', "expected a plan"),
        ('{"format": 1, "gpu": "NVIDIA H200", "problems": {"a": 3}}', "AttributeError"),
        (None, "FileNotFoundError"),
    ],
)
def test_damaged_file(text, reason, contest, monkeypatch):  # noqa: F811
    """A warning, and calls go on without it."""
    file = contest.tmp_path / "plans.json"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("FUSEDLSTM_PLANS", str(file))
    with pytest.warns(RuntimeWarning, match="chooses kernels without .*plans.json") as caught:
        contest.planner.reload()
    assert len(caught) == 1 and reason in str(caught[0].message)
    FusedLSTM(4, 20)(torch.randn(6, 3, 4))


def test_damaged_own_table_is_replaced(contest):  # noqa: F811
    path = contest.planner.tables.path
    path.parent.mkdir(parents=True)
    path.write_text("half a ta")
    with pytest.warns(RuntimeWarning, match="chooses kernels without"):
        contest.planner.reload()
    with pytest.warns(RuntimeWarning, match="chooses kernels without"):
        contest.planner.tables.add("a", {"plan": "stream"})
    contest.planner.reload()
    assert contest.planner.tables.find("a") == {"plan": "stream"}


def test_table_that_cannot_be_written(contest):  # noqa: F811
    """What was measured serves this process all the same."""
    (contest.tmp_path / "fusedlstm").write_text("a file where a folder is to be")
    contest.planner.times["cudnn"] = 1
    module, x = FusedLSTM(4, 20), torch.randn(6, 3, 4)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True), torch.no_grad():
        with pytest.warns(RuntimeWarning, match="could not keep it in .*fusedlstm"):
            module(x)
        module(x)
    assert contest.ran[-1] == "cudnn"


def test_user_without_a_home(contest, monkeypatch):  # noqa: F811
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("tempfile.tempdir", str(contest.tmp_path))

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", no_home)
    contest.planner.reload()
    contest.planner.tables.add("a", {"plan": "stream"})
    assert contest.planner.tables.path.is_relative_to(contest.tmp_path) and contest.planner.tables.path.is_file()


def test_folder_that_cannot_be_read(contest, monkeypatch):  # noqa: F811
    """As of another user: a warning, and no error of the call."""

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.is_file", denied)
    with pytest.warns(RuntimeWarning, match="chooses kernels without .*PermissionError"):
        contest.planner.reload()
    monkeypatch.undo()


PROCESSES = """
import os
from fusedlstm._plan_tables import Tables
for number in range(3):
    if not os.fork():
        tables = Tables("NVIDIA H200", {"cuda": "13.0"})
        for i in range(20):
            tables.add(f"{number} {i}", {"plan": "stream"})
        os._exit(0)
for _ in range(3):
    assert os.wait()[1] == 0
"""


def test_processes_share_a_table(contest):  # noqa: F811
    """Several that write at once lose nothing."""
    done = run_python(PROCESSES, XDG_CACHE_HOME=contest.tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = (contest.tmp_path / "fusedlstm/plans").glob("*.json")
    assert file.name == "nvidia-h200-cuda13.0.json"
    assert len(json.loads(file.read_text())["problems"]) == 60
    assert [path.suffix for path in file.parent.iterdir() if path.suffix == ".tmp"] == []
