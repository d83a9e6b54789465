"""Every device primitive, one tiny kernel each, against an oracle that knows nothing of its implementation.

The same source runs on the CPU twins and, where there is a GPU, on the hardware: the body of each test is shared, and
what is exact must also be bitwise the same on both.
"""

import ctypes
import functools
import math
import shutil

import numpy as np
import pytest
import torch
from emulator import Memory, build, module

HAS_GPU = torch.cuda.is_available() and shutil.which("nvcc") is not None
DEVICES = ["emulated", *(["cuda"] if HAS_GPU else [])]
# Compute capability, times ten; 75 for the rest.
NEEDS = {"mma_bf16": 80, "mma_f16": 80, "mma_tf32": 80, "number": 80, "cluster": 90}
EXACT = ["warp", "memory", "cluster"]  # and number, but for its approximate results

LANES = np.arange(32)
GROUP, IN_GROUP = LANES // 4, LANES % 4


@functools.cache
def gpu_library():
    return ctypes.CDLL(str(build.build_primitives_for_gpu()))


def run(device, name, words):
    """Runs a kernel of primitive_kernels.cu. words: 256 values of uint32. Returns the 2048 words of the output."""
    values = torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())
    out = torch.zeros(2048, dtype=torch.int32)
    if device == "emulated":
        with Memory() as memory:
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
    return out.cpu().numpy().view(np.uint32)


def random_words(seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, 256, dtype=np.uint32)


# ---- matrix products: fragments after the formulas of the PTX reference, element by element -----------------------


def half_bits(matrix, dtype):
    """(bits of the rounded elements, the values they stand for)."""
    rounded = torch.from_numpy(matrix).to(dtype)
    return rounded.view(torch.int16).numpy().view(np.uint16).astype(np.uint32), rounded.double().numpy()


