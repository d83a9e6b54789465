"""What runs a call of layers on a GPU: fusedlstm's kernels or cuDNN, here by stand-ins on the CPU."""

import logging
import threading
import warnings
from unittest import TestCase

import pytest
import torch
from contest_stand_in import OTHERS, contest  # noqa: F401  (a fixture)
from family import EVERY, LSTM, every, tensors_of
from torch.nn.utils.rnn import pack_sequence

import fusedlstm
from fusedlstm import FusedLSTM, _contest
from fusedlstm._planner import Problem

pytestmark = pytest.mark.usefixtures("contest")


def benchmark():
    return torch.backends.cudnn.flags(enabled=True, benchmark=True)


LOCAL = "local:64x8x64"  # one of the kernels that fit a float32 LSTM of 20 units

OPTIONS = {
    "plain": {},
    "stack": {"num_layers": 3},
    "both directions": {"bidirectional": True, "num_layers": 2},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "projection": {"proj_size": 3, "num_layers": 2},
}


def gradients(results, module, *inputs):
    tensors = tensors_of(results)
    return torch.autograd.grad(tensors, [*inputs, *module.parameters()], [torch.full_like(t, 0.1) for t in tensors])


@pytest.fixture
def cudnn_is_faster(contest):  # noqa: F811
    contest.planner.times["cudnn"] = 10
    with benchmark():
        yield contest


CASES = {
    f"{member}-{name}": (member, options)
    for member in EVERY
    for name, options in OPTIONS.items()
    if member is LSTM or "proj_size" not in options
}


@pytest.mark.parametrize("member, options", CASES.values(), ids=CASES)
def test_cudnn_serves_every_option(member, options, cudnn_is_faster):
    """Values and all gradients of a call that cuDNN runs are the plain layer's."""
    fused, plain = member.pair(4, 5, **options)
    x = torch.randn(6, 3, 4, requires_grad=True)
    results = fused(x)
    assert cudnn_is_faster.ran[-1] == "cudnn" and fusedlstm.last_plan().startswith("cuDNN")
    torch.testing.assert_close(tensors_of(results), tensors_of(plain(x)))
    torch.testing.assert_close(gradients(results, fused, x), gradients(plain(x), plain, x))
    with torch.no_grad():
        torch.testing.assert_close(tensors_of(fused(x)), tensors_of(plain(x)))
    assert cudnn_is_faster.ran[-1] == "cudnn"


@every
def test_packed(member, cudnn_is_faster):
    fused, plain = member.pair(4, 5, num_layers=2)
    packed = pack_sequence([torch.randn(n, 4) for n in (5, 7, 2)], enforce_sorted=False)
    torch.testing.assert_close(tensors_of(fused(packed)), tensors_of(plain(packed)))
    assert cudnn_is_faster.ran[-1] == "cudnn"
    assert any(" packed " in f"{problem.name} " for (problem, _) in _contest._decisions)


