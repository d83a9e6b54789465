"""Every device primitive, one tiny kernel each, against an oracle that knows nothing of its implementation.

The same source runs on the CPU twins, as PTX on the CPU and, where there is a GPU, on the hardware: the body of each
test is shared. What is exact is compared bit by bit, so that all of them do the same.

FUSEDLSTM_PRIMITIVE_KERNELS names a library that the command of emulator.build.primitives_command() has made elsewhere:
then the tests on cuda need no compiler. They need no emulator in any case.
"""

import ctypes
import functools
import math
import os
import shutil
from contextlib import nullcontext

import emulator
import pytest
import torch
from emulator import Memory, build
from ptx import kernels_of_ptx

PREBUILT = os.environ.get("FUSEDLSTM_PRIMITIVE_KERNELS", "")
DEVICES = ["emulated", "ptx"] + ["cuda"] * bool(torch.cuda.is_available() and (PREBUILT or shutil.which("nvcc")))
# Compute capability, times ten; 75 for the rest.
NEEDS = {"mma_bf16": 80, "mma_f16": 80, "mma_tf32": 80, "number": 80, "cluster": 90, "bulk": 90}

LANES = torch.arange(32)
GROUP, IN_GROUP = LANES // 4, LANES % 4


@functools.cache
def gpu_library():
    return ctypes.CDLL(PREBUILT or str(build.build_primitives_for_gpu()))


def run(device, name, words):
    """Runs a kernel of primitive_kernels.cu on 256 words of 32 bits. Returns the 2048 words of its output.

    Words are int64 from 0 to 2^32 - 1, here and in all of this file.
    """
    values, out = words.int(), torch.zeros(2048, dtype=torch.int32)
    if device != "cuda":
        as_ptx = kernels_of_ptx(emulator.module()) if device == "ptx" else nullcontext()
        with as_ptx, Memory() as memory:
            error = memory.module.run_primitive(name, memory.pointer(values, "in"), memory.pointer(out, "out"))
    else:
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor < NEEDS.get(name, 75):
            pytest.skip(f"{name} needs compute capability {NEEDS[name] / 10}, this GPU has {major}.{minor}")
        values, out = values.cuda(), out.cuda()
        arguments = (name.encode(), ctypes.c_void_p(values.data_ptr()), ctypes.c_void_p(out.data_ptr()))
        error = gpu_library().fusedlstm_run_primitive(*arguments)
        torch.cuda.synchronize()
    assert error == 0, f"{name} on {device}: expected success, got CUDA error {error}"
    return unsigned(out.cpu())


def unsigned(values):
    """The bits of integers of 16 or 32 bits, as int64."""
    return values.long() & (1 << 8 * values.element_size()) - 1


def words_of(x):
    return unsigned(x.float().view(torch.int32))


def floats_of(words):
    return words.int().view(torch.float32)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_words():
    return torch.randint(2**32, (256,), generator=generator(0))


def same_bits(a, b):
    torch.testing.assert_close(a, torch.as_tensor(b).expand_as(a), rtol=0, atol=0)


# ---- matrix products: fragments after the formulas of the PTX reference, element by element -----------------------


