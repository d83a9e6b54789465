"""What the CUDA library does on the host, without a GPU: how matrices are named to BLAS, and refused launches."""

import re

import emulator
import pytest
import torch
from emulated_layer import H200

SIZES = (1, 2, 3, 5)


def layouts(rows, columns):
    """A [rows, columns] matrix as it may lie in memory."""
    wide = torch.randn(2 * rows + 1, columns + 3)
    yield "contiguous", torch.randn(rows, columns)
    yield "rows of a wider one", wide[:rows, 1 : 1 + columns]
    yield "every second row", wide[: 2 * rows : 2, :columns]
    yield "transposed", torch.randn(columns, rows).T
    yield "transposed part", torch.randn(columns, rows + 4)[:, 2 : 2 + rows].T
    yield "column of a wider one", wide[:rows, :1] if columns == 1 else wide[:rows, :columns]
    yield "row of a higher one", torch.randn(columns, 7).T[:rows]


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("columns", SIZES)
def test_blas_reads_the_transpose(rows, columns):
    """What BLAS finds in the memory, column by column with the leading dimension, is the matrix transposed."""
    for name, matrix in layouts(rows, columns):
        is_transposed, leading = emulator.module().gemm_operand(rows, columns, *matrix.stride())
        height, width = (rows, columns) if is_transposed else (columns, rows)
        assert leading >= height, name
        read = matrix.as_strided((height, width), (1, leading))
        assert torch.equal(read.T if is_transposed else read, matrix.T), name


@pytest.mark.parametrize("strides", [(10, 2), (2, 10), (0, 1), (1, 0), (2, 1)], ids=str)
def test_what_blas_cannot_read(strides):
    """Neither stride 1, or rows that share memory."""
    assert emulator.module().gemm_operand(4, 3, *strides) is None


# CUDA error -> what the user is told of the cause. The first lot leaves other kernels, which replace the refused one.
REFUSALS = {
    9: "this build has no such kernel",  # cudaErrorInvalidConfiguration
    701: "registers or shared memory",  # cudaErrorLaunchOutOfResources
    720: "cannot all run at once: .* MPS, MIG",  # cudaErrorCooperativeLaunchTooLarge
    801: "not supported here",  # cudaErrorNotSupported
    912: "no room for its clusters: .* MPS or MIG",  # cudaErrorInvalidClusterSize
}
CLUSTER_SIZE = 912
NO_IMAGE, OLD_DRIVER = "build with TORCH_CUDA_ARCH_LIST", "update the NVIDIA driver"
FINAL = {98: NO_IMAGE, 209: NO_IMAGE, 221: NO_IMAGE, 222: NO_IMAGE, 223: NO_IMAGE} | {
    35: OLD_DRIVER, 803: OLD_DRIVER, 804: OLD_DRIVER,
    1: "a bug of fusedlstm, please report it",  # cudaErrorInvalidValue
    700: None,  # cudaErrorIllegalAddress
}  # fmt: skip


def problem(**options):
    return emulator.module().Problem(**{"T": 3, "B": 5, "H": 600, "dtype": "bfloat16"} | options)


def fallback(ordinal=0):
    return emulator.module().Fallback(H200, ordinal)


def kernel(choice):
    """What FUSEDLSTM_PLAN would call it."""
    return choice.plan.kernel.split()[-1]


@pytest.mark.parametrize("error", REFUSALS)
def test_refusal_leaves_the_next_best_kernel(error):
    """One warning that names the kernel, the cause, and what runs instead."""
    planner, wide = fallback(), problem(H=480, T=64)
    first = planner.choose(wide, "")
    second, warning = planner.replace(first, wide, error)
    assert first.plan.transport != "stream" and kernel(second) != kernel(first)
    size = " in clusters of 15" if error == CLUSTER_SIZE else ""
    assert re.fullmatch(
        rf"fusedlstm: device 0 refuses the {first.plan.kernel}{size}: CUDA's own text \(.*{REFUSALS[error]}.*\); "
        rf"instead of it runs: {re.escape(str(second.plan))}",
        warning,
    )
    assert kernel(planner.choose(wide, "")) == kernel(second)
    late, warning = planner.replace(first, wide, error)  # another thread's launch was under way
    assert kernel(late) == kernel(second) and warning == ""


def test_refusals_end_with_stream():
    """Each kernel is asked for once; the last in line, which no device refuses, is STREAM."""
    planner, seen, layer = fallback(), [], problem(H=100, T=64)
    choice = planner.choose(layer, "")
    while choice.plan.transport != "stream":
        seen.append(kernel(choice))
        choice, warning = planner.replace(choice, layer, 701)
        assert warning
    assert len(seen) == len(set(seen)) and {name.split(":")[0] for name in seen} == {"local", "cluster", "grid"}
    assert any("it has refused" in reason for reason in choice.plan.rejected)


def test_refusal_is_of_one_kernel_on_one_device():
    planner, large = fallback(), problem()
    refused = planner.choose(large, "")
    planner.replace(refused, large, 720)
    assert kernel(planner.choose(large, "")) != kernel(refused)
    assert kernel(fallback(1).choose(large, "")) == kernel(refused)
    backward, small = problem(backward=True), problem(H=40)
    for other in (backward, small, problem(dtype="float16")):
        assert str(planner.choose(other, "").plan) == str(fallback().choose(other, "").plan)


def test_refused_cluster_size_leaves_the_kernel_to_others():
    """The same kernel runs on in clusters of other sizes."""
    planner, request = fallback(), {"T": 64, "B": 8}
    large, small = problem(H=416, **request), problem(H=352, **request)
    refused = planner.choose(large, "")
    assert refused.plan.transport == "cluster" and kernel(refused) == kernel(planner.choose(small, ""))
    planner.replace(refused, large, CLUSTER_SIZE)
    assert kernel(planner.choose(large, "")) != kernel(refused)
    assert kernel(planner.choose(small, "")) == kernel(refused)


@pytest.mark.parametrize(("request_", "error"), [("", e) for e in FINAL] + [("grid", 720)], ids=str)
def test_errors_that_are_no_refusals(request_, error):
    """No kernel of the library could run, the program or the library is broken, or the plan was forced."""
    planner = fallback()
    choice = planner.choose(problem(), request_)
    cause = (FINAL | REFUSALS).get(error)
    text = "^fusedlstm: grid bfloat16, .*: CUDA's own text" + (rf" \(.*{cause}" if cause else "$")
    with pytest.raises(RuntimeError, match=text):
        planner.replace(choice, problem(), error)
    assert kernel(planner.choose(problem(), "")) == kernel(choice)
