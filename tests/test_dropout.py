"""Dropout between layers: torch's own masks from torch's own generator."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fusedlstm import FusedLSTM


def _pair(p, **options):
    plain, fused = nn.LSTM(3, 8, 3, dropout=p, **options), FusedLSTM(3, 8, 3, dropout=p, **options)
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def _same_draws(plain, fused, x):
    """Both called from one seed: the same values, and the same generator state afterwards."""
    torch.manual_seed(5)
    expected, state = plain(x)[0], torch.get_rng_state()
    torch.manual_seed(5)
    actual = fused(x)[0]
    assert torch.equal(torch.get_rng_state(), state)
    if isinstance(x, torch.Tensor):
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    else:
        torch.testing.assert_close(actual.data, expected.data, rtol=0, atol=2e-6)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 3}], ids=str)
def test_masks_are_torch_s(p, options):
    _same_draws(*_pair(p, **options), torch.randn(6, 4, 3))


def test_masks_of_other_arrangements():
    _same_draws(*_pair(0.5, batch_first=True), torch.randn(4, 6, 3))
    _same_draws(*_pair(0.5), pack_sequence([torch.randn(n, 3) for n in (5, 3, 2)]))


def test_no_draw_without_need(device):
    x = torch.randn(6, 4, 3, device=device)
    rng_state = torch.cuda.get_rng_state if x.is_cuda else torch.get_rng_state
    for module in (
        FusedLSTM(3, 8, 3, dropout=0.5, device=device).eval(),
        FusedLSTM(3, 8, 3, device=device),
    ):
        before = rng_state()
        assert torch.equal(module(x)[0], module(x)[0])
        assert torch.equal(rng_state(), before)


def test_reproducible_and_fresh_at_each_call(device):
    module, x = FusedLSTM(3, 8, 2, dropout=0.5, device=device), torch.randn(6, 4, 3, device=device)
    torch.manual_seed(1)
    first, second = module(x)[0], module(x)[0]
    torch.manual_seed(1)
    assert torch.equal(module(x)[0], first) and not torch.equal(first, second)


def test_probability_may_change(device):
    module, x = FusedLSTM(3, 8, 2, dropout=0.5, device=device), torch.randn(6, 4, 3, device=device)
    module.dropout = 0.0
    assert torch.equal(module(x)[0], module(x)[0])


def test_backward_uses_the_mask_of_forward(device):
    """p = 1: nothing reaches the first layer, and no gradient either."""
    module = FusedLSTM(3, 8, 2, dropout=1.0, device=device)
    module(torch.randn(6, 4, 3, device=device))[0].sum().backward()
    assert (module.weight_ih_l0.grad == 0).all() and (module.weight_hh_l1.grad != 0).any()