def draw(seed, *shapes):
    g = generator(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


def half_bits(matrix, dtype):
    """(bits of the rounded elements, the values they stand for)."""
    rounded = matrix.to(dtype)
    return unsigned(rounded.view(torch.int16)), rounded.double()


def element_positions(k):
    """Row and column of A, and row of B, of element i of each lane's fragment; element 2j, 2j + 1 share register j."""
    a_row = [[g + (8 if i in (2, 3, 6, 7) else 0) for i in range(k // 2)] for g in GROUP.tolist()]
    a_column = [[2 * t + i % 2 + (8 if i >= 4 else 0) for i in range(k // 2)] for t in IN_GROUP.tolist()]
    b_row = [[2 * t + i % 2 + (8 if i >= 2 else 0) for i in range(k // 4)] for t in IN_GROUP.tolist()]
    return torch.tensor(a_row), torch.tensor(a_column), torch.tensor(b_row)


def mma_words_16_bit(a_bits, b_bits):
    k = a_bits.size(1)
    a_row, a_column, b_row = element_positions(k)
    words = torch.zeros(32, 8, dtype=torch.int64)
    a, b = a_bits[a_row, a_column], b_bits[b_row, GROUP[:, None]]
    words[:, : k // 4] = a[:, 0::2] | a[:, 1::2] << 16
    words[:, 4 : 4 + k // 8] = b[:, 0::2] | b[:, 1::2] << 16
    return words.flatten()


def mma_words_tf32(a, b):
    words = torch.zeros(32, 8, dtype=torch.int64)
    for i in range(4):
        row, column = GROUP + (8 if i in (1, 3) else 0), IN_GROUP + (4 if i >= 2 else 0)
        words[:, i] = words_of(a[row, column])
    for i in range(2):
        words[:, 4 + i] = words_of(b[IN_GROUP + 4 * i, GROUP])
    return words.flatten()


def check_mma(out, a, b):
    d = floats_of(out[:256]).view(32, 8)[:, :4].double()
    rows = GROUP[:, None] + torch.tensor([0, 0, 8, 8])
    columns = 2 * IN_GROUP[:, None] + torch.tensor([0, 1, 0, 1])
    start = LANES[:, None] + torch.arange(4)
    expected = start + (a @ b)[rows, columns]
    # Sums of at most 17 terms in float32, in any order, each truncated rather than rounded as tensor cores do.
    bound = 17 * 2.0**-23 * (start + (a.abs() @ b.abs())[rows, columns])
    assert ((d - expected).abs() < bound).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "dtype", "k"),
    [("mma_bf16", torch.bfloat16, 16), ("mma_f16", torch.float16, 16), ("mma_f16_k8", torch.float16, 8)],
)
def test_mma_of_16_bit_operands(device, name, dtype, k):
    (a_bits, a), (b_bits, b) = (half_bits(matrix, dtype) for matrix in draw(1, (16, k), (k, 8)))
    check_mma(run(device, name, mma_words_16_bit(a_bits, b_bits)), a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_mma_of_tf32_operands(device):
    a, b = (round_to_tf32(matrix.float()) for matrix in draw(2, (16, 8), (8, 8)))
    check_mma(run(device, "mma_tf32", mma_words_tf32(a, b)), a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_mma_cuts_off_what_was_not_rounded_to_tf32(device):
    """Else a forgotten round_to_tf32 could not be seen."""
    ones = torch.ones(8, 8, dtype=torch.float64)
    below_two = torch.full((16, 8), 2 - 2.0**-23, dtype=torch.float64)
    out = run(device, "mma_tf32", mma_words_tf32(below_two, ones))
    check_mma(out, torch.full_like(below_two, 2 - 2.0**-10), ones)


# ---- numbers --------------------------------------------------------------------------------------------------------


def round_to_tf32(x):
    """10 bits after the leading one, ties away from zero; as float64."""

    def rounded(value):
        if not math.isfinite(value):
            return value
        unit = math.ldexp(1, max(math.frexp(value)[1] - 11, -136))
        return math.copysign(math.floor(abs(value) / unit + 0.5) * unit, value)

    return torch.tensor([rounded(value) for value in x.flatten().tolist()], dtype=torch.float64).view(x.shape)


# Quiet and signalling, of either sign; with all bits, and with nothing but the bits that TF32 has no room for.
NANS = [0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FA00000, 0x7F800001, 0xFF801FFF]


def numbers():
    """The words of 256 floats: random ones of every size, ties of every format, denormals, infinities, NaN."""
    special = [0, -0.0, 1, -1, math.inf, -math.inf, 65504, 65519, 65520, 3e38, -(2.0**128 - 2.0**104), 1e-40, 6e-8]
    special += [2**-24, 2**-25, *(s * (1 + 2.0**-b) for s in (1, -1, 3) for b in (8, 9, 10, 11, 12))]
    rest, g = 256 - len(special) - len(NANS), generator(3)
    random = torch.randn(rest, generator=g) * torch.exp2(torch.randint(-20, 6, (rest,), generator=g))
    return torch.cat([words_of(torch.tensor(special, dtype=torch.float64)), torch.tensor(NANS), words_of(random)])


def number_results(device):
    return run(device, "number", numbers()).view(256, 8)


@pytest.mark.parametrize("device", DEVICES)
def test_conversions(device):
    x, out = floats_of(numbers()), number_results(device)
    number = ~x.isnan()
    assert (~number).sum() == len(NANS)
    same_bits(out[number, 0], words_of(round_to_tf32(x[number])))
    same_bits(out[~number, 0], 0x7FFFFFFF)
    for column, round_trip, dtype, one in [(1, 3, torch.bfloat16, 0x3F80), (2, 4, torch.float16, 0x3C00)]:
        bits, values = half_bits(x, dtype)
        same_bits(out[number, column], bits[number] | one << 16)
        same_bits(out[number, round_trip], words_of(values[number]))
        same_bits(out[~number, column], 0x7FFF | one << 16)  # never all ones: GRID takes that for "not written yet"
        assert floats_of(out[~number, round_trip].contiguous()).isnan().all()


# The relative error that the documentation of the hardware allows, as functions of x.
APPROXIMATE = {
    "tanh": (5, torch.tanh, lambda x: 2.0**-11),
    "exp2": (6, torch.exp2, lambda x: 2 * 2.0**-23),
    "reciprocal": (7, torch.reciprocal, lambda x: 2.0**-23),
}


def approximation_errors(results, name):
    """The errors of results where they are of usual size, in those that are allowed."""
    column, function, allowed = APPROXIMATE[name]
    x = floats_of(numbers()).double()
    usual = (x.abs() > 1e-30) & (x.abs() < 80)
    assert usual.sum() > 220
    x, found = x[usual], floats_of(results[:, column].contiguous())[usual].double()
    return (found / function(x) - 1) / allowed(x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_functions(device, name):
    # The results themselves are rounded, and tanh's bound is of 11 bits, of which the last may be counted in two ways.
    assert approximation_errors(number_results(device), name).abs().max() < 1.07


@pytest.mark.parametrize("device", DEVICES)
def test_limits_of_approximate_functions(device):
    x = floats_of(numbers())
    tanh, exp2, reciprocal = (floats_of(number_results(device)[:, i].contiguous()) for i in (5, 6, 7))
    for result in (tanh, exp2, reciprocal):
        assert result[x.isnan()].isnan().all()
    assert (tanh[x.isinf()] == x[x.isinf()].sign()).all()
    assert (exp2[x == -math.inf] == 0).all() and (exp2[x == math.inf] == math.inf).all()
    is_large, is_tiny = x.abs() > 2.0**126, x.abs() < 2.0**-126
    assert is_large.sum() == 4 and (reciprocal[is_large] == 0).all()
    assert is_tiny.sum() == 3 and (reciprocal[is_tiny] == torch.full((3,), math.inf).copysign(x[is_tiny])).all()


def check_activations(device):
    """Errors, absolute of a sigmoid and relative of a tanh: of numbers of every size, and of many around 0.6."""
    words = torch.cat([numbers()[:128], words_of(torch.linspace(-3, 3, 128))])
    x = floats_of(words).double()
    sigmoid, tanh = (
        floats_of(column.contiguous()).double() for column in run(device, "activation", words).view(256, 8).T[:2]
    )
    assert sigmoid[x.isnan()].isnan().all() and tanh[x.isnan()].isnan().all()
    number, usual = ~x.isnan(), x.abs() > 1e-30
    assert (sigmoid - x.sigmoid())[number].abs().max() < 2**-22
    assert (tanh / x.tanh() - 1)[usual].abs().max() < 4 * 2.0**-23
    assert (tanh == x)[number & ~usual].all() and (sigmoid[x == -math.inf] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
def test_activations(device):
    check_activations(device)


@pytest.mark.parametrize("size", [1, -1])
def test_activations_of_what_is_as_wrong_as_the_hardware(size):
    with emulator.options(emulator.module(), approximation=size):
        check_activations("emulated")


@pytest.mark.parametrize("size", [1, -1, 5])
def test_twins_can_be_as_wrong_as_the_hardware(size):
    """Up for some x and down for others, by as much as they are told."""
    with emulator.options(emulator.module(), approximation=size):
        results = number_results("emulated")
    for name in APPROXIMATE:
        errors = approximation_errors(results, name)
        # The result is rounded, by half a unit of the last place where one is allowed.
        torch.testing.assert_close(errors.abs(), torch.full_like(errors, abs(size)), rtol=0.01, atol=0.5)
        assert 0.3 < (errors > 0).double().mean() < 0.7


# ---- warp, memory, synchronisation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_warp(device):
    words = random_words()
    own = words[::8]
    out = run(device, "warp", words)[:256].view(32, 8)
    for i in range(5):
        same_bits(out[:, i], own[LANES ^ 1 << i])
    same_bits(out[:, 5], int((own % 32 == LANES).any()))
    same_bits(out[:, 6], 0)


@pytest.mark.parametrize("device", DEVICES)
def test_memory(device):
    words = random_words()
    same_bits(run(device, "memory", words)[:256].view(32, 8), words.view(32, 8)[LANES ^ 1])


@pytest.mark.parametrize("device", DEVICES)
def test_cluster(device):
    words = random_words()
    out = run(device, "cluster", words)[:512].view(2, 32, 8)
    for rank in range(2):
        expected = words.view(32, 8).clone()
        expected[:, [0, 7]] = expected[:, [0, 7]] + 1 - rank & 0xFFFFFFFF  # the sender's rank
        expected[:, 4], expected[:, 5] = rank, 2
        same_bits(out[rank], expected)


@pytest.mark.parametrize("device", DEVICES)
def test_bulk(device):
    words = random_words()
    out = run(device, "bulk", words)[:512].view(2, 32, 8)
    for rank in range(2):
        same_bits(out[rank], words.view(32, 8).flip(0) + 1 - rank & 0xFFFFFFFF)  # the sender's rank


def test_emulated_module_has_every_kernel():
    assert emulator.module().run_primitive("no such kernel", 0, 0) == -1
