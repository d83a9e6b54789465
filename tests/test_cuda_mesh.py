"""MESH on the emulated GPU: an LSTM by clusters that each have a part of its units, and forward with TF32 alone."""

import emulator
import pytest
import torch
from emulated_layer import EVERYTHING, Emulated
from test_cuda_emulated import LENGTHS, ROW_STATES, allowed, make
from tolerance import assert_near

# A cluster has 128 units with 16 bits and 64 with TF32; a tile has 32 batch rows, or 64 with TF32.
FEW = ("both directions", "packed", "resets and lengths")
RUNS = [("tf32", "forward", states) for states in ROW_STATES]
RUNS += [("bfloat16", "backward", states) for states in ROW_STATES]
RUNS += [(arithmetic, "backward", states) for arithmetic in ("float16", "tf32") for states in FEW]
PASSES = [("tf32", "forward"), ("bfloat16", "backward"), ("tf32", "backward")]


def run(layer, which, request="mesh", seed=0):
    """All results of the forward pass, or all gradients from what STREAM has left."""
    module = emulator.module()
    out = None if which == "forward" else Emulated(module, layer, "stream").forward()
    with emulator.options(module, seed=seed):
        one = Emulated(module, layer, request)
        return one.forward() if which == "forward" else one.backward(out, EVERYTHING)


def check(layer, arithmetic, which, **options):
    """Every result near the reference. options: as of `run`."""
    expected = layer.reference()
    for name, value in run(layer, which, **options).items():
        assert_near(value, expected[name], allowed(layer, arithmetic, name), name)


@pytest.mark.parametrize(("arithmetic", "which", "states"), RUNS)
def test_row_states(arithmetic, which, states):
    """In one cluster, most of whose CTAs have no unit, and some no column, of so few."""
    check(make(arithmetic, 3, len(LENGTHS), 20, **ROW_STATES[states]), arithmetic, which, seed=len(states) % 4)


@pytest.mark.parametrize(("T", "B", "H"), [(2, 1, 1), (3, 33, 16), (2, 32, 128), (3, 3, 129)], ids=str)
@pytest.mark.parametrize(("arithmetic", "which"), PASSES)
def test_tails(arithmetic, which, T, B, H):
    """Sizes below, on and above the tiles of batch and the units of CTAs and clusters."""
    check(make(arithmetic, T, B, H), arithmetic, which)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arithmetic", "which", "B", "H"), [("bfloat16", "backward", 5, 1000), ("tf32", "forward", 5, 1000)]
)
def test_many_clusters(arithmetic, which, B, H):
    """As many as a device has, all of K that a CTA has room for, and the last cluster not full."""
    check(make(arithmetic, 2, B, H), arithmetic, which)


@pytest.mark.slow
@pytest.mark.parametrize(("arithmetic", "which"), PASSES[:2])
def test_long_sequences_go_round_the_ring(arithmetic, which):
    """More positions than the exchange buffer has room for. It is GRID's, which goes round it twice in its own test."""
    check(make(arithmetic, 41, 3, 20, lengths=[41, 0, 37]), arithmetic, which, seed=3)


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_more_rows_with_tf32(which):
    """A CTA has 8 units of 64 batch rows, two cells a thread."""
    layer = make("tf32", 3, 70, 20, lengths=[b % 4 for b in range(70)], resets=True, reset_states=True)
    check(layer, "tf32", which, request="mesh:8x64")


@pytest.mark.parametrize(("arithmetic", "which"), PASSES[:2])
def test_projection_by_the_effective_weight(arithmetic, which):
    check(make(arithmetic, 3, len(LENGTHS), 40, proj_size=7, lengths=LENGTHS), arithmetic, which)


@pytest.mark.parametrize(("arithmetic", "which"), PASSES[:2])
def test_schedules_agree_bitwise(arithmetic, which):
    layer = make(arithmetic, 3, 5, 140, lengths=[3, 1, 2, 0, 3])
    first, *others = (run(layer, which, seed=seed) for seed in (0, 1, 5))
    for name, value in first.items():
        assert all(torch.equal(value, other[name]) for other in others), name


@pytest.mark.parametrize(("arithmetic", "which"), PASSES[:2])
def test_ensemble_in_one_launch(arithmetic, which):
    """Each member bit for bit as alone."""
    layers = [make(arithmetic, 3, 5, 20, seed=seed, directions=2) for seed in range(2)]
    found = run(layers, which)
    for m, layer in enumerate(layers):
        for name, expected in run(layer, which).items():
            assert torch.equal(found[name][m], expected), name