def element_positions(k):
    """Row and column of A, and row of B, of element i of each lane's fragment; element 2j, 2j + 1 share register j."""
    a_row = [[g + (8 if i in (2, 3, 6, 7) else 0) for i in range(k // 2)] for g in GROUP]
    a_column = [[2 * t + i % 2 + (8 if i >= 4 else 0) for i in range(k // 2)] for t in IN_GROUP]
    b_row = [[2 * t + i % 2 + (8 if i >= 2 else 0) for i in range(k // 4)] for t in IN_GROUP]
    return np.array(a_row), np.array(a_column), np.array(b_row)


def mma_words_16_bit(a_bits, b_bits):
    k = a_bits.shape[1]
    a_row, a_column, b_row = element_positions(k)
    words = np.zeros((32, 8), np.uint32)
    a, b = a_bits[a_row, a_column], b_bits[b_row, GROUP[:, None]]
    words[:, : k // 4] = a[:, 0::2] | a[:, 1::2] << 16
    words[:, 4 : 4 + k // 8] = b[:, 0::2] | b[:, 1::2] << 16
    return words.flatten()


def mma_words_tf32(a, b):
    words = np.zeros((32, 8), np.uint32)
    for i in range(4):
        row, column = GROUP + (8 if i in (1, 3) else 0), IN_GROUP + (4 if i >= 2 else 0)
        words[:, i] = a[row, column].astype(np.float32).view(np.uint32)
    for i in range(2):
        words[:, 4 + i] = b[IN_GROUP + 4 * i, GROUP].astype(np.float32).view(np.uint32)
    return words.flatten()


def check_mma(out, a, b):
    d = out[:256].view(np.float32).reshape(32, 8)[:, :4]
    rows = GROUP[:, None] + np.array([0, 0, 8, 8])
    columns = 2 * IN_GROUP[:, None] + np.array([0, 1, 0, 1])
    start = LANES[:, None] + np.arange(4)
    expected = start + (a @ b)[rows, columns]
    # Sums of at most 17 terms in float32, in any order, each truncated rather than rounded as tensor cores do.
    bound = 17 * 2.0**-23 * (start + (np.abs(a) @ np.abs(b))[rows, columns])
    np.testing.assert_array_less(np.abs(d - expected), bound)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "dtype", "k"),
    [("mma_bf16", torch.bfloat16, 16), ("mma_f16", torch.float16, 16), ("mma_f16_k8", torch.float16, 8)],
)
def test_mma_of_16_bit_operands(device, name, dtype, k):
    generator = np.random.default_rng(1)
    a_bits, a = half_bits(generator.standard_normal((16, k)), dtype)
    b_bits, b = half_bits(generator.standard_normal((k, 8)), dtype)
    check_mma(run(device, name, mma_words_16_bit(a_bits, b_bits)), a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_mma_of_tf32_operands(device):
    generator = np.random.default_rng(2)
    a, b = (round_to_tf32(generator.standard_normal(shape).astype(np.float32)) for shape in [(16, 8), (8, 8)])
    check_mma(run(device, "mma_tf32", mma_words_tf32(a, b)), a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_mma_cuts_off_what_was_not_rounded_to_tf32(device):
    """Else a forgotten round_to_tf32 could not be seen."""
    ones = np.ones((8, 8), np.float32)
    below_two = np.full((16, 8), np.nextafter(np.float32(2), np.float32(0)))
    out = run(device, "mma_tf32", mma_words_tf32(below_two, ones))
    check_mma(out, np.full((16, 8), 2 - 2.0**-10), ones)


# ---- numbers --------------------------------------------------------------------------------------------------------


def round_to_tf32(x):
    """10 bits after the leading one, ties away from zero."""
    x = x.astype(np.float64)
    _, exponent = np.frexp(np.where(np.isfinite(x), x, 1))
    unit = np.exp2(np.maximum(exponent - 11, -136))
    return np.where(np.isfinite(x), np.copysign(np.floor(np.abs(x) / unit + 0.5) * unit, x), x)


def numbers():
    """256 floats: random ones of every size, ties of every format, denormals, infinities, NaN."""
    generator = np.random.default_rng(3)
    special = [0, -0.0, 1, -1, math.inf, -math.inf, math.nan, 65504, 65519, 65520, 3e38, 1e-40, 6e-8, 2**-24, 2**-25]
    ties = [s * (1 + 2.0**-b) for s in (1, -1, 3) for b in (8, 9, 10, 11, 12)]
    rest = generator.standard_normal(256 - len(special) - len(ties)) * np.exp2(generator.integers(-20, 6, 226))
    return np.array(special + ties + rest.tolist(), dtype=np.float32)


def number_results(device):
    return run(device, "number", numbers().view(np.uint32)).reshape(256, 8)


def same_bits(a, b):
    np.testing.assert_array_equal(np.asarray(a, np.uint32), np.asarray(b, np.uint32))


@pytest.mark.parametrize("device", DEVICES)
def test_conversions(device):
    x, out = numbers(), number_results(device)
    number = ~np.isnan(x)
    same_bits(out[number, 0], round_to_tf32(x[number]).astype(np.float32).view(np.uint32))
    for column, round_trip, dtype, one in [(1, 3, torch.bfloat16, 0x3F80), (2, 4, torch.float16, 0x3C00)]:
        bits, values = half_bits(x, dtype)
        same_bits(out[number, column], bits[number] | one << 16)
        same_bits(out[number, round_trip], values[number].astype(np.float32).view(np.uint32))
        same_bits(out[~number, column], 0x7FFF | one << 16)  # never all ones: GRID takes that for "not written yet"
        assert np.isnan(out[:, round_trip].view(np.float32)[~number]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_approximate_functions(device):
    x = numbers().astype(np.float64)
    tanh, exp, reciprocal = (number_results(device)[:, i].view(np.float32) for i in (5, 6, 7))
    usual = (np.abs(x) > 1e-30) & (np.abs(x) < 80)
    assert usual.sum() > 230
    np.testing.assert_allclose(tanh[usual], np.tanh(x[usual]), rtol=2**-10.9)
    np.testing.assert_allclose(reciprocal[usual], 1 / x[usual], rtol=2**-22)
    # exp_fast is 2^(x log2 e): the rounding of the exponent is relative to x.
    np.testing.assert_array_less(np.abs(exp[usual] / np.exp(x[usual]) - 1), (2 + np.abs(1.2 * x[usual])) * 2.0**-23)


# ---- warp, memory, synchronisation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_warp(device):
    words = random_words()
    own = words[::8].copy()
    out = run(device, "warp", words)[:256].reshape(32, 8)
    for i in range(5):
        same_bits(out[:, i], own[LANES ^ 1 << i])
    assert (out[:, 5] == (own % 32 == LANES).any()).all()
    assert (out[:, 6] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
def test_memory(device):
    words = random_words()
    same_bits(run(device, "memory", words)[:256].reshape(32, 8), words.reshape(32, 8)[LANES ^ 1])


@pytest.mark.parametrize("device", DEVICES)
def test_cluster(device):
    words = random_words()
    out = run(device, "cluster", words)[:512].reshape(2, 32, 8)
    for rank in range(2):
        expected = words.reshape(32, 8)[:, :4].copy()
        expected[:, 0] += 1 - rank  # the sender's rank
        same_bits(out[rank, :, :4], expected)
        pairs = words.reshape(32, 8)[:, 6:].copy()
        pairs[:, 1] += 1 - rank
        same_bits(out[rank, :, 6:], pairs)
        assert (out[rank, :, 4] == rank).all() and (out[rank, :, 5] == 2).all()


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU and nvcc: compares the hardware with the twins")
@pytest.mark.parametrize("name", EXACT)
def test_hardware_equals_twin(name):
    same_bits(run("cuda", name, random_words()), run("emulated", name, random_words()))


def test_emulated_module_has_every_kernel():
    assert module().run_primitive("no such kernel", 0, 0) == -1
