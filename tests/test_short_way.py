"""The usual call of a layer takes the short way (fusedlstm/_run.py): what fits is run once, the rest elsewhere."""

import pytest
import torch
from family import EVERY, LSTM, every

from fusedlstm import _run

OPTIONS = {
    "plain": {},
    "no-bias": {"bias": False},
    "batch-first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "stack": {"num_layers": 3, "dropout": 0.5},
}
USUAL = {f"{member}-{name}": (member, options) for member in EVERY for name, options in OPTIONS.items()}
USUAL["lstm-projection"] = LSTM, {"proj_size": 3}


@pytest.fixture
def short_way(monkeypatch):
    """A list of the names of the layers that were run this way."""
    calls, run_plain = [], _run._run_plain

    def watched(x, states, weights, sizes, batch_first):
        calls.append(sizes.cell)
        return run_plain(x, states, weights, sizes, batch_first)

    monkeypatch.setattr(_run, "_run_plain", watched)
    return calls


@pytest.mark.parametrize("member, options", USUAL.values(), ids=USUAL)
def test_runs_what_is_usual(member, options, short_way):
    fused, plain = member.pair(4, 6, **options)
    fused, plain = fused.eval(), plain.eval()
    x = torch.randn(5, 3, 4, requires_grad=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            (y, hx), (expected, _) = fused(x), plain(x)
            assert torch.equal(fused(x, hx)[0], fused(x, hx)[0])
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    assert short_way == [member.cell] * 6


@every
def test_leaves_the_rest_to_the_long_way(member, short_way):
    layer = member.layer(4, 6)
    layer(torch.randn(5, 4))  # one sequence without a batch
    with pytest.raises(RuntimeError, match=r"[Ee]xpected"):
        layer(torch.randn(5, 3, 7))
    layer(torch.randn(5, 3, 4), lengths=torch.tensor([5, 2, 0]))
    member.layer(4, 6, num_layers=2, dropout=0.5)(torch.randn(5, 3, 4))
    assert short_way == []
