"""Faults planted in the CUDA code of recurrences with variants, each of which the emulated tests must notice.

As test_host_faults.py plants them: a fault is a change to the text of a source.
"""

import functools
import re
from dataclasses import dataclass

import emulated_varied
import emulator
import planted_faults
import pytest
import torch
from emulator import build
from recurrences import FEATURES, changed, draw, results
from test_cuda_faults import WRONG
from test_host_faults import UNWRITTEN

from fusedlstm import _recurrence
from fusedlstm.cells import CELLS
from fusedlstm.reference_varied import recurrence

RACE = "race on shared memory"
# Text of varied.cu, where it chooses a kernel.
OTHERS = {"lstm": ("Unvaried<Gru>", "NormedGru", "Unvaried<Rnn>"), "gru": ("VariedLstm", "Unvaried<Rnn>")}
OF_DOUBLE = "args.dtype == Dtype::kFloat64 ? with_cell(double{}) : "


@dataclass(frozen=True)
class Fault(planted_faults.Fault):
    feature: str  # of FEATURES
    cell: str = "lstm"


FAULTS = [
    Fault("sum read before all warps have theirs", "block_sums.cuh", "    block_sync();\n", "", rf"{RACE}|{UNWRITTEN}",
          "norm"),
    Fault("two sums in the same memory", "block_sums.cuh", "    parts_ += warps;\n", "", RACE, "norm"),
    Fault("sums of the first warp alone", "block_sums.cuh", "lane < warps ?", "lane < 1 ?", WRONG, "norm"),
    Fault("units beyond a block forgotten", "varied_row.cuh", "u += static_cast<int>(blockDim.x)", "u += H",
          rf"{WRONG}|{UNWRITTEN}", "wide"),
    Fault("mask forgotten on the way back", "varied_backward.cuh", "a.mask.data ? Base::factor(a.mask, t, u)",
          "false ? acc_t(0)", WRONG, "mask per step"),
    Fault("gradient passes through a reset", "varied_backward.cuh", "        d_state(k, u) = 0;\n", "", WRONG, "reset"),
    Fault("reset of another step", "varied_forward.cuh", "clock, t);\n    Base",
          "clock, a.rows.T - 1 - t);\n    Base", WRONG, "reset"),
    Fault("row goes on after its end", "varied_forward.cuh", "    if (!clock.runs(t)) return;\n", "", WRONG, "lengths"),
    Fault("c kept by the zoneout of h", "varied_forward.cuh", "kept(1, t, u, c)", "kept(0, t, u, c)", WRONG, "zoneout"),
    Fault("state of the step after kept", "varied_forward.cuh", "if constexpr (kSizes.carried > 0) state(1, u) = kept",
          "Base::of_step(a.before[1], t, H, u) = state(1, u) = kept", WRONG, "*peepholes"),
    Fault("scale of the other norm", "varied_backward.cuh", "totals.sums, t, kScale)",
          "totals.sums, t, kScaleC)", WRONG, "*norm of c without bias"),
    Fault("gain left out on the way back", "varied_backward.cuh",
          "    d *= Base::parameter(gain, q * H + u);\n", "", WRONG, "norm", "gru"),
    Fault("norm of the input left out on the way back", "varied_backward.cuh", "if (a.gain_ih) leave_norm",
          "if (false) leave_norm", WRONG, "norm"),
    Fault("input outside the GRU's norm", "varied_forward.cuh",
          "Cell::kNormsBoth ? memory.sums[i] + memory.from_input[i] : memory.sums[i]",
          "memory.sums[i]", WRONG, "norm", "gru"),
    Fault("h before not given to the cell", "varied_backward.cuh",
          "kSizes.takes_h ? Base::of_step(a.before[0], t, H, u) : acc_t(0)", "acc_t(0)", WRONG, "zoneout", "gru"),
    Fault("peephole of o sees the old c", "cells/varied.h", "pre[3] + w[2] * c}", "pre[3] + w[2] * c_before[0]}", WRONG,
          "*peepholes"),
    Fault("parameters of one batch row alone", "host/varied.cpp", "host_.sum_rows(result_, rows_)",
          "host_.copy(result_, rows_[0])", WRONG, "bias"),
    Fault("parameters not begun at zero", "host/varied.cpp", "    host.zero(rows_);\n", "", UNWRITTEN, "bias"),
    Fault("idle rows not cleared", "host/varied.cpp", "  if (!r.lengths) return;\n", "  return;\n",
          rf"{UNWRITTEN}|{WRONG}", "lengths"),
    Fault("gradients of the other direction's step", "host/varied.cpp", "r.is_reverse ? r.steps - 1 - step : step",
          "step", rf"{UNWRITTEN}|{WRONG}", "all"),
    Fault("product of h without its mask", "host/varied.cpp", "r.mask.data ? operand : last", "last",
          WRONG, "mask"),
    Fault("gradient of weights by h without its mask", "host/varied.cpp",
          "in.entered.data ? in.entered : in.before[0]", "in.before[0]", WRONG, "mask"),
    Fault("product of the input's part", "host/varied.cpp", "d_from_hidden.data ? d_from_hidden : d_from_input",
          "d_from_input", WRONG, "bias", "gru"),
    Fault("mask of one step for all", "host/varied.cpp", "all.sizes[0] > 1 ? all.strides[0] : 0", "0", WRONG,
          "mask per step"),
]  # fmt: skip


