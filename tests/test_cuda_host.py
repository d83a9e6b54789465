"""The host code of the CUDA library on the emulated GPU: matrices as BLAS is told of them, plans that are kept, and the
calls around the kernels.
"""

from concurrent.futures import ThreadPoolExecutor

import emulator
import pytest
import torch
from emulated_host import assert_equal, fallback, kernel, problem, run_all
from emulated_layer import EVERYTHING, H200, Emulated, Layer

from fusedlstm.cells import GRU, RNN_TANH

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


def gemm_of(out, a, b, allow_tf32=False):
    view = emulator.module().View
    views = (view(t.data_ptr(), str(t.dtype).removeprefix("torch."), t.shape, t.stride()) for t in (out, a, b))
    return emulator.module().gemm_of(*views, allow_tf32)


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("n", SIZES)
def test_blas_multiplies_as_it_is_told(m, n):
    """Column by column, whatever lies around the matrices."""
    for k in SIZES:
        for (_, a), (_, b) in zip(layouts(m, k), reversed(list(layouts(k, n)))):
            out = torch.zeros(m + 1, n + 2)[:m, 1 : n + 1]
            told = gemm_of(out, a, b)
            rows, columns, inner = told["sizes"]
            operands = []
            for matrix, leading, is_transposed, height, width in zip(
                (b, a), told["leading"], told["transposes"], (rows, inner), (inner, columns)
            ):
                read = matrix.as_strided((width, height) if is_transposed else (height, width), (1, leading))
                operands.append(read.T if is_transposed else read)
            out.as_strided((rows, columns), (1, told["leading"][2])).copy_(operands[0] @ operands[1])
            torch.testing.assert_close(out, a @ b)


def test_what_blas_is_told_of_types():
    """By the numbers in the headers of cuBLAS: CUDA_R_*, and CUBLAS_COMPUTE_32F, _64F and _32F_FAST_TF32."""
    f32, f64, f16, bf16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
    expected = {
        (f32, f32, False): (0, 0, 68), (f32, f32, True): (0, 0, 77), (f64, f64, True): (1, 1, 70),
        (f16, f16, True): (2, 2, 68), (f16, f32, True): (2, 0, 68),
        (bf16, bf16, False): (14, 14, 68), (bf16, f32, True): (14, 0, 68),
    }  # fmt: skip
    for (given, result, allow_tf32), types in expected.items():
        a, b = torch.zeros(2, 3, dtype=given), torch.zeros(3, 4, dtype=given)
        assert gemm_of(torch.zeros(2, 4, dtype=result), a, b, allow_tf32)["types"] == types


def test_what_blas_is_not_told_of():
    """Results that lie column by column, and products of nothing."""
    a, b = torch.zeros(2, 3), torch.zeros(3, 4)
    assert gemm_of(torch.zeros(4, 2).T, a, b) is None
    assert gemm_of(torch.zeros(2, 4), a[:, :0], b[:0]) is None
    assert gemm_of(torch.zeros(2, 4), a, torch.zeros(3, 8)[:, ::2]) is None


@pytest.mark.parametrize(("backward", "operands"), [(False, 1), (True, 3)])
def test_exchange_buffer_is_bounded(backward, operands):
    """By 32 positions, however long the sequences are."""
    module, layer = emulator.module(), Layer(2, 8, 1024, GRU, dtype=torch.bfloat16)
    plan = Emulated(module, layer, "grid").plan(backward)
    for T in (2, 31, 32, 33, 4096):
        assert module.exchange_bytes(plan, T, 8, 1024) == min(T, 32) * operands * 8 * 1024 * 2
    assert module.exchange_bytes(Emulated(module, layer, "stream").plan(backward), 4096, 8, 1024) == 0


# ---- plans that are kept --------------------------------------------------------------------------------------------


def told(choice):
    """All that a plan says of itself."""
    return str(choice.plan), choice.plan.rejected


BASE = {"T": 64, "B": 24, "H": 256, "dtype": "float32"}
VARIATIONS = [
    {"cell": "gru"}, {"cell": "rnn_relu"},
    {"T": 640}, {"B": 80}, {"H": 20}, {"proj_size": 3}, {"directions": 2}, {"members": 100},
    {"dtype": "bfloat16"}, {"allow_tf32": False}, {"backward": True},
]  # fmt: skip


@pytest.mark.parametrize("variation", VARIATIONS, ids=str)
def test_kept_plans_are_of_one_problem(variation):
    """Asked for again, each of two problems that differ in one thing has its own plan."""
    planner, pair = fallback(), [problem(**BASE), problem(**BASE | variation)]
    expected = [told(fallback().choose(one, "")) for one in pair]
    assert expected[0] != expected[1]
    for _ in range(2):
        assert [told(planner.choose(one, "")) for one in pair] == expected


def test_kept_plans_are_of_one_request():
    """A request that does not fit is an error whatever was planned before, and each time."""
    planner, layer, requests = fallback(), problem(**BASE), ("", "stream", "cluster", "grid", "grid:16x8")
    expected = [told(fallback().choose(layer, request)) for request in requests]
    assert len({plan for plan, _ in expected}) == len(requests) - 1  # the first is one of the others
    for _ in range(2):
        assert [told(planner.choose(layer, request)) for request in requests] == expected
        with pytest.raises(ValueError, match="FUSEDLSTM_PLAN=local does not fit: local: expected at most 128 of K"):
            planner.choose(layer, "local")


def test_kept_plans_end_with_a_refusal():
    """Of the kernel that they have, and of any that they could have had, for all problems and requests."""
    planner, request = fallback(), {"T": 64, "B": 8}
    large, small = problem(H=416, **request), problem(H=352, **request)
    first = planner.choose(large, "")
    name = kernel(first)
    assert kernel(planner.choose(small, "")) == kernel(planner.choose(large, name)) == name
    planner.replace(first, large, 701)
    assert name not in {kernel(planner.choose(large, "")), kernel(planner.choose(small, ""))}
    with pytest.raises(ValueError, match="got one that it has refused"):
        planner.choose(large, name)


