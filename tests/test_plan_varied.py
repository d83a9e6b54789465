"""The plans of recurrences with variants: on the chip where that fits and is cheaper, else with a reason."""

import re

import pytest

from fusedlstm.__main__ import main

core = pytest.importorskip("fusedlstm._core", reason="built without pybind11")


def plan(device="H200", **options):
    known = next(d for d in core.known_devices() if device in d.name)
    return core.varied_plan(device=known, **{"T": 100, "B": 16, "H": 128} | options)


def test_takes_the_kernel_on_the_chip_where_it_is_cheaper():
    assert plan().startswith("lstm with variants, local forward, 16 CTAs of a row, ")
    assert plan(cell="gru", H=160).startswith("gru with variants, local forward")
    assert plan(backward=True).startswith("lstm with variants, local backward, 16 CTAs of a row, ")
    assert plan(cell="gru", H=160, backward=True).startswith("gru with variants, local backward")
    many = plan(B=100_000)
    assert ", stream forward" in many and "; local" not in many  # it fits, and would take longer
    assert ", local forward" in plan(B=100_000, request="local")
    assert ", stream forward" in plan(request="stream")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"H": 129}, "expected at most 128 hidden units, got 129"),
        ({"H": 171, "cell": "gru"}, "expected at most 170 hidden units, got 171"),
        ({"dtype": "float64"}, "expected a 16-bit or 32-bit dtype, got float64"),
        ({"dtype": "float64", "backward": True}, "expected a 16-bit or 32-bit dtype, got float64"),
        ({"cell": "gru", "has_norm": False}, "expected a kernel of this cell, pass and arithmetic, got none compiled"),
        (
            {"cell": "rnn_tanh", "has_norm": False},
            "expected a kernel of this cell, pass and arithmetic, got none compiled",
        ),
    ],
)
def test_says_why_it_is_not_on_the_chip(options, reason):
    text = plan(**options)
    assert ", stream " in text and text.endswith(f"; local: {reason}")
    if "hidden" in reason or "float64" in reason:
        with pytest.raises(ValueError, match=reason):
            plan(**options, request="local")
    else:
        assert plan(**options, request="local") == text  # there is no other


def test_knows_the_shared_memory_of_a_device():
    assert "expected at most 166912 bytes of shared memory, got " in plan("A100", cell="gru", H=160)
    assert ", local forward" in plan("A100", H=128) and ", local backward" in plan("A100", H=128, backward=True)


def test_request_for_a_kernel_of_plain_layers_leaves_the_choice():
    assert plan(request="grid:16x8") == plan() == plan(request="local:128x8")


def test_program_prints_both_passes(capsys):
    assert main(["plan", "100", "16", "128", "--layer-norm"]) == 0
    _, forward, backward = capsys.readouterr().out.splitlines()
    assert forward == f"forward  {plan('H100')}" and backward == f"backward {plan('H100', backward=True)}"


@pytest.mark.parametrize(
    "options",
    ["--cell rnn_tanh", "--proj-size 3", "--bidirectional", "--layers 2", "--force local --dtype float64"],
)
def test_program_refuses_what_no_such_layer_is(options, capsys):
    with pytest.raises(SystemExit):
        main(["plan", "100", "16", "128", "--layer-norm", *options.split()])
    assert re.search(r"--layer-norm: expected|--force=local does not fit", capsys.readouterr().err)
