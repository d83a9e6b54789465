"""Dropout between layers: torch's own masks from torch's own generator."""

import pytest
import torch
from family import every
from torch.nn.utils.rnn import pack_sequence

from fusedlstm.cells import CELLS


def _same_draws(fused, plain, x):
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
@every
def test_masks_are_torch_s(member, p):
    options = {"proj_size": 3} if CELLS[member.cell].has_projection else {}
    for more in ({}, {"bidirectional": True, **options}):
        _same_draws(*member.pair(3, 8, num_layers=3, dropout=p, **more), torch.randn(6, 4, 3))


@every
def test_masks_of_other_arrangements(member):
    _same_draws(*member.pair(3, 8, num_layers=3, dropout=0.5, batch_first=True), torch.randn(4, 6, 3))
    packed = pack_sequence([torch.randn(n, 3) for n in (5, 3, 2)])
    _same_draws(*member.pair(3, 8, num_layers=3, dropout=0.5), packed)


@every
def test_no_draw_without_need(member, device):
    x = torch.randn(6, 4, 3, device=device)
    rng_state = torch.cuda.get_rng_state if x.is_cuda else torch.get_rng_state
    for module in (
        member.layer(3, 8, num_layers=3, dropout=0.5, device=device).eval(),
        member.layer(3, 8, num_layers=3, device=device),
    ):
        before = rng_state()
        assert torch.equal(module(x)[0], module(x)[0])
        assert torch.equal(rng_state(), before)


@every
def test_reproducible_and_fresh_at_each_call(member, device):
    module = member.layer(3, 8, num_layers=2, dropout=0.5, device=device)
    x = torch.randn(6, 4, 3, device=device)
    torch.manual_seed(1)
    first, second = module(x)[0], module(x)[0]
    torch.manual_seed(1)
    assert torch.equal(module(x)[0], first) and not torch.equal(first, second)


@every
def test_probability_may_change(member, device):
    module = member.layer(3, 8, num_layers=2, dropout=0.5, device=device)
    x = torch.randn(6, 4, 3, device=device)
    module.dropout = 0.0
    assert torch.equal(module(x)[0], module(x)[0])


@every
def test_backward_uses_the_mask_of_forward(member, device):
    """p = 1: nothing reaches the first layer, and no gradient either."""
    module = member.layer(3, 8, num_layers=2, dropout=1.0, device=device)
    module(torch.randn(6, 4, 3, device=device))[0].sum().backward()
    assert (module.weight_ih_l0.grad == 0).all() and (module.weight_hh_l1.grad != 0).any()
