"""What the CUDA library does on the host, without a GPU: how matrices are named to BLAS, and refused launches."""

import re

import emulator
import pytest
import torch
from emulated_layer import H200, Emulated, Layer

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


# CUDA error -> what the user is told of the cause. The first lot leaves STREAM, which replaces the refused kernel.
REPLACEABLE = {
    1: "registers or shared memory",  # cudaErrorInvalidValue
    9: "this build has no such kernel",  # cudaErrorInvalidConfiguration
    701: "registers or shared memory",  # cudaErrorLaunchOutOfResources
    720: "cannot all run at once: .* MPS, MIG",  # cudaErrorCooperativeLaunchTooLarge
    801: "not supported here",  # cudaErrorNotSupported
    912: "no room for its clusters: .* MPS or MIG",  # cudaErrorInvalidClusterSize
}
NO_IMAGE, OLD_DRIVER = "build with TORCH_CUDA_ARCH_LIST", "update the NVIDIA driver"
FINAL = {98: NO_IMAGE, 209: NO_IMAGE, 221: NO_IMAGE, 222: NO_IMAGE, 223: NO_IMAGE} | {
    35: OLD_DRIVER, 803: OLD_DRIVER, 804: OLD_DRIVER,
}  # fmt: skip
ILLEGAL_ADDRESS = 700
LAYER = Layer(3, 5, 600, dtype=torch.bfloat16)


def launch(run, choice):
    """The CUDA error of launching the choice's plan on an emulated device."""
    run.request = "grid"
    assert str(run.plan(backward=False)) == str(choice.plan)
    try:
        run.forward()
    except RuntimeError as error:
        return int(re.fullmatch(r"launch_forward: CUDA error (\d+)", str(error))[1])
    return 0


@pytest.mark.parametrize("error", REPLACEABLE)
def test_stream_replaces_refused_kernels(error):
    """One warning that names the cause; then STREAM on this device, and nothing else changes anywhere else."""
    module = emulator.module()
    run, fallback = Emulated(module, LAYER, ""), module.Fallback()
    problem = run.problem(backward=False)
    choice = fallback.choose(problem, H200, 0, "")
    assert choice.plan.transport == "grid"
    with emulator.options(module, launch_error=error):
        result = launch(run, choice)
    assert result == error
    was_launched, warning = fallback.after_launch(choice, 0, result)
    assert not was_launched
    expected = f"^fusedlstm: device 0 refuses the grid kernels: CUDA's own text \\(.*{REPLACEABLE[error]}.*\\); "
    assert re.search(expected + "layers run step by step there from now on$", warning)

    assert fallback.after_launch(choice, 0, result) == (False, "")  # another thread's launch was under way
    assert fallback.choose(problem, H200, 0, "").plan.transport == "stream"
    assert fallback.choose(problem, H200, 1, "").plan.transport == "grid"
    small = module.Problem(T=3, B=5, H=40, dtype="bfloat16")
    assert fallback.choose(small, H200, 0, "").plan.transport == "local"


def test_launch_that_succeeds():
    module = emulator.module()
    fallback = module.Fallback()
    choice = fallback.choose(Emulated(module, LAYER, "").problem(backward=False), H200, 0, "")
    assert fallback.after_launch(choice, 0, 0) == (True, "")


@pytest.mark.parametrize(("request_", "error"), [("", e) for e in (*FINAL, ILLEGAL_ADDRESS)] + [("grid", 720)], ids=str)
def test_errors_that_stream_cannot_mend(request_, error):
    """No kernel of the library could run, the program is broken, or the plan was forced."""
    module = emulator.module()
    fallback, problem = module.Fallback(), Emulated(module, LAYER, "").problem(backward=False)
    choice = fallback.choose(problem, H200, 0, request_)
    cause = (FINAL | REPLACEABLE).get(error)
    text = "^fusedlstm: grid bfloat16, .*: CUDA's own text" + (rf" \(.*{cause}" if cause else "$")
    with pytest.raises(RuntimeError, match=text):
        fallback.after_launch(choice, 0, error)
    assert fallback.choose(problem, H200, 0, "").plan.transport == "grid"
