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
from recurrences import FEATURES, changed, draw, results
from test_cuda_faults import WRONG
from test_host_faults import UNWRITTEN

from fusedlstm import _recurrence
from fusedlstm.cells import CELLS
from fusedlstm.reference_varied import recurrence

RACE = "race on shared memory"
# Only what the faults run is compiled: float32, and no RNN.
FEWER_KERNELS = [
    ("varied.cu", "args.dtype == Dtype::kFloat64 ? with_cell(double{}) : ", ""),
    ("varied.cu", "return f(acc, Unvaried<Rnn>{})", "return cudaErrorInvalidValue"),
]


@dataclass(frozen=True)
class Fault(planted_faults.Fault):
    feature: str  # of FEATURES
    cell: str = "lstm"


LEAVES_NORM = "leave_norm(memory.d_sums, a.normed, totals[0], t"
FAULTS = [
    Fault("sum read before all warps have theirs", "block_sums.cuh", "block_sync();", "", rf"{RACE}|{UNWRITTEN}",
          "norm"),
    Fault("two sums in the same memory", "block_sums.cuh", "parts_ += kCount * warps;", "", RACE, "norm"),
    Fault("values at once in the same memory", "block_sums.cuh", "parts_[k * warps + threadIdx.x / 32] = values[k];",
          "parts_[threadIdx.x / 32] = values[k];", rf"{WRONG}|{UNWRITTEN}", "norm"),
    Fault("sums of the first warp alone", "block_sums.cuh", "lane < warps", "lane < 1", WRONG, "norm"),
    Fault("units beyond a block forgotten", "varied_row.cuh", "u += static_cast<int>(blockDim.x)", "u += H",
          rf"{WRONG}|{UNWRITTEN}", "wide"),
    Fault("mask forgotten on the way back", "varied_backward.cuh",
          "(a.mask.data ? Base::factor(a.mask, t, u) : acc_t(1))", "acc_t(1)", WRONG, "mask per step"),
    Fault("gradient passes through a reset", "varied_backward.cuh", "d_state(k, u) = 0;", "", WRONG, "reset"),
    Fault("reset of another step", "varied_forward.cuh", "is_reset(a.rows, clock, t)",
          "is_reset(a.rows, clock, a.rows.T - 1 - t)", WRONG, "reset"),
    Fault("row goes on after its end", "varied_forward.cuh", "if (!clock.runs(t)) return;", "", WRONG, "lengths"),
    Fault("c kept by the zoneout of h", "varied_forward.cuh", "kept(1, t, u, c)", "kept(0, t, u, c)", WRONG, "zoneout"),
    Fault("state of the step after kept", "varied_forward.cuh",
          "if constexpr (kSizes.carried > 0) state(1, u) = kept(1, t, u, c);",
          "Base::of_step(a.before[1], t, H, u) = state(1, u) = kept(1, t, u, c);", WRONG, "*peepholes"),
    Fault("scale of the other norm", "varied_backward.cuh", f"{LEAVES_NORM}, kScale)", f"{LEAVES_NORM}, kScaleC)",
          WRONG, "*norm of c without bias"),
    Fault("gain left out on the way back", "varied_backward.cuh",
          "d *= Base::parameter(gain, i);", "", WRONG, "norm", "gru"),
    Fault("norm of the input left out on the way back", "varied_backward.cuh",
          "if (a.gain_ih) leave_norm(memory.d_from_input, a.normed_ih, totals[1], t, kScaleIh);", "", WRONG, "norm"),
    Fault("input outside the GRU's norm", "varied_forward.cuh",
          "Cell::kNormsBoth ? memory.sums[i] + memory.from_input[i] : memory.sums[i]",
          "memory.sums[i]", WRONG, "norm", "gru"),
    Fault("h before not given to the cell", "varied_backward.cuh",
          "kSizes.takes_h ? Base::of_step(a.before[0], t, H, u) : acc_t(0)", "acc_t(0)", WRONG, "zoneout", "gru"),
    Fault("peephole of o sees the old c", "cells/varied.h", "pre[3] + w[2] * c", "pre[3] + w[2] * c_before[0]", WRONG,
          "*peepholes"),
    Fault("parameters of one batch row alone", "host/varied.cpp", "host_.sum_rows(result_, rows_)",
          "host_.copy(result_, rows_[0])", WRONG, "bias"),
    Fault("parameters not begun at zero", "host/varied.cpp", "host.zero(rows_);", "", UNWRITTEN, "bias"),
    Fault("idle rows not cleared", "host/varied.cpp", "if (!r.lengths) return;", "return;",
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


# In the kernels that keep weight_hh on the chip.
TAKES_PART = "parts[i] = product.of(shared_address(d_sums + gate * pitch));"
TAKES_SUM = "sums[i] = product.of(shared_address(operand));"
ADDS_VECTOR = "for (int j = 0; j < kWords; ++j) sums[j] += bits_float(w.w[j]) * bits_float(x.w[j]);"
RESIDENT_FAULTS = [
    Fault("operand read before all have entered", "varied_resident.cu",
          f"    block_sync();\n    {TAKES_SUM}", TAKES_SUM, RACE, "mask"),
    Fault("sums read before all are there", "varied_resident.cu", "    block_sync();\n    row.step(t);",
          "row.step(t);", rf"{RACE}|{UNWRITTEN}", "*peepholes"),
    Fault("nothing behind the operand", "varied_resident.cu", "clear(h, 2 * sizes.operand());", "", UNWRITTEN, "mask"),
    Fault("h multiplied without its mask", "varied_resident.cu", "product.of(shared_address(operand))",
          "product.of(shared_address(h))", WRONG, "mask"),
    Fault("input of another step", "varied_resident.cu", "row_of(args.rows, t, b)",
          "row_of(args.rows, T - 1 - t, b)", WRONG, "norm", "gru"),
    Fault("last states forgotten", "varied_resident.cu", "row.leave();", "", WRONG, "norm", "gru"),
    Fault("last vector forgotten", "resident_product.cuh", ADDS_VECTOR,
          ADDS_VECTOR.replace("j < kWords", "j < kWords && v < vectors_ - 1"), WRONG, "beyond registers"),
    Fault("vector of another row", "resident_product.cuh", "shared + threadIdx.x * kVectorBytes",
          "shared + threadIdx.x / 2 * 2 * kVectorBytes", RACE, "beyond registers"),
    Fault("sums of the step before overwritten", "varied_forward.cuh", "Base::sums = {};", "", RACE, "norm"),
    Fault("gates read before all units have theirs", "varied_backward.cuh",
          "block_sync();", "", rf"{RACE}|{UNWRITTEN}", "bias"),
    Fault("gates multiplied before all are there", "varied_resident.cu", "row.keep(t);\n    block_sync();",
          "row.keep(t);", RACE, "norm"),
    Fault("parts added before all are there", "varied_resident.cu", f"{TAKES_PART}\n    block_sync();",
          TAKES_PART, rf"{RACE}|{UNWRITTEN}", "norm"),
    Fault("nothing behind a gate", "varied_resident.cu", "clear(d_sums, kGates * sizes.operand());", "", UNWRITTEN,
          "norm"),
    Fault("rows of another gate", "varied_resident.cu", "(gate * H + k) * H + column", "k * H + column", WRONG, "norm"),
    Fault("operand of another gate", "varied_resident.cu", "d_sums + gate * pitch", "d_sums", WRONG, "norm", "gru"),
    Fault("part of the last gate forgotten", "varied_resident.cu", "q < kGates", "q < kGates - 1", WRONG, "norm"),
    Fault("gradients of steps not kept", "varied_resident.cu", "row.keep(t);", "", UNWRITTEN, "norm"),
    Fault("gradients of the input's sums kept for both", "varied_backward.cuh",
          "Base::of_step(a.d_from_hidden, t, kGates * H, i) = memory.d_sums[place_of(i)]",
          "Base::of_step(a.d_from_hidden, t, kGates * H, i) = memory.d_from_input[place_of(i)]", WRONG, "norm"),
    Fault("sums of parameters of the last step", "varied_backward.cuh", "held[place] += d;", "held[place] = d;", WRONG,
          "*peepholes"),
    Fault("gradients of the initial states forgotten", "varied_backward.cuh",
          "Base::own(a.d_initial[k], H, u) = d_state(k, u);", "", WRONG, "norm", "gru"),
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


def verdict(module, fault, monkeypatch, request):
    """What a test would say: None, the error, or WRONG."""
    of = fault.cell, fault.feature
    monkeypatch.setattr(_recurrence, "_OPERATORS", emulated_varied.operators(module, request))
    try:
        found = results(lambda a: emulated_varied.run(CELLS[fault.cell], a), arguments(*of))
    except module.EmulationError as error:
        return str(error)
    exact = expected(*of)
    is_right = all(torch.allclose(value.double(), exact[name], rtol=1e-4, atol=1e-4) for name, value in found.items())
    return None if is_right else WRONG


@functools.cache
def module_with_faults():
    return planted_faults.module_with(FAULTS, {("varied.cpp", "varied.cu"): FEWER_KERNELS})


@functools.cache
def resident_with_faults():
    return planted_faults.module_with(RESIDENT_FAULTS, {("varied_resident.cu",): []})


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_noticed(fault, monkeypatch):
    expect_noticed(fault, FAULTS, module_with_faults(), monkeypatch, "stream")


@pytest.mark.parametrize("fault", RESIDENT_FAULTS, ids=str)
def test_fault_on_the_chip_is_noticed(fault, monkeypatch):
    expect_noticed(fault, RESIDENT_FAULTS, resident_with_faults(), monkeypatch, "local")


def expect_noticed(fault, faults, module, monkeypatch, request):
    assert verdict(module, fault, monkeypatch, request) is None, "the sources as they are"
    with emulator.options(module, fault=faults.index(fault) + 1):
        message = verdict(module, fault, monkeypatch, request)
    assert message, f"{fault.name}: the kernels ran as if nothing were wrong"
    assert re.search(fault.reported, message), f"{fault.name}: expected {fault.reported!r}, got {message!r}"