def test_kept_plans_are_bounded():
    """By forgetting, after which plans are as they were."""
    emu = emulator.module()
    memo, layer = emu.PlanMemo(H200), problem(**BASE)
    expected = str(memo.plan(layer, ""))
    for T in range(1, 2 * memo.most):
        assert memo.plan(problem(**BASE | {"T": T}), "") and len(memo) <= memo.most
    full = len(memo)
    assert full > 1 and str(memo.plan(layer, "")) == str(memo.plan(layer, "")) == expected
    assert len(memo) - full <= 1


def test_kept_plans_serve_many_threads():
    planner, threads, most = fallback(), 4, emulator.module().PlanMemo.most
    layers = [problem(**BASE | {"T": T}) for T in range(2, 2 * most)]  # so that they also forget
    expected = [str(choice.plan) for choice in fallback().choose_each(layers)]
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(planner.choose_each, [layers * 10] * threads):
            assert [str(choice.plan) for choice in found] == expected * 10


# ---- the layer's host code ------------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "packed": {"lengths": [3, 3, 2, 1, 1], "packed": True, "directions": 2},
    "lengths": {"lengths": [3, 0, 2, 1, 3], "directions": 2},
    "resets": {"resets": True, "reset_states": True},
    "projection": {"proj_size": 7, "directions": 2},
    "gates apart": {"cell": GRU, "lengths": [3, 0, 2, 1, 3], "directions": 2},
    "gates apart, resets": {"cell": GRU, "resets": True, "reset_states": True},
    "nothing saved": {"cell": RNN_TANH, "lengths": [3, 3, 2, 1, 1], "packed": True, "directions": 2},
}


def tiny(seed=0, **options):
    return Layer(3, 5, 20, seed=seed, **options)


@pytest.mark.parametrize("transport", ["stream", "local"])
@pytest.mark.parametrize("options", OPTIONS)
def test_host_ensemble_is_its_members(options, transport):
    """Bit for bit: in one launch, one by one, and members that lie between each other in memory."""
    layers = [tiny(seed, **OPTIONS[options]) for seed in range(3)]
    found, run = run_all(layers, transport)
    for m, layer in enumerate(layers):
        assert_equal({name: value[m] for name, value in found.items()}, run_all(layer, transport)[0])

    def last(tensor):
        """The same values with the members in the innermost dimension."""
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)

    ensemble = Emulated(emulator.module(), layers, transport)
    for name in ("h_0", "c_0", "reset_h", "reset_c"):
        if name in ensemble.layer.t:
            ensemble.layer.t[name] = last(ensemble.layer.t[name])
    out = ensemble.forward()
    assert_equal(out | ensemble.backward(out, EVERYTHING), found)
    assert ensemble.host.live == run.host.live == 0


@pytest.mark.parametrize("options", OPTIONS)
def test_host_gives_each_gradient_alone(options):
    layer = tiny(**OPTIONS[options])
    run = Emulated(emulator.module(), layer, "stream")
    out = run.forward()
    every = run.backward(out, EVERYTHING)
    for name in EVERYTHING:
        alone = run.backward(out, wanted=(name,))
        assert_equal(alone, {key: value for key, value in every.items() if key.startswith(f"d_{name}")})


def test_host_takes_weights_at_any_address():
    """A parameter may be a part of a larger one."""
    layer = Layer(3, 5, 24, dtype=torch.bfloat16)  # rows of whole vectors, which are not copied at an aligned address
    run = Emulated(emulator.module(), layer, "local")
    run.parameters_start_at = 1
    out = run.forward()
    assert_equal(out | run.backward(out, EVERYTHING), run_all(layer, "local")[0])


@pytest.mark.parametrize("transport", ["stream", "local"])
def test_host_takes_d_output_of_any_strides(transport):
    """As `output.sum().backward()` gives it: one row for all."""
    layer = tiny()
    row = torch.randn(layer.R)
    layer.t["d_output"] = row.expand(3, 5, -1).contiguous()
    expected, _ = run_all(layer, transport)
    layer.t["d_output"] = row.expand(3, 5, -1)
    assert_equal(run_all(layer, transport)[0], expected)


@pytest.mark.parametrize("transport", ["stream", "local"])
@pytest.mark.parametrize("options", OPTIONS)
def test_host_hands_on_whether_tf32_may_be_used(options, transport):
    """To every product, and to the kernels, whose results it changes."""
    results = {}
    for allowed in (True, False):
        results[allowed], run = run_all(tiny(**OPTIONS[options], allow_tf32=allowed), transport)
        assert set(run.host.products_with_tf32) == {allowed}
    assert not torch.equal(results[True]["output"], results[False]["output"])


@pytest.mark.parametrize("members", [0, 2], ids=["layer", "ensemble"])
def test_host_without_steps(members):
    """The state passes through, and so does its gradient; no kernel is launched."""
    layers = [Layer(0, 5, 20, seed=seed) for seed in range(members or 1)]
    run = Emulated(emulator.module(), layers if members else layers[0], "")
    with emulator.options(run.emu, launch_errors=[700]):
        out = run.forward()
        grads = run.backward(out, wanted=("h_0", "c_0"))
        assert run.emu.options().launch_errors == [700]
    for result, origin in (("h_n", "h_0"), ("c_n", "c_0")):
        assert torch.equal(out[result], run.layer.t[origin])
        assert torch.equal(grads[f"d_{origin}"], run.layer.t[f"d_{result}"])
