"""What the CPU chooses by sizes and threads alone: how many layers of a stack run abreast, and what divides a layer."""

import pytest
import torch

import fusedlstm  # noqa: F401  (its operators)


def plan(kind="forward", T=300, B=1, I=64, H=64, proj=0, directions=1, gates=4, layers=2, threads=2):
    return torch.ops.fusedlstm._cpu_plan(kind, [T, B, I, H, proj, directions, gates], layers, threads)


KINDS = "forward", "frozen", "quantized", "backward"
# Sizes beside those above, and how many layers run abreast.
ABREAST = [
    ({}, 2),
    ({"layers": 1}, 1),
    ({"layers": 5}, 2),
    ({"layers": 5, "threads": 3}, 3),
    ({"layers": 5, "threads": 8}, 5),
    ({"threads": 1}, 1),
    ({"T": 64}, 2),
    ({"T": 63}, 1),  # the second layer would wait for too much of them
    ({"B": 7}, 2),
    ({"B": 8}, 1),  # each thread has good tiles of its own
    ({"B": 8, "H": 32, "layers": 3, "threads": 3}, 3),
    ({"directions": 2}, 1),  # each step of the upper layer reads all of the lower one
    ({"H": 4, "I": 4}, 1),  # less work than to wake a thread
    ({"H": 24, "I": 24}, 2),
]


@pytest.mark.parametrize(("sizes", "expected"), ABREAST, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_abreast(kind, sizes, expected):
    words = plan(kind, **sizes)
    assert words == f"{expected} layers abreast, packed" if expected > 1 else "abreast" not in words


# Where threads that meet in every step are as fast: wide layers, of whose steps a meeting is little, and short ones,
# where a layer waits long for the one before it.
MEETINGS = [
    ("forward", {"H": 128, "T": 300}, True),
    ("forward", {"H": 128, "T": 100}, False),
    ("forward", {"H": 256, "T": 300}, False),
    ("frozen", {"H": 192, "T": 1000}, False),
    ("backward", {"H": 128, "T": 300}, True),
    ("backward", {"H": 256, "T": 300}, False),
    ("quantized", {"H": 128, "T": 100}, True),
    ("quantized", {"H": 256, "T": 100}, True),
    ("quantized", {"H": 1024, "T": 300}, False),
    ("forward", {"H": 256, "proj": 64}, True),  # a step has a quarter of the work
]


@pytest.mark.parametrize(("kind", "sizes", "expected"), MEETINGS, ids=str)
def test_layers_abreast_or_meetings(kind, sizes, expected):
    words = "2 layers abreast, packed" if expected else "packed:units by 2 threads"
    assert plan(kind, **sizes) == words


# Of one layer in two directions.
DIRECTIONS = [
    ({"threads": 1}, ""),
    ({"threads": 2}, ":rows by 2 threads"),
    ({"threads": 4}, ":rows by 2 threads"),
    ({"threads": 2, "H": 512}, ":rows by 2 threads"),
    ({"threads": 4, "H": 512}, ":units by 4 threads"),  # half of a step takes longer than a quarter and to meet
    ({"threads": 4, "B": 64}, ":rows by 4 threads"),
    ({"threads": 4, "H": 8, "I": 8, "T": 10}, ""),
]


@pytest.mark.parametrize(("sizes", "expected"), DIRECTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_each_direction_has_a_thread_before_threads_meet_in_steps(kind, sizes, expected):
    assert plan(kind, directions=2, layers=1, **sizes) == f"packed{expected}"


def test_threads_by_name(forced):
    forced("", "abreast")
    assert plan(T=1, layers=9, threads=4) == "4 layers abreast, direct"
    forced("", "packed:units")
    assert plan(threads=4) == "packed:units by 4 threads"


@pytest.mark.parametrize(
    "arguments", [("sideways",), ("forward", 1, 1, 1, 1, 0, 1, 4, 0), ("forward", 1, 1, 1, 1, 0, 1, 4, 1, 0)]
)
def test_refuses_what_is_no_plan(arguments):
    with pytest.raises(RuntimeError, match="expected forward, frozen, quantized or backward, 7 sizes, and layers"):
        plan(*arguments)
