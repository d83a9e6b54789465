"""The machine code of the CUDA library, where it was compiled and the tools that read it are found. Needs no GPU."""

import json
import re
import subprocess
import sys

import pytest
import scripts

from fusedlstm import _library

check_sass = scripts.load("check_sass")

# Shape 2 of kernel_shapes.h in bfloat16.
SYMBOL = "_ZN9fusedlstm4cuda17recurrence_kernelINS0_12BFloat16MathELi2ENS0_11ForwardCellEEvT2_i"
NAME = "bfloat16 lstm local forward 8x4x1x1"
RESOURCES = f"""
arch = sm_80
 Function {SYMBOL}:
  REG:255 STACK:0 SHARED:0
"""
SASS = """
        /*0000*/                   LDG.E R1, [R2.64] ;
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R1, R4 ;
        /*0020*/                   LDS R1, [R2] ;
        /*0030*/                   BAR.SYNC 0x0 ;
        /*0040*/               @P0 BRA 0x10 ;
        /*0050*/                   EXIT ;
"""


@pytest.mark.skipif(not _library.CUDA_LIBRARY.is_file(), reason="built without the CUDA library")
@pytest.mark.skipif(bool(check_sass.missing_tools()), reason="no cuobjdump, nvdisasm and pyelftools")
def test_compiled_kernels():
    """Spills on all architectures, time loops on one: the tool reads those of all before a release."""
    command = [sys.executable, check_sass.__file__, _library.CUDA_LIBRARY, "--arch", "newest"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, "\n".join(x for x in done.stdout.splitlines() if x.startswith("FAULT")) + done.stderr


def measure(resources, sass, symbol=SYMBOL):
    return check_sass.measure(resources, {"sm_80": {symbol: check_sass.instructions(sass)}})


def test_right_code():
    assert measure(RESOURCES, SASS) == ({"sm_80": {NAME: 4}}, [])


def test_kernel_with_variants():
    symbol = "_ZN9fusedlstm4cuda9_GLOBAL__22varied_resident_kernelINS_9NormedGruENS0_18VariedBackwardArgsEEEvT0_"
    lengths, faults = measure(RESOURCES.replace(SYMBOL, symbol).replace("STACK:0", "STACK:8"), SASS, symbol)
    assert lengths == {"sm_80": {"float32 normedgru local backward": 4}}
    assert faults == ["sm_80 float32 normedgru local backward: expected no stack, got 8 bytes of spilled registers"]


def test_code_that_gives_up_is_not_of_the_loop():
    """What follows a branch and ends the kernel after a call: only a wait of half a minute gets there."""
    retry = """               @!P1 BRA 0x10 ;
        /*0028*/                   MOV R0, 0x0 ;
        /*002a*/                   CALL.ABS.NOINC R2 ;
        /*002c*/                   EXIT ;
        /*0030*/                   BAR.SYNC 0x0 ;"""
    sass = SASS.replace("LDS R1, [R2] ;\n        /*0030*/                   BAR.SYNC 0x0 ;", retry.strip())
    assert measure(RESOURCES, sass) == ({"sm_80": {NAME: 4}}, [])


@pytest.mark.parametrize(
    ("resources", "sass", "fault"),
    [
        (RESOURCES.replace("STACK:0", "STACK:16"), SASS, "expected no stack, got 16 bytes of spilled registers"),
        (RESOURCES, SASS.replace("LDS R1", "LDL R1"), "LDL at 0x20 in the time loop"),
        (RESOURCES, SASS.replace("LDS R1, [R2]", "@P1 STL [R1], R2"), "STL at 0x20 in the time loop"),
        (RESOURCES, SASS.replace("LDS R1, [R2]", "MEMBAR.SC.GPU"), "MEMBAR.SC.GPU at 0x20 in the time loop"),
        (RESOURCES, SASS.replace("BAR.SYNC", "NOP"), "expected a time loop, found none"),
    ],
    ids=["spill", "local load", "local store", "fence", "no loop"],
)
def test_planted_fault(resources, sass, fault):
    assert measure(resources, sass)[1] == [f"sm_80 {NAME}: {fault}"]


@pytest.mark.parametrize(
    ("transport", "fence", "is_allowed"),
    [
        ("grid", "MEMBAR.ALL.GPU", True),
        ("mesh", "MEMBAR.ALL.GPU", True),
        ("bulk", "MEMBAR.ALL.CTA", True),
        ("bulk", "MEMBAR.ALL.GPU", False),
        ("cluster", "MEMBAR.ALL.CTA", False),
    ],
)
def test_some_kernels_may_have_a_fence(transport, fence, is_allowed):
    index = next(i for i, name in enumerate(check_sass.shape_names()) if f" {transport} " in name)
    symbol = SYMBOL.replace("MathELi2E", f"MathELi{index}E")
    assert (measure(RESOURCES, SASS.replace("LDS R1, [R2]", fence), symbol)[1] == []) == is_allowed


@pytest.mark.parametrize(("length", "outcome"), [(110, []), (111, ["expected at most 110 .*, got 111"])])
def test_budget(length, outcome):
    faults = check_sass.over_budget({"sm_80": {NAME: length}, "sm_86": {NAME: 9999}}, {"sm_80": {NAME: 100}})
    assert len(faults) == len(outcome)
    for fault, pattern in zip(faults, outcome):
        assert re.search(pattern, fault)


@pytest.mark.parametrize(
    ("archs", "budgets", "newest"),
    [
        (["sm_75", "sm_90a", "sm_80"], ["sm_90a", "sm_75"], "sm_90a"),
        (["sm_75", "sm_120"], ["sm_90a", "sm_75"], "sm_75"),
        (["sm_120", "sm_100"], ["sm_90a"], "sm_120"),
    ],
)
def test_newest_architecture(archs, budgets, newest):
    assert check_sass.newest(archs, dict.fromkeys(budgets)) == newest


def test_every_kernel_has_a_budget():
    assert check_sass.over_budget({"sm_80": {NAME: 1}}, {"sm_80": {}})
    budget, names = json.loads(check_sass.BUDGET.read_text()), set(check_sass.shape_names())
    names |= {f"{cell} local {way}" for cell in ("normedgru", "variedlstm") for way in ("forward", "backward")}
    for kernels in budget.values():
        assert {name.split(" ", 1)[1] for name in kernels} <= names, "a budget for a shape that is no longer compiled"
