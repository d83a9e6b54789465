"""What the tests of frozen layers have in common."""

import copy

import torch
from family import tensors_of

from fusedlstm import freeze


def pair(member, *sizes, dtype=torch.float32, **options):
    """A layer, and the same frozen."""
    layer = member.layer(*sizes, **options, dtype=dtype).eval()
    return layer, freeze(copy.deepcopy(layer))


def assert_same(found, expected, atol=0):
    """Of results of layers: output, or PackedSequence, and states."""
    found, expected = ([getattr(y, "data", y), *tensors_of(hx)] for y, hx, *_ in (found, expected))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)
