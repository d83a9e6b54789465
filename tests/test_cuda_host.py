"""The host code of the CUDA library on the emulated GPU: matrices as BLAS is told of them, refused launches, the calls
around the kernels, and what is said of lost contexts.
"""

import re
from concurrent.futures import ThreadPoolExecutor

import emulator
import pytest
import torch
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


@pytest.mark.parametrize(("backward", "operands"), [(False, 1), (True, 3)])
def test_exchange_buffer_is_bounded(backward, operands):
    """By 32 positions, however long the sequences are."""
    module, layer = emulator.module(), Layer(2, 8, 1024, GRU, dtype=torch.bfloat16)
    plan = Emulated(module, layer, "grid").plan(backward)
    for T in (2, 31, 32, 33, 4096):
        assert module.exchange_bytes(plan, T, 8, 1024) == min(T, 32) * operands * 8 * 1024 * 2
    assert module.exchange_bytes(Emulated(module, layer, "stream").plan(backward), 4096, 8, 1024) == 0


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
    text = "^fusedlstm: lstm grid bfloat16, .*: CUDA's own text" + (rf" \(.*{cause}" if cause else "$")
    with pytest.raises(RuntimeError, match=text):
        planner.replace(choice, problem(), error)
    assert kernel(planner.choose(problem(), "")) == kernel(choice)


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


# ---- refusals within a call -----------------------------------------------------------------------------------------


def small(**options):
    return Layer(16, 5, 100, dtype=torch.bfloat16, **options)


def run_all(layer, request, launch_errors=()):
    """All results, and the run."""
    run = Emulated(emulator.module(), layer, request)
    with emulator.options(run.emu, launch_errors=list(launch_errors)):
        out = run.forward()
    return out | run.backward(out, EVERYTHING), run


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_refusal_runs_another_kernel_in_the_same_call():
    """Bit for bit as if the next kernel had been asked for; not the refused one again in the next call."""
    layer = small()
    run = Emulated(emulator.module(), layer, "")
    first = run.plan(False)
    with emulator.options(run.emu, launch_errors=[701]):
        out = run.forward()
    (warning,) = run.host.warnings
    second = kernel(run.fallback.choose(run.problem(False), ""))
    assert second != first.kernel.split()[-1] and second.split(":")[0] != "stream"
    assert second in run.fallback.last_launched
    assert_equal(out, Emulated(emulator.module(), layer, second).forward())
    with emulator.options(run.emu, launch_errors=[0, 701]):  # one launch a call: the second error stays
        assert_equal(run.forward(), out)
        assert run.emu.options().launch_errors == [701]
    assert run.host.warnings == [warning] and run.host.live == 0


@pytest.mark.parametrize("members", [0, 2], ids=["layer", "ensemble"])
def test_refusal_of_every_kernel_leaves_stream(members):
    """For an ensemble member by member, each of which has no kernel either."""
    layers = [small(seed=seed) for seed in range(members or 1)]
    layer, all_of_them = (
        (layers, problem(T=16, H=100, members=members)) if members else (layers[0], problem(T=16, H=100))
    )
    planner, refusals = fallback(), 0
    choice = planner.choose(all_of_them, "")
    while choice.plan.transport != "stream":
        choice, refusals = planner.replace(choice, all_of_them, 701)[0], refusals + 1
    found, run = run_all(layer, "", [701] * refusals)
    expected = Emulated(emulator.module(), layer, "stream").forward()
    assert_equal({name: found[name] for name in expected}, expected)
    assert len(run.host.warnings) == refusals > 2
    assert run.host.warnings[-1].endswith("; instead of it runs: " + str(choice.plan))


@pytest.mark.parametrize("members", [1, 3])
def test_refusal_of_an_ensemble(members):
    """Another kernel of all members at once; where none is left, member by member."""
    layers = [small(seed=seed) for seed in range(members)]
    run = Emulated(emulator.module(), layers, "")
    with emulator.options(run.emu, launch_errors=[701]):
        out = run.forward()
    second = kernel(run.fallback.choose(run.problem(False), ""))
    for m, layer in enumerate(layers):
        expected = Emulated(emulator.module(), layer, second).forward()
        assert_equal({name: value[m] for name, value in out.items()}, expected)
    assert len(run.host.warnings) == 1


@pytest.mark.parametrize("request_", ["", "stream"])
@pytest.mark.parametrize("error", [1, 700, 209])
def test_errors_that_are_no_refusals_leave_the_call(request_, error):
    """And leave no workspace behind."""
    run = Emulated(emulator.module(), small(), request_)
    with (
        emulator.options(run.emu, launch_errors=[error]),
        pytest.raises(RuntimeError, match=r"fusedlstm: .*: CUDA's own"),
    ):
        run.forward()
    assert run.host.live == 0 and run.host.warnings == []


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
    if options == "projection" and transport != "stream":
        return
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


# ---- lost contexts --------------------------------------------------------------------------------------------------

STICKY = {214, 220, 700, 702, 710, 714, 715, 716, 717, 718, 719, 810}
WAITS = {702, 710, 719}  # cudaErrorLaunchTimeout, cudaErrorAssert, cudaErrorLaunchFailure


def test_host_knows_errors_that_lose_the_context():
    assert {error for error in range(1000) if emulator.module().is_context_lost(error)} == STICKY


@pytest.mark.parametrize("error", sorted(STICKY))
def test_host_says_that_the_context_is_lost(error):
    """With the kernel that was launched last, and what to do."""
    run = Emulated(emulator.module(), small(), "")
    assert run.fallback.last_launched == ""
    run.forward()
    last = run.fallback.last_launched
    assert last == f"{run.plan(False).kernel} ({run.plan(False)})"
    text = emulator.module().lost_context_text("CUDA error: an assert", error, last)
    assert text.startswith("fusedlstm: the CUDA context of this process is lost (CUDA's own text): no CUDA call")
    assert "restart the process" in text and last in text and text.endswith("The operator said: CUDA error: an assert")
    assert ("FUSEDLSTM_PLAN=stream" in text) == (error in WAITS)


def test_host_blames_no_kernel_of_a_lost_context_before_the_first():
    run = Emulated(emulator.module(), small(), "stream")
    run.forward()
    text = emulator.module().lost_context_text("error", 719, run.fallback.last_launched)
    assert "No resident kernel of fusedlstm was launched" in text and "FUSEDLSTM_PLAN" not in text
