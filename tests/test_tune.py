"""`python -m fusedlstm tune`, on the stand-in of a GPU."""

import json
import re
from pathlib import Path

import pytest
import scripts
import torch
from contest_stand_in import contest  # noqa: F401  (a fixture)

from fusedlstm import __main__ as command
from fusedlstm import _tune


@pytest.fixture
def on_cpu(contest, monkeypatch):  # noqa: F811
    """`--device cpu` is the stand-in's GPU."""
    monkeypatch.setattr(_tune, "_why_not", lambda device: None)


def test_tune(contest, on_cpu, capsys):  # noqa: F811
    """Measures ahead what later calls then find; a second run measures nothing."""
    contest.planner.times["cudnn"] = 12.5
    out = contest.tmp_path / "shipped.json"
    arguments = ["tune", "--shapes", "6,3,4,20", "5,2,3,7,2", "--dtype", "float32", "bfloat16", "--out", str(out)]
    arguments += ["--device", "cpu"]
    for _ in range(2):
        assert command.main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == "problem fusedlstm cuDNN us of a call, and what runs it".split()
        assert len(lines) == 1 + 2 * 2 * 2 + 2 and str(contest.planner.tables.path) in lines[-2]
        assert all(re.search(r" (inference|training) +500(\.0)? +12.5  cuDNN \(", line) for line in lines[1:-2])
        assert max(map(len, lines[:-2])) < 120
        timed, contest.planner.timed = len(contest.planner.timed), []
    assert timed == 0
    table = json.loads(out.read_text())
    assert table["gpu"] == "NVIDIA H200" and len(table["problems"]) == 8 + 8  # calls; passes, which share the forward


def test_tune_a_model(contest, on_cpu, capsys):  # noqa: F811
    model = torch.nn.ModuleDict(
        {
            "encoder": torch.nn.LSTM(4, 6, 2, bidirectional=True),
            "twin": torch.nn.LSTM(4, 6, 2, bidirectional=True),
            "projected": torch.nn.LSTM(4, 6, proj_size=3),
            "head": torch.nn.Linear(6, 4),
            "decoder": torch.nn.GRU(5, 7),
        }
    )
    file = contest.tmp_path / "model.pt"
    torch.save(model.state_dict(), file)
    arguments = ["--model", str(file), "--steps", "3", "5", "--batch", "2", "--mode", "inference"]
    arguments += ["--device", "cpu"]
    assert command.main(["tune", *arguments]) == 0
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert names == [
        f"{cell} float32 T={T} B=8 {sizes} inference"
        for cell, sizes in (
            ("lstm", "H=6 P=0 D=2 I=4 L=2"), ("lstm", "H=6 P=3 D=1 I=4 L=1"), ("gru", "H=7 P=0 D=1 I=8 L=1")
        )
        for T in (4, 8)
    ]  # fmt: skip


def test_the_rows_of_a_visit(contest, on_cpu, monkeypatch, capsys):  # noqa: F811
    """tools/gpu_visit/tune_rows.py: what each contender took is kept, and by nothing but the rows."""
    monkeypatch.syspath_prepend(scripts.folder())
    monkeypatch.setenv("XDG_CACHE_HOME", "as it was")  # and is again after the test
    from gpu_visit import tune_rows

    contest.planner.times["cudnn"] = 12.5

    def command_or_fault(arguments):
        if "9,9,9,9" in arguments:
            raise RuntimeError("CUDA error: planted")
        command.main(arguments)

    monkeypatch.setattr(tune_rows, "run_command", command_or_fault)
    tune_rows.main(["9,9,9,9:float32", "6,3,4,20:float32"], "cpu")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    sizes = "lstm float32 T=8 B=8 H=20 P=0 D=1"
    assert [(row["name"], row.get("failed")) for row in rows] == [
        *((f"9,9,9,9:float32 {mode}", "RuntimeError: CUDA error: planted") for mode in ("inference", "training")),
        (f"{sizes} I=4 L=1 inference", None), (f"{sizes} forward", None),
        (f"{sizes} I=4 L=1 training", None), (f"{sizes} backward", None), (f"{sizes} forward", None),
    ]  # fmt: skip
    call, forward = rows[2:4]
    assert call["cudnn"] is True and call["microseconds"] == {"fusedlstm": 500, "cudnn": 12.5}
    assert forward["plan"] in forward["microseconds"] and "stream" in forward["microseconds"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--shapes", "3,4,5"], "expected T,B,I,H or T,B,I,H,L of 1 and more, got 3,4,5"),
        (["--shapes", "3,4,0,5"], "of 1 and more, got 3,4,0,5"),
        ([], "one of the arguments --shapes --model is required"),
        (["--shapes", "3,4,5,6", "--device", "cpu"], "expected a GPU that fusedlstm has kernels for: got cpu"),
        (["--shapes", "3,4,5,six"], "of 1 and more, got 3,4,5,six"),
        (["--shapes", f"3,4,5,{2**64}"], "of 1 and more, got 3,4,5,1844"),
        (["--shapes", "3,4,5,6", "--device", "abacus"], "--device: expected a device such as cuda or cuda:1, got 'aba"),
        (["--shapes", "3,4,5,6", "--cell", "gru", "--proj-size", "2"], "only supported for LSTM"),
        (["--shapes", "3,4,5,6", "--proj-size", "6"], "proj_size has to be smaller than hidden_size"),
        (["--shapes", "3,4,5,6", "--out", "nowhere/out.json"], "--out: expected a file in a folder that there is"),
        (["--model", "nothing.pt", "--steps", "0"], "--steps: expected an integer from 1 to 2147483647, got '0'"),
        (["--model", "nothing.pt", "--batch", "x"], "--batch: expected an integer from 1 to 2147483647, got 'x'"),
        (["--model", "nothing.pt"], "expected a state_dict with weight_ih_l0 in it, got none in nothing.pt"),
        (["--model", "nowhere.pt"], "a state_dict that torch.load reads with weights_only=True, got nowhere.pt: "),
        (["--model", "empty.pt"], "got empty.pt: EOFError"),
        (["--model", "pickled.pt"], "got pickled.pt: Weights only load failed"),
        (["--model", "listed.pt"], "expected a state_dict of tensors by their names, got list"),
        (["--model", "odd.pt"], "with layers of torch.nn in it, got weights of no such layer at rnn.weight_ih_l0"),
        (["--model", "alone.pt"], "with layers of torch.nn in it, got weights of no such layer at weight_ih_l0"),
    ],
    ids=str,
)
def test_tune_refuses(arguments, reason, contest, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(contest.tmp_path)
    Path("empty.pt").touch()
    files = {
        "nothing": {"head.weight": torch.ones(2)}, "pickled": torch.nn.LSTM(2, 3), "listed": [1, 2],
        "odd": {"rnn.weight_ih_l0": torch.ones(7, 2), "rnn.weight_hh_l0": torch.ones(7, 5)},
        "alone": {"weight_ih_l0": torch.ones(8, 2)},
    }  # fmt: skip
    for name, saved in files.items():
        torch.save(saved, f"{name}.pt")
    with pytest.raises(SystemExit):
        command.main(["tune", *arguments])
    assert reason in capsys.readouterr().err


def test_tune_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(SystemExit):
        command.main(["tune", "--shapes", "3,4,5,6"])
    assert "is_available() is False" in capsys.readouterr().err