# In the kernel that keeps weight_hh on the chip.
RESIDENT_FAULTS = [
    Fault("operand read before all have entered", "varied_resident.cu",
          "    block_sync();\n    sums[i]", "    sums[i]", RACE, "mask"),
    Fault("sums read before all are there", "varied_resident.cu", "    block_sync();\n    row.step(t);",
          "    row.step(t);", UNWRITTEN, "norm"),
    Fault("nothing behind the operand", "varied_resident.cu", "h[k] = 0;", "(void)h;", UNWRITTEN, "mask"),
    Fault("h multiplied without its mask", "varied_resident.cu", "product.of(shared_address(operand))",
          "product.of(shared_address(h))", WRONG, "mask"),
    Fault("input of another step", "varied_resident.cu", "row_of(args.rows, t, b)",
          "row_of(args.rows, T - 1 - t, b)", WRONG, "norm", "gru"),
    Fault("last states forgotten", "varied_resident.cu", "  row.leave();\n", "", WRONG, "norm", "gru"),
    Fault("last vector forgotten", "resident_product.cuh", "#pragma unroll 2\n    for (int v = 0; v < vectors_; ++v)",
          "#pragma unroll 2\n    for (int v = 0; v < vectors_ - 1; ++v)", WRONG, "beyond registers"),
    Fault("vector of another row", "resident_product.cuh", "shared_(shared + threadIdx.x * kVectorBytes)",
          "shared_(shared + threadIdx.x / 2 * 2 * kVectorBytes)", RACE, "beyond registers"),
    Fault("sums of the step before overwritten", "varied_forward.cuh", "    Base::sums = {};\n", "", RACE, "norm"),
]  # fmt: skip


@functools.cache
def arguments(cell, feature):
    """In float32; H is no whole number of warps. "wide": more units than a block has threads; "beyond registers":
    more columns of weight_hh than its threads keep there."""
    sizes = {"wide": (2, 2, 520), "beyond registers": (2, 2, 61)}.get(feature, (4, 3, 37))
    return changed(draw(cell, FEATURES.get(feature, ()), *sizes), lambda _, tensor: tensor.float())


@functools.cache
def expected(cell, feature):
    exact = changed(arguments(cell, feature), lambda _, tensor: tensor.double())
    return results(lambda a: recurrence(CELLS[cell], *a), exact)


def verdict(module, cell, feature, monkeypatch, request):
    """What a test would say: None, the error, or WRONG."""
    monkeypatch.setattr(_recurrence, "_OPERATORS", emulated_varied.operators(module, request))
    try:
        found = results(lambda a: emulated_varied.run(CELLS[cell], a), arguments(cell, feature))
    except module.EmulationError as error:
        return str(error)
    exact = expected(cell, feature)
    is_right = all(torch.allclose(value.double(), exact[name], rtol=1e-4, atol=1e-4) for name, value in found.items())
    return None if is_right else WRONG


def changed_module(fault, folder):
    """The emulated module, of float32 and the fault's cell alone, after a change to the text of a source."""
    csrc = planted_faults.copy_of_sources(folder)
    target = fault.planted(csrc)
    planted_faults.change(csrc, "varied.cu", OF_DOUBLE, "")
    for cell in OTHERS[fault.cell]:
        planted_faults.change(csrc, "varied.cu", f"return f(acc, {cell}{{}})", "return cudaErrorInvalidValue")
    return build.load(build.build({"varied.cpp" if target.parent.name == "host" else "varied.cu": csrc}))


def changed_resident(fault, folder):
    """The emulated module after a change to the text of a source of the kernel on the chip."""
    csrc = planted_faults.copy_of_sources(folder)
    fault.planted(csrc)
    return build.load(build.build({"varied_resident.cu": csrc}))


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_noticed(fault, tmp_path, monkeypatch):
    expect_noticed(fault, changed_module(fault, tmp_path), monkeypatch, "stream")


@pytest.mark.parametrize("fault", RESIDENT_FAULTS, ids=str)
def test_fault_on_the_chip_is_noticed(fault, tmp_path, monkeypatch):
    expect_noticed(fault, changed_resident(fault, tmp_path), monkeypatch, "local")


def expect_noticed(fault, module, monkeypatch, request):
    of = fault.cell, fault.feature, monkeypatch, request
    assert verdict(emulator.module(), *of) is None, "the sources as they are"
    message = verdict(module, *of)
    assert message, f"{fault.name}: the kernels ran as if nothing were wrong"
    assert re.search(fault.reported, message), f"{fault.name}: expected {fault.reported!r}, got {message!r}"
