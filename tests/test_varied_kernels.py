"""The kernels of recurrences with variants against the reference in float64: results and every gradient."""

import json
from types import SimpleNamespace

import pytest
import torch
from pairwise import pairwise
from recurrences import CASES, FEATURES, cases, changed, check, draw, in_a_row, moved, results

from fusedlstm import _library, _recurrence
from fusedlstm._recurrence import run_recurrence
from fusedlstm.cells import CELLS
from fusedlstm.reference_varied import recurrence

INFO = json.loads(torch.ops.fusedlstm._cpu_info())
# Of all instruction sets those that have kernels of float32 and float64.
SETS = [isa for isa in INFO["available"] if isa in ("baseline", "neon", "avx2", "avx512")]
PLANS = "direct:rows", "direct:units", "packed:rows", "packed:units", "packed:units:3"

SIZES = [(7, 3, 5), (5, 9, 70), (2, 2, 1), (1, 3, 70), (1, 9, 37)]


@pairwise(case=CASES, dtype=[torch.float32, torch.float64], sizes=SIZES)
def test_values_and_gradients(case, dtype, sizes, device):
    check(lambda cell, a: run_recurrence(cell, moved(a, device)), *case, *sizes, dtype, device.type)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_instruction_set(cell, isa, forced):
    forced(isa, "")
    for name in ("zoneout", "all" if cell in ("lstm", "gru") else "lengths", *(["*all"] if cell == "lstm" else [])):
        for dtype in (torch.float32, torch.float64):
            for T in (5, 1):
                check(run_recurrence, cell, name, T, 9, 37, dtype)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_plan(cell, plan, forced):
    """Also where a team dissolves; with the same number of threads all bits are the same in every call."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        forced("", plan)
        name = {"lstm": "*all", "gru": "all"}.get(cell, "reset")
        for sizes in [(5, 9, 70), (4, 2, 5), (1, 9, 70)]:
            check(run_recurrence, cell, name, *sizes, torch.float32)
        a = changed(draw(cell, FEATURES[name], 5, 9, 70), lambda _, tensor: tensor.float())
        first, second = (results(lambda a: run_recurrence(CELLS[cell], a), a) for _ in range(2))
        if plan.count(":") == 2:
            forced("", plan.rpartition(":")[0])
            second = results(lambda a: run_recurrence(CELLS[cell], a), a)
        assert all(torch.equal(value, second[what]) for what, value in first.items())
    finally:
        torch.set_num_threads(threads)


@cases
def test_every_argument_is_seen(cell, name):
    """A kernel that overlooked one, or took another for it, would be far beyond what is allowed."""
    a = draw(cell, FEATURES[name], 5, 3, 6)
    expected = run_recurrence(CELLS[cell], a)[0]
    for argument in in_a_row(a):
        other = changed(a, lambda own, tensor: tensor.flip(-1) if own == argument else tensor)  # noqa: B023
        is_uniform = argument.startswith("zoneout") and "expectation" in FEATURES[name]
        differs = (run_recurrence(CELLS[cell], other)[0] - expected).abs().max() > 1e-3
        assert differs or is_uniform, argument


@pytest.mark.parametrize("cell", CELLS)
def test_empty(cell):
    for sizes in [(0, 3, 5), (4, 0, 5), (0, 0, 5)]:
        a = draw(cell, ("zoneout", "mask"), *sizes)
        found, expected = (results(run, a) for run in (lambda a: run_recurrence(CELLS[cell], a),
                                                       lambda a: recurrence(CELLS[cell], *a)))  # fmt: skip
        assert all(torch.equal(value, expected[what]) for what, value in found.items())


BAD = {
    "weight_hh": (lambda a: a._replace(weight_hh=a.weight_hh[:-1]), r"weight_hh of size \[20, 5\], got \[19, 5\]"),
    "weight_ih": (lambda a: a._replace(weight_ih=a.weight_ih[:, 1:]), r"weight_ih of size \[20, 7\], got \[20, 6\]"),
    "gain_ih": (lambda a: a._replace(gain=torch.ones(20).double()), "expected gain_ih with the gain of an LSTM"),
    "bias_ih": (lambda a: a._replace(bias_ih=torch.ones(20).double()), "expected bias_ih of a cell whose gates are"),
    "initial": (lambda a: a._replace(initial=a.initial[:1]), "2 initial, got 1"),
    "mask": (lambda a: a._replace(mask=torch.ones(2, 3, 5)), r"mask of size \[7 or 1, 3 or 1, 5\], got \[2, 3, 5\]"),
    "dtype": (lambda a: a._replace(bias=torch.ones(20, dtype=torch.float32)), "bias of the input's dtype"),
    "lengths": (
        lambda a: a._replace(lengths=torch.tensor([1, 2, 3], dtype=torch.int32)),
        "lengths of dtype int64, got int32",
    ),
    "input": (lambda a: a._replace(input=a.input.half()), "input of dtype float32 or float64, got float16"),
    "zoneout": (lambda a: a._replace(zoneout=[torch.ones(1, 1, 5, dtype=torch.float64)]), "0 or 2 zoneout, got 1"),
}


@pytest.mark.parametrize(("change", "text"), BAD.values(), ids=BAD)
def test_refusals(change, text):
    with pytest.raises(RuntimeError, match=text):
        torch.ops.fusedlstm.lstm_recurrence(*change(draw("lstm", ("mask",), 7, 3, 5)))
    with pytest.raises(RuntimeError, match="of an LSTM alone"):
        torch.ops.fusedlstm.gru_recurrence(*draw("gru", ("gain_c",), 7, 3, 5))


def on_gpu(T=7, device="cuda:0"):
    """Arguments as of tensors on a GPU."""
    x = SimpleNamespace(is_cpu=False, is_meta=False, requires_grad=False, device=torch.device(device))
    return draw("lstm", ("mask",), T, 3, 5)._replace(input=x)


def test_devices_without_kernels_run_the_loop_and_say_so(monkeypatch):
    _recurrence._lacks_kernels.cache_clear()
    monkeypatch.setattr(_recurrence, "recurrence", lambda cell, *arguments: "the loop")
    monkeypatch.setattr(_library, "cuda_inactive_reason", lambda: _library.Reason("the stand-in has no driver"))
    for device, reason in {"cuda:0": "the stand-in has no driver", "xpu:0": "cpu and cuda, not for xpu"}.items():
        with pytest.warns(RuntimeWarning, match=f"over steps in plain PyTorch on {device}: .*{reason}"):
            assert run_recurrence(CELLS["lstm"], on_gpu(device=device)) == "the loop"
    _recurrence._lacks_kernels.cache_clear()


def test_gpus_with_kernels_run_them(monkeypatch):
    _recurrence._lacks_kernels.cache_clear()
    monkeypatch.setattr(_library, "why_no_kernels", lambda device: None)
    operators = SimpleNamespace(recurrence=lambda *arguments: ("the kernels", [], []))
    monkeypatch.setattr(_recurrence, "_OPERATORS", {"lstm": operators})
    for T in (7, 1):
        assert run_recurrence(CELLS["lstm"], on_gpu(T)) == ("the kernels", [])
    _recurrence._lacks_kernels.cache_clear()


def test_operators_are_described_to_compilers():
    """Sizes, strides and dtypes of results as the fake kernels say, and gradients also through AOTAutograd."""
    for cell, name in (("lstm", "*all"), ("gru", "mask")):
        a = changed(draw(cell, FEATURES[name], 3, 2, 5), lambda own, tensor: tensor.requires_grad_(own != "mask"))
        a = a._replace(zoneout=[z.detach() for z in a.zoneout])
        operator = getattr(torch.ops.fusedlstm, f"{cell}_recurrence").default
        torch.library.opcheck(
            operator, tuple(a), test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        )
