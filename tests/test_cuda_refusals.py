"""Launches that a device refuses, on the emulated GPU: what runs instead and what is said; and of lost contexts."""

import re

import emulated_varied
import emulator
import pytest
from emulated_host import assert_equal, fallback, kernel, problem, run_all, small
from emulated_layer import Emulated
from recurrences import draw

from fusedlstm.cells import CELLS

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
FINAL = {98: NO_IMAGE, 209: NO_IMAGE, 221: NO_IMAGE, 223: NO_IMAGE} | {
    222: OLD_DRIVER,  # cudaErrorUnsupportedPtxVersion
    35: OLD_DRIVER, 803: OLD_DRIVER, 804: OLD_DRIVER,
    1: "a bug of fusedlstm, please report it",  # cudaErrorInvalidValue
    700: None,  # cudaErrorIllegalAddress
}  # fmt: skip


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


def test_refused_clusters_of_a_mesh_are_refused_to_all():
    """They have one size, however many there are."""
    planner, large, small = fallback(), *(problem(H=H, B=64, T=64, backward=True) for H in (1024, 640))
    refused = planner.choose(large, "")
    assert refused.plan.transport == planner.choose(small, "").plan.transport == "mesh"
    assert "in clusters of" not in planner.replace(refused, large, CLUSTER_SIZE)[1]
    assert planner.choose(small, "").plan.transport != "mesh"


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


# ---- refusals within a call -----------------------------------------------------------------------------------------


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
    assert second in run.fallback.last_launched.resident
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


def test_refusal_of_a_projection():
    """Of one kernel and of all: what was made ready for it is not taken for what STREAM starts from.

    A launch comes before it, of what rows are given.
    """
    layer, sizes = small(proj_size=20), problem(T=16, H=100, proj_size=20)
    second = kernel(fallback().replace(fallback().choose(sizes, ""), sizes, 701)[0])
    assert second != "stream"
    run = Emulated(emulator.module(), layer, "")
    with emulator.options(run.emu, launch_errors=[0, 701]):
        out = run.forward()
    assert_equal(out, Emulated(emulator.module(), layer, second).forward())
    planner, refusals = fallback(), 0
    choice = planner.choose(sizes, "")
    while choice.plan.transport != "stream":
        choice, refusals = planner.replace(choice, sizes, 701)[0], refusals + 1
    found, run = run_all(layer, "", [0] + [701] * refusals)
    expected = Emulated(emulator.module(), layer, "stream").forward()
    assert_equal({name: found[name] for name in expected}, expected)
    assert len(run.host.warnings) == refusals > 2


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


# ---- lost contexts --------------------------------------------------------------------------------------------------

STICKY = {214, 220, 700, 702, 710, 714, 715, 716, 717, 718, 719, 810}
WAITS = {702, 710, 719}  # cudaErrorLaunchTimeout, cudaErrorAssert, cudaErrorLaunchFailure


def test_host_knows_errors_that_lose_the_context():
    assert {error for error in range(1000) if emulator.module().is_context_lost(error)} == STICKY


@pytest.mark.parametrize("error", sorted(STICKY))
def test_host_says_that_the_context_is_lost(error):
    """With the kernel that was launched last, and what to do."""
    run = Emulated(emulator.module(), small(), "")
    assert run.fallback.last_launched.resident == ""
    run.forward()
    last = run.fallback.last_launched
    assert last.resident == f"{run.plan(False).kernel} ({run.plan(False)})" and last.varied == ""
    text = emulator.module().lost_context_text("CUDA error: an assert", error, last)
    assert text.startswith("fusedlstm: the CUDA context of this process is lost (CUDA's own text): no CUDA call")
    assert "restart the process" in text and last.resident in text
    assert text.endswith("The operator said: CUDA error: an assert")
    assert ("FUSEDLSTM_PLAN=stream" in text) == (error in WAITS)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_host_names_a_kernel_with_variants(backward):
    """Also where one of its launches fails. A resident kernel before it may be to blame still; after it, it is last."""
    run = Emulated(emulator.module(), small(), "")
    recurrence = emulated_varied.EmulatedRecurrence(CELLS["gru"])
    recurrence.fallback = run.fallback
    given = draw("gru", ("bias",), 3, 2, 5)._replace(keeps=True)
    output, states, kept = recurrence.recurrence(*given)
    name = f"float64 gru {'backward' if backward else 'forward'} kernel with variants"
    for resident in ("", f"{run.plan(False).kernel} ({run.plan(False)})"):
        with emulator.options(run.emu, launch_errors=[0, 719]), pytest.raises(RuntimeError, match="varied"):
            if backward:
                recurrence.backward(output, states, *given, kept, [True] * 3)
            else:
                recurrence.recurrence(*given)
        last = run.fallback.last_launched
        assert (last.varied, last.resident) == (name, resident)
        text = emulator.module().lost_context_text("error", 719, last)
        assert f"The kernel of fusedlstm that was launched last on this device: {name}." in text
        assert ("No resident kernel" in text) == (not resident) and resident in text
        run.forward()
        assert run.fallback.last_launched.varied == "" and run.fallback.last_launched.resident


def test_host_blames_no_kernel_of_a_lost_context_before_the_first():
    run = Emulated(emulator.module(), small(), "stream")
    run.forward()
    text = emulator.module().lost_context_text("error", 719, run.fallback.last_launched)
    assert "No resident kernel of fusedlstm was launched" in text and "FUSEDLSTM_PLAN" not in text
