"""`python -m fusedlstm verify` passes here, and would not if FusedLSTM were wrong."""

import pytest
import torch

import fusedlstm
from fusedlstm import verify

SMALL = verify.Check("small", 5, 3, {"input_size": 4, "hidden_size": 6})


@pytest.mark.parametrize("check", verify.CHECKS, ids=lambda check: check.name)
def test_every_check_passes(check, device):
    result = verify.compare(check, torch.float32, device)
    assert result.passed, result


@pytest.mark.parametrize("dtype", verify.DTYPES, ids=str)
def test_every_dtype_passes(dtype, device):
    assert verify.compare(SMALL, dtype, device).passed


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
    monkeypatch.setattr(verify, "DTYPES", (torch.float32,))
    assert verify.main() == 1
    assert "WRONG small" in capsys.readouterr().out
