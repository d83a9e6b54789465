"""`python -m fusedlstm verify` passes here, and would not if FusedLSTM were wrong."""

import pytest
import torch

import fusedlstm
from fusedlstm import verify

FLOAT32 = verify.PRECISIONS[0]
SMALL = verify.Check("small", 5, 3, {"input_size": 4, "hidden_size": 6})


@pytest.mark.parametrize("check", verify.CHECKS, ids=lambda check: check.name)
def test_every_check_passes(check, device):
    result = verify.compare(check, FLOAT32, device)
    assert result.passed, result


@pytest.mark.parametrize("precision", verify.PRECISIONS, ids=lambda precision: precision.name)
def test_every_precision_passes(precision, device):
    assert verify.compare(SMALL, precision, torch.device(device)).passed


def test_tf32_is_a_precision_of_cuda(monkeypatch):
    """It is on by default: float32 held to its own rounding would call a right layer wrong."""
    asked = []

    class Asks(fusedlstm.FusedLSTM):
        def forward(self, *arguments):
            asked.append(torch.backends.cudnn.rnn.fp32_precision == "tf32")
            return super().forward(*arguments)

    monkeypatch.setattr(fusedlstm, "FusedLSTM", Asks)
    tf32 = verify.PRECISIONS[1]
    assert tf32 in verify.precisions(torch.device("cuda")) and tf32 not in verify.precisions(torch.device("cpu"))
    results = [verify.compare(SMALL, precision, torch.device("cpu")) for precision in (FLOAT32, tf32)]
    assert asked == [False, True]
    assert results[0].allowed < 1e-5 < results[1].allowed < 4e-3


def broken(change):
    """A FusedLSTM whose output goes through `change`."""

    class Broken(fusedlstm.FusedLSTM):
        def forward(self, *arguments):
            output, states = super().forward(*arguments)
            return change(output), states

    return Broken


@pytest.mark.parametrize(
    "change",
    [lambda output: output * 1.001, lambda output: output.flip(0), lambda output: output * float("nan")],
    ids=["one per mille", "wrong order", "NaN"],
)
def test_a_wrong_module_fails(monkeypatch, capsys, change):
    monkeypatch.setattr(fusedlstm, "FusedLSTM", broken(change))
    monkeypatch.setattr(verify, "CHECKS", (SMALL,))
    monkeypatch.setattr(verify, "PRECISIONS", (FLOAT32,))
    assert verify.main() == 1
    assert "WRONG small" in capsys.readouterr().out
