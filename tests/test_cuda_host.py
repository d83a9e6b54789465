"""What the CUDA library does on the host, without a GPU: how matrices are named to BLAS, and refused launches."""

import emulator
import pytest
import torch

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