@pytest.mark.parametrize("member", EVERY, ids=str)
def test_double_backward_of_what_cudnn_ran(member, cudnn_is_faster):
    """A gradient penalty, with a state that depends on the input."""
    fused, plain = member.pair(4, 5, dtype=torch.float64)

    def penalty(module, x):
        h = 0.5 * x[:1, :, :1].expand(1, 3, 5)
        output, _ = module(x, (h, h * h) if member is LSTM else h)
        (d_x,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return torch.autograd.grad(d_x.square().sum(), [x, *module.parameters()])

    x = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(penalty(fused, x), penalty(plain, x))
    assert "cudnn" in cudnn_is_faster.ran


def test_one_gradient_of_several(cudnn_is_faster):
    """Of a frozen weight, and through one result alone."""
    fused, plain = LSTM.pair(4, 5)
    fused.weight_ih_l0.requires_grad_(False)
    x = torch.randn(6, 3, 4, requires_grad=True)
    found = torch.autograd.grad(fused(x)[1][1].sum(), [x, fused.weight_hh_l0])
    expected = torch.autograd.grad(plain(x)[1][1].sum(), [x, plain.weight_hh_l0])
    torch.testing.assert_close(found, expected)


def test_batched_gradients(cudnn_is_faster):
    """torch.autograd.grad(is_grads_batched=True), for which cuDNN has no rule."""
    fused, plain = LSTM.pair(4, 5)
    x, d = torch.randn(6, 3, 4, requires_grad=True), torch.randn(2, 6, 3, 5)
    found, expected = (torch.autograd.grad(m(x)[0], x, d, is_grads_batched=True)[0] for m in (fused, plain))
    torch.testing.assert_close(found, expected)


def test_fastest_kernels_are_preferred(contest):  # noqa: F811
    """Of each pass, as measured; each contender was compared, and timed in turns with the others."""
    planner = contest.planner
    asked = Problem("lstm", 6, 3, 4, 20, 0, 1, 1, torch.float32, False, False, True)
    forward, backward = (
        [plan["request"] for plan in planner.contenders(asked, is_backward)["plans"]] for is_backward in (False, True)
    )
    assert len(forward) > 2 and len(backward) > 2 and forward[-1] == backward[-1] == "stream"
    planner.times |= {LOCAL: 30, forward[0]: 40, backward[1]: 20}
    with benchmark():
        FusedLSTM(4, 20)(torch.randn(6, 3, 4))
    assert planner.preferred == {asked.name_of_pass(False): LOCAL, asked.name_of_pass(True): backward[1]}
    assert fusedlstm.last_plan() == "forward: kernels" and _contest.last[1] == asked
    turn = ["stream", *forward[:-1]]  # which the others are compared with
    assert planner.timed[: 3 * len(turn)] == turn * 3
    entry = planner.tables.find(asked.name_of_pass(False))
    assert entry == {"plan": LOCAL, "microseconds": {plan: planner.times.get(plan, OTHERS) for plan in turn}}


def test_nothing_is_measured_twice(contest):  # noqa: F811
    """Not in this process, nor in the next one; and a call of nearly the same sizes counts as the same."""
    module, x = FusedLSTM(4, 20), torch.randn(6, 3, 4)
    with benchmark():
        module(x)
        timed = len(contest.planner.timed)
        assert timed > 0
        module(x)
        module(torch.randn(8, 5, 4))
        _contest._decisions.clear()
        contest.planner.reload()
        module(x)
    assert len(contest.planner.timed) == timed
    assert _contest.last[2].source == "a table"
    module(x)  # and what was measured is used without the switch too
    assert _contest.last[2].source == "a table"


def test_ties_are_stable(contest):  # noqa: F811
    """cuDNN has to be clearly faster; so has a kernel."""
    contest.planner.times = {"stream": 500, "cudnn": 495}
    with benchmark():
        FusedLSTM(4, 20)(torch.randn(6, 3, 4))
    _, _, decision = _contest.last
    assert not decision.by_cudnn and decision.plans == ("stream", "stream")


@pytest.mark.parametrize("who", ["cudnn", LOCAL])
@pytest.mark.parametrize("how", ["fails", "is wrong"])
def test_faulty_contender_is_left_out(who, how, contest):  # noqa: F811
    """With its name, although it is the fastest."""
    contest.planner.times |= {who: 1, "cluster:16x8x128": 400}
    if how == "fails":
        contest.planner.failing[who] = torch.OutOfMemoryError("out of memory")
    else:
        contest.planner.wrong.add(who)
    reason = "out of memory" if how == "fails" else "expected the others' values"
    with benchmark(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module, x = FusedLSTM(4, 20), torch.randn(6, 3, 4)
        output, _ = module(x)
    texts = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert texts and all(text.startswith(f"fusedlstm leaves {who} out for lstm") and reason in text for text in texts)
    assert str(_contest.last[2]) == "fusedlstm, cluster:16x8x128 and " + _contest.last[2].plans[1] + " (measured)"
    contest.planner.failing.clear()
    contest.planner.wrong.clear()
    torch.testing.assert_close(output, module.double()(x.double())[0].float())


def test_all_fail(contest):  # noqa: F811
    """The call fails as it would have without a contest."""
    contest.planner.failing = {plan: RuntimeError("no kernel") for plan in ("stream", "cudnn", "")}
    for plan in (LOCAL, "cluster:16x8x128", "grid:8x8x128"):
        contest.planner.failing[plan] = RuntimeError("another")
    with benchmark(), pytest.warns(RuntimeWarning), pytest.raises(
        RuntimeError, match="no kernel"
    ):  # fmt: skip
        FusedLSTM(4, 20)(torch.randn(6, 3, 4))


def test_forced_plan(contest, monkeypatch):  # noqa: F811
    """FUSEDLSTM_PLAN: no cuDNN, and nothing is measured."""
    contest.planner.times["cudnn"] = 1
    module, x = FusedLSTM(4, 20), torch.randn(6, 3, 4)
    monkeypatch.setenv("FUSEDLSTM_PLAN", "stream")
    with benchmark():
        module(x)
        assert contest.planner.timed == [] and contest.ran == []
        monkeypatch.delenv("FUSEDLSTM_PLAN")
        module(x)
        assert contest.ran[-1] == "cudnn" and fusedlstm.last_plan() == "cuDNN (measured)"
        ran = len(contest.ran)
        monkeypatch.setenv("FUSEDLSTM_PLAN", "stream")
        module(x)
    assert len(contest.ran) == ran and fusedlstm.last_plan() == "forward: kernels"


def test_capture(contest):  # noqa: F811
    """A graph that is being recorded is not the place to measure; the first call after it is."""
    contest.planner.times["cudnn"], contest.planner.capturing = 1, True
    module, x = FusedLSTM(4, 20), torch.randn(6, 3, 4)
    with benchmark():
        module(x)
        assert contest.planner.timed == [] and _contest.last[2].source == "the model"
        contest.planner.capturing = False
        module(x)
    assert _contest.last[2].source == "measured"


def test_deterministic_algorithms(contest):  # noqa: F811
    """The choice is a function of the tables alone: nothing is measured, and nothing is left to the model's doubt."""
    contest.planner.times["cudnn"] = 1
    large, x = FusedLSTM(4, 3000), torch.randn(2, 1, 4)
    large(x)
    assert contest.ran == ["cudnn"]
    torch.use_deterministic_algorithms(True)
    try:
        with benchmark():
            large(x)
            asked = contest.planner.asked
            large(x)
        assert contest.ran == ["cudnn"] and contest.planner.timed == [] and contest.planner.asked == asked
        _, problem, decision = _contest.last
        assert not decision.by_cudnn
        _contest._decisions.clear()
        contest.planner.tables.add(problem.name, {"cudnn": True, "microseconds": {}})
        large(x)
        assert contest.ran == ["cudnn"] * 2
    finally:
        torch.use_deterministic_algorithms(False)


def test_cudnn_turned_off(contest):  # noqa: F811
    with torch.backends.cudnn.flags(enabled=False, benchmark=True), torch.no_grad():
        FusedLSTM(4, 3000)(torch.randn(2, 1, 4))
    assert "cudnn" not in contest.ran and contest.planner.timed


@pytest.mark.parametrize(
    ("H", "B", "dtype", "by_cudnn"),
    [
        (64, 16, torch.float16, False),
        (256, 16, torch.bfloat16, False),
        (1024, 16, torch.bfloat16, False),
        (1024, 16, torch.float16, True),
        (1024, 256, torch.bfloat16, True),
        (4096, 8, torch.bfloat16, True),
    ],
    ids=str,
)
def test_model_without_tables(H, B, dtype, by_cudnn, contest):  # noqa: F811
    """Its choice where its advantage is beyond its doubt, else cuDNN's."""
    sizes = {"T": 512, "B": B, "I": H, "H": H, "P": 0, "L": 1, "D": 1}
    for is_training in (False, True):
        asked = Problem("lstm", **sizes, dtype=dtype, allow_tf32=True, is_packed=False, is_training=is_training)
        assert contest.planner.expects_cudnn(asked) is by_cudnn


@pytest.mark.parametrize("what", ["lengths", "reset", "states", "dropout", "compiled", "vmap", "traced", "autocast"])
def test_calls_that_cudnn_cannot_serve(what, cudnn_is_faster):
    """Or that may not depend on what was measured."""
    x, options = torch.randn(6, 3, 4), {}
    module = FusedLSTM(4, 5, 2, dropout=0.5 if what == "dropout" else 0.0).train()
    if what == "lengths":
        options["lengths"] = torch.tensor([6, 2, 1])
    elif what == "reset":
        options["reset"] = torch.zeros(6, 3, dtype=torch.bool)
    elif what == "states":
        options["return_cell_states"] = True
    if what == "vmap":
        torch.func.vmap(lambda x: module(x)[0])(torch.randn(2, 6, 3, 4))
    elif what == "compiled":
        torch.compile(module, backend="eager", fullgraph=True)(x)
    elif what == "traced":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(module.eval(), x, check_trace=False)
    elif what == "autocast":  # this one can be: on GPUs it is how most people train
        with torch.autocast("cpu", torch.bfloat16):
            assert module(x)[0].dtype is torch.bfloat16
        assert "cudnn" in cudnn_is_faster.ran
        return
    else:
        module(x, **options)
    assert cudnn_is_faster.ran == [] and cudnn_is_faster.planner.timed == []


def test_malformed_calls_are_refused_first(cudnn_is_faster):
    """With the errors of kernels: cuDNN and who measures would read beyond what is there."""
    module, x = FusedLSTM(4, 5), torch.randn(6, 3, 4)
    module(x)
    ran = len(cudnn_is_faster.ran)
    with pytest.raises(RuntimeError, match="Expected hidden"):
        module(x, (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)))
    module.weight_hh_l0.data = torch.zeros(20, 4)
    with pytest.raises(RuntimeError):
        module(x)
    assert len(cudnn_is_faster.ran) == ran


def test_threads_measure_once(contest):  # noqa: F811
    module, x = FusedLSTM(4, 20).requires_grad_(False), torch.randn(6, 3, 4)
    with benchmark():
        threads = [threading.Thread(target=module, args=(x,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        timed = len(contest.planner.timed)
        _contest._decisions.clear()
        contest.planner.timed.clear()
        contest.planner.tables.path.unlink()
        contest.planner.reload()
        module(x)
    assert timed == len(contest.planner.timed)


def test_log(contest):  # noqa: F811
    """One line for each problem, for those who ask."""
    module = FusedLSTM(4, 20)
    with TestCase().assertLogs("fusedlstm", logging.INFO) as logged, torch.no_grad():
        for _ in range(3):
            module(torch.randn(6, 3, 4))
    (record,) = logged.records
    text = "lstm float32 T=8 B=8 H=20 P=0 D=1 I=4 L=1 inference: fusedlstm, the planner's choice (the model)"
    assert record.getMessage() == text


def test_memory_of_decisions_is_bounded(contest, monkeypatch):  # noqa: F811
    monkeypatch.setattr(_contest, "_KEPT", 3)
    module = FusedLSTM(4, 5)
    for T in range(1, 9):
        module(torch.randn(T, 1, 4))
    assert 1 <= len(_contest._decisions) <= 3


def problem(**sizes):
    given = {"T": 100, "B": 16, "I": 40, "H": 50, "P": 0, "L": 1, "D": 1} | sizes
    return Problem("lstm", *given.values(), torch.float32, True, False, True)


def test_names_of_problems():
    """One name for nearly the same sizes, and none for others."""
    assert problem().name == "lstm tf32 T=128 B=16 H=50 P=0 D=1 I=64 L=1 training"
    assert problem().name_of_pass(True) == "lstm tf32 T=128 B=16 H=50 P=0 D=1 backward"
    for same in ({"T": 128}, {"B": 9}, {"I": 33}):
        assert problem(**same).name == problem().name
    for other in ({"T": 129}, {"B": 17}, {"I": 65}, {"H": 51}, {"L": 2}, {"D": 2}, {"P": 8}):
        assert problem(**other).name != problem().name
    assert [problem(B=B).name.split()[3] for B in (1, 8, 64, 65, 129)] == ["B=8", "B=8", "B=64", "B=128", "B=192"]


def test_cell_that_cudnn_does_not_know(cudnn_is_faster, monkeypatch):
    """Its kernels have no contender, and are not measured."""
    monkeypatch.setitem(_contest.CELLS, "lstm", _contest.CELLS["lstm"]._replace(cudnn=None))
    FusedLSTM(4, 20)(torch.randn(6, 3, 4))
    assert cudnn_is_faster.ran == [] and cudnn_is_faster.planner.timed == []


@pytest.mark.parametrize("by_cudnn", [False, True])
def test_backward_that_nothing_arrives_at(by_cudnn, contest):  # noqa: F811
    """As a function that gives no gradient says."""

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, d):
            return None

    contest.planner.times["cudnn"] = 10 if by_cudnn else 10_000
    module, x = FusedLSTM(4, 20, 2), torch.randn(6, 3, 4, requires_grad=True)
    for create_graph in (False, True):
        with benchmark():
            output = Nothing.apply(module(x)[0])
        found = torch.autograd.grad(
            output.sum(), [x, *module.parameters()], create_graph=create_graph, allow_unused=True
        )
        assert all(d is None or d.eq(0).all() for d in found)
