"""The usual call of a layer takes the short way (fusedlstm/_run.py): what fits is run once, the rest elsewhere."""

import pytest
import torch
from family import EVERY, LSTM, every

from fusedlstm import _module, _run

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
    """A list of the ways that calls went which were short: that of gradients, or that of inference."""
    calls = []

    def watch(module, name, way):
        run = getattr(module, name)

        def watched(*arguments):
            results = run(*arguments)
            calls.append(way if results is not None else f"no {way}")
            return results

        monkeypatch.setattr(module, name, watched)

    watch(_run, "_run_plain", "gradients")
    watch(_module, "run_at_once", "inference")
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
    assert short_way == ["gradients"] * 3 + ["inference"] * 3


@every
@pytest.mark.parametrize("grad", [True, False])
def test_leaves_the_rest_to_the_long_way(member, grad, short_way):
    layer = member.layer(4, 6).eval()
    with torch.set_grad_enabled(grad):
        layer(torch.randn(5, 4))  # one sequence without a batch
        with pytest.raises(RuntimeError, match=r"[Ee]xpected"):
            layer(torch.randn(5, 3, 7))
        layer(torch.randn(5, 3, 4), lengths=torch.tensor([5, 2, 0]))
        member.layer(4, 6, num_layers=2, dropout=0.5)(torch.randn(5, 3, 4))
    assert short_way == []


@every
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("input_size, hidden_size", [(5, 6), (4, 7)])
def test_weights_that_fit_together_but_not_the_layer_are_refused(member, input_size, hidden_size, grad, short_way):
    layer, other = member.layer(4, 6).eval(), member.layer(input_size, hidden_size)
    for name, weight in other.named_parameters():
        setattr(layer, name, weight)
    with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, ValueError), match=r"[Ee]xpected"):
        layer(torch.randn(5, 3, input_size))
    assert short_way == []


def test_what_the_operator_refuses_is_told_as_by_the_long_way(short_way):
    layer = LSTM.layer(4, 6).eval()
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size"):
        layer(torch.randn(5, 3, 4), (torch.zeros(1, 3, 6), torch.zeros(1, 2, 6)))
    assert short_way == ["no inference"]


def test_weights_that_are_no_parameters_go_the_long_way(short_way):
    layer = LSTM.layer(4, 6).eval()
    weight = layer.weight_hh_l0.detach().clone()
    del layer.weight_hh_l0
    layer.weight_hh_l0 = weight
    with torch.no_grad():
        layer(torch.randn(5, 3, 4))
    assert short_way == ["gradients"]
