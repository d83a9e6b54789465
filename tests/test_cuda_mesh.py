"""MESH on the emulated GPU: the backward pass of an LSTM by clusters that each have a part of its units."""

import emulator
import pytest
import torch
from emulated_layer import EVERYTHING, Emulated
from test_cuda_emulated import LENGTHS, ROW_STATES, allowed, make
from tolerance import assert_near

# A cluster has 128 units with 16 bits and 64 with TF32; a tile has 32 batch rows, or 64 with TF32.
FEW = ("both directions", "packed", "resets and lengths")
RUNS = [("bfloat16", states) for states in ROW_STATES]
RUNS += [(arithmetic, states) for arithmetic in ("float16", "tf32") for states in FEW]


def backward(layer, request="mesh", seed=0):
    """All gradients; there is no forward pass of MESH."""
    module = emulator.module()
    out = Emulated(module, layer, "stream").forward()
    with emulator.options(module, seed=seed):
        return Emulated(module, layer, request).backward(out, EVERYTHING)


def check(layer, arithmetic, **options):
    """Every gradient near the reference. options: as of `backward`."""
    expected = layer.reference()
    for name, value in backward(layer, **options).items():
        assert_near(value, expected[name], allowed(layer, arithmetic, name), name)


@pytest.mark.parametrize(("arithmetic", "states"), RUNS)
def test_row_states(arithmetic, states):
    """In one cluster, most of whose CTAs have no unit, and some no column, of so few."""
    check(make(arithmetic, 3, len(LENGTHS), 20, **ROW_STATES[states]), arithmetic, seed=len(states) % 4)


@pytest.mark.parametrize(("T", "B", "H"), [(2, 1, 1), (3, 33, 16), (2, 32, 128), (3, 3, 129)], ids=str)
@pytest.mark.parametrize("arithmetic", ["bfloat16", "tf32"])
def test_tails(arithmetic, T, B, H):
    """Sizes below, on and above the tiles of batch and the units of CTAs and clusters."""
    check(make(arithmetic, T, B, H), arithmetic)


@pytest.mark.slow
def test_many_clusters():
    """As many as a device has, all of K that a CTA has room for, and the last cluster not full; in any arithmetic."""
    check(make("bfloat16", 2, 5, 1000), "bfloat16")


@pytest.mark.slow
def test_long_sequences_go_round_the_ring():
    """More positions than the exchange buffer has room for. It is GRID's, which goes round it twice in its own test."""
    check(make("bfloat16", 41, 3, 20, lengths=[41, 0, 37]), "bfloat16", seed=3)


def test_more_rows_with_tf32():
    """A CTA has 8 units of 64 batch rows, two cells a thread."""
    check(make("tf32", 3, 70, 20, lengths=[b % 4 for b in range(70)]), "tf32", request="mesh:8x64")


def test_projection_by_the_effective_weight():
    check(make("bfloat16", 3, len(LENGTHS), 40, proj_size=7, lengths=LENGTHS), "bfloat16")


def test_schedules_agree_bitwise():
    layer = make("bfloat16", 3, 5, 140, lengths=[3, 1, 2, 0, 3])
    first, *others = (backward(layer, seed=seed) for seed in (0, 1, 5))
    for name, value in first.items():
        assert all(torch.equal(value, other[name]) for other in others), name


def test_ensemble_in_one_launch():
    """Each member bit for bit as alone."""
    layers = [make("bfloat16", 3, 5, 20, seed=seed, directions=2) for seed in range(3)]
    found = backward(layers)
    for m, layer in enumerate(layers):
        for name, expected in backward(layer).items():
            assert torch.equal(found[name][m], expected), name
