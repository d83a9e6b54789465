"""The CUDA kernels as nvcc compiles them: their PTX on the CPU, against the emulated kernels and against float64.

Without contraction to multiply-adds what nvcc and g++ make of a kernel does the same arithmetic: then every bit is the
same. As the library is compiled, numbers are near the reference.
"""

import functools
import re
from dataclasses import dataclass

import emulator
import pytest
import torch
from emulated_layer import EVERYTHING, Emulated, Layer
from ptx import kernels_of_ptx, launched_kernels
from ptx.build import find_nvcc
from ptx.meaning import UnknownInstruction
from ptx.text import entry_of
from ptx.translate import translate
from tolerance import assert_near, tolerance

from fusedlstm.cells import CELLS

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ARITHMETICS = {"float32": (F32, False), "tf32": (F32, True), "bfloat16": (BF16, False), "float16": (F16, False)}
EXACT = ("-fmad=false",)
LENGTHS = [3, 1, 2, 0, 3, 3, 2, 1, 1, 3, 2]
# Each of both passes, in more than one tile of the batch. Every transport, cell and arithmetic; every
# transport that all cells have with both widths of a value. More would be seconds of nvcc for each kernel.
RUNS = [
    ("lstm", "float32", "stream"),
    ("lstm", "float32", "local"),
    ("lstm", "bfloat16", "cluster"),
    ("lstm", "float16", "grid"),
    ("lstm", "bfloat16", "bulk"),
    ("lstm", "bfloat16", "mesh"),
    ("lstm", "tf32", "mesh"),
    ("gru", "float16", "local"),
    ("gru", "tf32", "cluster"),
    ("rnn_relu", "float32", "cluster"),
    ("rnn_tanh", "tf32", "grid"),
]


@pytest.fixture(autouse=True, scope="module")
def nvcc():
    return find_nvcc()


@functools.cache
def make(cell, arithmetic, transport):
    dtype, allow_tf32 = ARITHMETICS[arithmetic]
    units = 64 if CELLS[cell].gates == 1 else 32
    H = 260 if transport == "bulk" else 20 + units * (transport == "cluster")
    return Layer(
        3, len(LENGTHS), H, CELLS[cell], dtype=dtype, allow_tf32=allow_tf32, resets=True, reset_states=True,
        lengths=LENGTHS,
    )  # fmt: skip


def run(layer, transport, seed=0):
    module = emulator.module()
    forward = "stream" if transport == "mesh" and not layer.allow_tf32 else transport  # of MESH it is of TF32 alone
    with emulator.options(module, seed=seed):
        out = Emulated(module, layer, forward).forward()
        return out | Emulated(module, layer, transport).backward(out, EVERYTHING)


@functools.cache
def emulated(cell, arithmetic, transport):
    """What the emulated kernels give, and the names of these kernels."""
    with launched_kernels(emulator.module()) as kernels:
        return run(make(cell, arithmetic, transport), transport), tuple(kernels)


def exact_kernels(change=lambda ptx: ptx):
    """kernels_of_ptx() without contraction; those of all RUNS are compiled together."""
    kernels = frozenset(kernel for one in RUNS for kernel in emulated(*one)[1])
    return kernels_of_ptx(emulator.module(), change, together=kernels, flags=EXACT)


def allowed(layer, name=""):
    terms = layer.cell.gates * layer.H + layer.rows * ("weight" in name or "bias" in name)
    return tolerance(layer.dtype, terms, layer.T, device_type="cuda")


@pytest.mark.parametrize(("cell", "arithmetic", "transport"), RUNS)
def test_every_bit_is_that_of_the_emulated_kernel(cell, arithmetic, transport):
    layer = make(cell, arithmetic, transport)
    expected, _ = emulated(cell, arithmetic, transport)
    with exact_kernels() as launched:
        found = run(layer, transport, seed=5)
    assert ("recurrence_kernel" in str(launched)) == (transport != "stream")
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("cell", "arithmetic", "transport"), [RUNS[0], RUNS[2]])
def test_as_the_library_is_compiled(cell, arithmetic, transport):
    layer = make(cell, arithmetic, transport)
    with kernels_of_ptx(emulator.module(), together=emulated(cell, arithmetic, transport)[1]):
        found = run(layer, transport)
    expected = layer.reference()
    for name, value in found.items():
        assert_near(value, expected[name], allowed(layer, name), name)


