"""What may run a problem on a GPU, by the planner: kernels that fit, cuDNN by its model; and what is preferred."""

import json

import emulator
import pytest
from emulated_layer import H200, Emulated, Layer

core = pytest.importorskip("fusedlstm._core", reason="built without pybind11")
DEVICES = {device.name: device for device in core.known_devices()}


def contenders(device=H200, T=512, B=16, H=512, **options):
    options = {"dtype": "bfloat16", "I": H} | options
    return json.loads(core.contenders(device=DEVICES[device], T=T, B=B, H=H, **options))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("device", DEVICES)
def test_kernels(device, cell, dtype, backward):
    """The cheapest first, which is the plan; STREAM is always among them; each can be asked for by its name."""
    for H, B, T in ((20, 3, 50), (256, 16, 1), (512, 64, 100), (1024, 9, 7), (3000, 2, 5)):
        problem = {"cell": cell, "dtype": dtype, "backward": backward, "T": T, "B": B, "H": H}
        plans = contenders(device, **problem)["plans"]
        times, names = [plan["microseconds"] for plan in plans], [plan["request"] for plan in plans]
        assert times == sorted(times) and len(set(names)) == len(names) <= 4 and "stream" in names
        assert all(plan["doubted"] >= plan["microseconds"] for plan in plans)
        assert plans[0]["text"] == str(core.plan(device=DEVICES[device], **problem))
        for plan in plans:
            assert str(core.plan(device=DEVICES[device], **problem, request=plan["request"])) == plan["text"]


@pytest.mark.parametrize("backward", [False, True])
def test_stack_is_the_plan_of_all_layers(backward):
    """With the same doubt as a layer of that transport has."""
    sizes = {"H": 256, "layers": 4, "backward": backward}
    all_of_it = contenders(**sizes)
    planned = core.plan(device=DEVICES[H200], T=512, B=16, dtype="bfloat16", **sizes)
    doubt = all_of_it["plans"][0]["doubted"] / all_of_it["plans"][0]["microseconds"]
    assert planned.abreast > 1
    assert all_of_it["stack"] == pytest.approx(planned.microseconds * doubt, rel=1e-2)
    assert all_of_it["stack"] < 4 * all_of_it["plans"][0]["doubted"]


def cudnn(H, B=16, T=512, **options):
    """Microseconds of a step."""
    return contenders(T=T, B=B, H=H, **options)["cudnn"] / T


def test_cudnn_by_its_algorithm():
    """As PyTorch chooses it, with the step times that were published or assumed for each."""
    assert cudnn(128, dtype="float16") == pytest.approx(1.45, abs=0.1)
    assert cudnn(128, dtype="float32", backward=True) == pytest.approx(2.0, abs=0.1)
    assert cudnn(768, dtype="float16") == pytest.approx(2.0, abs=0.1)  # 1.96 on an H100, products included
    assert cudnn(1024, B=64, dtype="float16") == pytest.approx(3.7, abs=0.2)
    # Products and pointwise kernels of each step.
    standard = pytest.approx(5.0, abs=0.1)
    assert cudnn(128, dtype="bfloat16") == standard
    for other in ({"I": 100}, {"B": 12}, {"packed": True}, {"H": 700}, {"dtype": "float32"}, {"proj_size": 128}):
        assert cudnn(**{"H": 768, "dtype": "float16"} | other) > 4.9, other
    assert cudnn(768, dtype="float16", cell="gru") == standard
    assert cudnn(300, dtype="float16", cell="rnn_tanh") < 2 < cudnn(300, dtype="float16", cell="gru")
    assert cudnn(160, dtype="float16") < 2 < cudnn(160, dtype="float16", backward=True)  # limits of each pass
    assert cudnn(4096, B=64) > 25  # bound by the products


def test_cudnn_runs_layers_beside_each_other():
    one, four = cudnn(256), cudnn(256, layers=4)
    assert 2 * one < four < 3 * one
    assert cudnn(768, dtype="float16", layers=2) > cudnn(768, dtype="float16") * 2  # not by the resident kernels
    assert one < cudnn(256, directions=2) < 2 * one


def test_copied_weights_count():
    """In short calls they are most of it."""
    assert cudnn(1024, T=1) > 4 * cudnn(1024, T=512)
    assert cudnn(1024, T=1, backward=True) < 10


def problem(**options):
    return emulator.module().Problem(**{"T": 64, "B": 5, "H": 100, "dtype": "bfloat16"} | options)


def kernel(plan):
    return plan.kernel.split()[-1]


def test_preferred_plan():
    """Of one problem, as long as nothing else is asked for."""
    memo = emulator.module().PlanMemo(H200)
    usual, other = kernel(memo.plan(problem(), "")), "grid:8x8x256"
    assert usual != other
    memo.prefer(problem(), other)
    assert kernel(memo.plan(problem(), "")) == other
    assert kernel(memo.plan(problem(), "stream")) == "stream"
    for different in ({"B": 6}, {"T": 65}, {"backward": True}, {"dtype": "float16"}):
        assert kernel(memo.plan(problem(**different), "")) != other
    memo.prefer(problem(), "stream")
    assert kernel(memo.plan(problem(), "")) == "stream"
    with pytest.raises(ValueError, match="does not fit: local: expected"):
        memo.prefer(problem(H=500), "local")
    for T in range(1, memo.most + 2):
        memo.prefer(problem(T=T), "stream")
    assert kernel(memo.plan(problem(T=memo.most + 1), "")) == "stream"


def test_refused_kernel_is_not_preferred_any_more():
    """Nor does a refusal take another preference away."""
    planner = emulator.module().Fallback(H200, 0)
    planner.prefer(problem(), "grid:8x8x256")
    planner.prefer(problem(H=90), "stream")
    refused = planner.choose(problem(), "")
    second, _ = planner.replace(refused, problem(), 701)
    assert kernel(refused.plan) == "grid:8x8x256" != kernel(second.plan) == kernel(planner.choose(problem(), "").plan)
    assert kernel(planner.choose(problem(H=90), "").plan) == "stream"


def test_last_plan():
    """What ran, of each pass; of a preferred plan that a device refused, the one that replaced it."""
    layer = Layer(T=4, B=3, H=20)
    run = Emulated(emulator.module(), layer, "")
    assert (run.fallback.last_plan(False), run.fallback.last_plan(True)) == ("", "")
    run.fallback.prefer(run.problem(False), "stream")
    run.forward()
    assert run.fallback.last_plan(False).startswith("lstm stream float32") and run.fallback.last_plan(True) == ""
    run.fallback.prefer(run.problem(False), "grid:8x8x128")
    out = run.forward()
    assert run.fallback.last_plan(False).startswith("lstm grid float32")
    run.backward(out, ("input",))
    assert run.fallback.last_plan(True) == str(run.plan(True))
    with emulator.options(run.emu, launch_errors=[701]):
        run.forward()
    last = run.fallback.last_plan(False)
    assert last == str(run.fallback.choose(run.problem(False), "").plan) and "grid:8x8x128" not in last
