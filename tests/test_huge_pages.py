"""Weights of int8 layers in huge pages: where they lie, and that they are tensors as any others."""

import copy
import gc
import io
from itertools import pairwise

import torch
from torch import nn

from fusedlstm import quantize
from fusedlstm._huge_pages import PAGE, side_by_side


def tensors():
    """Of several dtypes, together more than two pages."""
    return [
        torch.randint(-127, 128, (3, 5, PAGE // 5), dtype=torch.int8),
        torch.randn(33),
        torch.randint(1 << 30, (7,), dtype=torch.int32),
    ]


def test_tensors_lie_one_behind_the_other_from_a_huge_page_on():
    given = tensors()
    moved = side_by_side(given)
    assert moved[0].data_ptr() % PAGE == 0
    for one, next in pairwise(moved):
        assert 0 <= next.data_ptr() - (one.data_ptr() + one.nbytes) < 64
    for own, other in zip(moved, given, strict=True):
        assert own.data_ptr() != other.data_ptr() and own.untyped_storage().nbytes() == other.nbytes
        assert own.dtype is other.dtype and torch.equal(own, other)


def test_each_keeps_the_memory():
    given = tensors()
    last = side_by_side(given)[-1]
    gc.collect()
    assert torch.equal(last, given[-1])
    last.zero_()
    assert not last.any()


def test_others_stay_where_they_are():
    small, meta = [torch.zeros(9)], [torch.zeros(PAGE, device="meta")]
    own = [nn.Parameter(torch.zeros(PAGE))]
    for given in (small, meta, own):
        assert side_by_side(given) is given


def test_a_large_layer_has_its_weights_there():
    layer = nn.LSTM(640, 640, num_layers=2).eval()
    module = quantize(copy.deepcopy(layer))
    weights = module._weights()
    assert weights[0].data_ptr() % PAGE == 0
    assert all(one.data_ptr() < next.data_ptr() for one, next in pairwise(weights))
    x, file = torch.randn(1, 1, 640), io.BytesIO()
    with torch.no_grad():
        expected = module(x)[0]
        assert torch.equal(copy.deepcopy(module)(x)[0], expected)
        torch.testing.assert_close(expected, layer(x)[0], atol=0.02, rtol=0)
        torch.save(module.state_dict(), file)
        assert len(file.getvalue()) < 1.01 * sum(weight.nbytes for weight in weights)
        other = quantize(nn.LSTM(640, 640, num_layers=2).eval())
        places = [weight.data_ptr() for weight in other._weights()]
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(x)[0], expected)
    assert [weight.data_ptr() for weight in other._weights()] == places