KERNEL = """.version 9.0
.target sm_90a
.visible .entry kernel(.param .u32 kernel_param_0)
{
.reg .b32 %r<3>;
ld.param.u32 %r1, [kernel_param_0];
INSTRUCTION
ret;
}
"""


@pytest.mark.parametrize("instruction", ["mul.hi.u32 %r2, %r1, %r1;", "ld.volatile.global.u32 %r2, [%r1];"])
def test_an_unknown_instruction_is_named(instruction):
    translate(entry_of(KERNEL.replace("INSTRUCTION", "add.s32 %r2, %r1, 1;"), "kernel"))
    with pytest.raises(UnknownInstruction, match=f"line 7: {instruction.split()[0]}: expected"):
        translate(entry_of(KERNEL.replace("INSTRUCTION", instruction), "kernel"))


WRONG = "wrong numbers"


@dataclass(frozen=True)
class Fault:
    """A pattern of PTX, which stands for the text of a primitive, and what is in its place."""

    name: str
    pattern: str
    new: str  # as re.sub takes it
    reported: str  # what the error says, or that numbers are wrong
    transport: str = "cluster"

    def __str__(self):
        return self.name.replace(" ", "_")

    def planted(self, ptx):
        return re.sub(self.pattern, self.new, ptx)


FAULTS = [
    Fault("operands of an mma swapped",
          r"(mma\.sync[^{]+\{[^}]+\},\s*\{[^,]+), ([^,]+), ([^,]+),", r"\1, \3, \2,", WRONG),
    Fault("high and low swapped", r"(cvt\.rn\.bf16x2\.f32 [^,]+), ([^,]+), ([^;]+);", r"\1, \3, \2;", WRONG),
    Fault("wrong rank in mapa", r"(mapa\.shared::cluster\.u32 [^,]+, [^,]+), ([^;]+);",
          r"{ .reg .b32 next; add.s32 next, \2, 1; \1, next; }", "mapa to rank"),
    Fault("too many bytes expected", r"(mbarrier\.arrive\.expect_tx\.shared::cta\.b64 _, [^,]+), ([^;]+);",
          r"{ .reg .b32 more; add.s32 more, \2, 16; \1, more; }", "only polling threads"),
    Fault("words of a vector in another order", r"(st\.async\S+\.v4\.b32 [^{]+\{[^,]+, [^,]+), ([^,]+), ([^}]+)\}",
          r"\1, \3, \2}", WRONG),
    Fault("an offset too much", r"(ld\.shared\.v4\.b32 \{[^}]+\}, \[[^\]]+)\]", r"\1+16]", "which nothing has written"),
    Fault("source and destination swapped", r"(cp\.async\.bulk\S+ )(\[[^\]]+\]), (\[[^\]]+\])", r"\1\3, \2",
          "shared memory", "bulk"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_faults_in_the_text_of_ptx_are_noticed(fault):
    """Of which the emulator sees nothing."""
    layer, module, changed = make("lstm", "bfloat16", fault.transport), emulator.module(), []

    def change(ptx):
        changed.append(fault.planted(ptx) != ptx)
        return fault.planted(ptx)

    with exact_kernels(change):
        try:
            found = Emulated(module, layer, fault.transport).forward()["output"]
        except module.EmulationError as error:
            assert any(changed) and fault.reported in str(error), error
            return
    assert any(changed) and fault.reported == WRONG
    with pytest.raises(AssertionError, match="times the allowed error"):
        assert_near(found, layer.reference()["output"], allowed(layer), fault.name)
