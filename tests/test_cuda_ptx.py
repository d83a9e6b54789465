"""The CUDA kernels as nvcc compiles them: their PTX on the CPU, against the emulated kernels and against float64.

Without contraction to multiply-adds what nvcc and g++ make of a kernel does the same arithmetic: then every bit is the
same. As the library is compiled, numbers are near the reference.
"""

import functools

import emulator
import pytest
import torch
from emulated_layer import EVERYTHING, Emulated, Layer
from planted_faults import Fault, change, copy_of_sources
from ptx import kernels_of_ptx
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


def allowed(layer, name=""):
    terms = layer.cell.gates * layer.H + layer.rows * ("weight" in name or "bias" in name)
    return tolerance(layer.dtype, terms, layer.T, device_type="cuda")


@pytest.mark.parametrize(("cell", "arithmetic", "transport"), RUNS)
def test_every_bit_is_that_of_the_emulated_kernel(cell, arithmetic, transport):
    layer = make(cell, arithmetic, transport)
    expected = run(layer, transport)
    with kernels_of_ptx(emulator.module(), flags=EXACT) as launched:
        found = run(layer, transport, seed=5)
    assert ("recurrence_kernel" in str(launched)) == (transport != "stream")
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("cell", "arithmetic", "transport"), [RUNS[0], RUNS[2]])
def test_as_the_library_is_compiled(cell, arithmetic, transport):
    layer = make(cell, arithmetic, transport)
    with kernels_of_ptx(emulator.module()):
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


CLUSTER, BULK = ("lstm", "bfloat16", "cluster"), ("lstm", "bfloat16", "bulk")
WRONG = "wrong numbers"
# In the text of PTX, of which the emulator sees nothing.
FAULTS = [
    (CLUSTER, Fault("operands of an mma swapped", "primitives.cuh",
        """{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_f16(""",
        """{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a2), "r"(a1), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_f16(""", WRONG)),
    (CLUSTER, Fault("high and low swapped", "primitives.cuh", '"f"(high), "f"(low)', '"f"(low), "f"(high)', WRONG)),
    (CLUSTER, Fault("wrong rank in mapa", "primitives.cuh",
        '"=r"(r) : "r"(a), "r"(rank)', '"=r"(r) : "r"(a), "r"(rank + 1)', "mapa to rank")),
    (CLUSTER, Fault("too many bytes expected", "primitives.cuh",
        'expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)',
        'expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes + 16)', "only polling threads")),
    (CLUSTER, Fault("words of a vector in another order", "primitives.cuh",
        """[%0], {%1, %2, %3, %4}, [%5];" ::"r"(a),""", """[%0], {%1, %2, %4, %3}, [%5];" ::"r"(a),""", WRONG)),
    (CLUSTER, Fault("an offset too much", "primitives.cuh",
        '"ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"', '"ld.shared.v4.b32 {%0, %1, %2, %3}, [%4+16];"',
        "which nothing has written")),
    (BULK, Fault("source and destination swapped", "primitives.cuh",
        """bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "r"(from)""", """bytes [%0], [%1], %2, [%3];" ::"r"(from),
               "r"(to)""", "shared memory")),
]  # fmt: skip


@pytest.mark.parametrize(("where", "fault"), FAULTS, ids=lambda v: str(v) if isinstance(v, Fault) else v[2])
def test_faults_in_the_text_of_ptx_are_noticed(where, fault, tmp_path):
    csrc, transport = copy_of_sources(tmp_path), where[2]
    change(csrc, fault.file, fault.old, fault.new)
    layer, module = make(*where), emulator.module()
    with kernels_of_ptx(module, csrc=csrc):
        try:
            found = Emulated(module, layer, transport).forward()["output"]
        except module.EmulationError as error:
            assert fault.reported in str(error), error
            return
    assert fault.reported == WRONG
    with pytest.raises(AssertionError, match="times the allowed error"):
        assert_near(found, layer.reference()["output"], allowed(layer), fault.name)
