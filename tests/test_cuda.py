"""The operators on a real GPU, forced through every plan, against the float64 reference; needs one, else skips.

Without a GPU the same kernels run in test_cuda_emulated.py; here it is the hardware, the driver and the binding.
"""

import pytest
import torch
from layers import differentiable, draw, flat, leaves, mapped
from tf32 import tf32
from tolerance import assert_near, tolerance
from torch import Tensor

import fusedlstm
from benchmarks.cases import Case
from fusedlstm import reference
from fusedlstm.cells import CELLS, LSTM
from fusedlstm.ops import OPERATORS

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.fusedlstm, "lstm_layer") or not torch.cuda.is_available(), reason="no CUDA device"
)

PLANS = ("stream", "local", "cluster", "grid", "")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LENGTHS = [5, 1, 2, 0, 3, 5, 2, 1, 1, 5, 4]
PACKED_LENGTHS = [5, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2]
OPTIONS = {
    "plain": {},
    "both directions": {"bidirectional": True},
    "batch first": {"batch_first": True},
    "lengths": {"lengths": True, "bidirectional": True},
    "packed": {"packed": True, "bidirectional": True},
    "resets": {"resets": True},
    "projection": {"proj_size": 7, "bidirectional": True},
}


@pytest.fixture(params=PLANS, ids=lambda plan: plan or "automatic")
def plan(request, monkeypatch):
    monkeypatch.setenv("FUSEDLSTM_PLAN", request.param)
    return request.param


def layer_arguments(dtype, H, cell=LSTM, *, lengths=False, packed=False, batch_first=False, **options):
    """Arguments of the operator on the CPU: T = 5 steps of 11 sequences with 9 features."""
    variable = "packed" if packed else "lengths" if lengths else ""
    case = Case("layer", 5, 11, 9, H, variable=variable, **options)
    return draw(
        case,
        cell,
        lengths=PACKED_LENGTHS if packed else LENGTHS if lengths else None,
        reset_state=case.resets,
        batch_first=batch_first,
        dtype=dtype,
    ).layer


def on_gpu(arguments):
    return mapped(Tensor.cuda, arguments)


def skip_if_impossible(plan, dtype, H, cell=LSTM, proj_size=0):
    """What the planner refuses here is refused with a reason; test_plan.py checks the reasons."""
    arguments = on_gpu(layer_arguments(dtype, H, cell, proj_size=proj_size))
    try:
        OPERATORS[cell.name].inference(*arguments)
    except RuntimeError as error:
        if "does not fit" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize(
    "cell, options",
    [
        (cell, name)
        for cell in CELLS.values()
        for name in OPTIONS
        if cell.has_projection or "proj_size" not in OPTIONS[name]
    ],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_reference(plan, cell, dtype, options):
    # CTAs of a cluster may have 64 units.
    H, proj_size = 70 if cell.gates == 1 else 50, OPTIONS[options].get("proj_size", 0)
    skip_if_impossible(plan, dtype, H, cell, proj_size)
    arguments = layer_arguments(dtype, H, cell, **OPTIONS[options])
    exact = differentiable(arguments, torch.float64)
    expected = flat(reference.layer(cell, *exact))
    given = 1 + len(cell.states)  # results that gradients are given for
    d_out = [torch.randn_like(out).to(dtype) for out in expected[:given]]
    expected_grads = torch.autograd.grad(
        expected[:given], leaves(exact), [g.double() for g in d_out], allow_unused=True
    )

    inputs = differentiable(on_gpu(arguments))
    out = flat(OPERATORS[cell.name].layer(*inputs))
    grads = torch.autograd.grad(out[:given], leaves(inputs), [g.cuda() for g in d_out], allow_unused=True)

    for name, actual, right in zip(("output", *cell.states, "saved", "carried"), out, expected):
        assert_near(actual, right, tolerance(dtype, cell.gates * H, 5, device_type="cuda"), name)
    if cell.name == "rnn_relu" and dtype.itemsize == 2:
        return  # its corners make gradients jump
    for i, (actual, right) in enumerate(zip(grads, expected_grads)):
        assert_near(actual, right, 2 * tolerance(dtype, cell.gates * H + 55, 5, device_type="cuda"), f"gradient {i}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_runs_agree_bitwise(plan, dtype):
    skip_if_impossible(plan, dtype, 50)
    arguments = on_gpu(layer_arguments(dtype, 50))
    first = flat(torch.ops.fusedlstm.lstm_layer(*arguments))
    for _ in range(20):
        for a, b in zip(first, flat(torch.ops.fusedlstm.lstm_layer(*arguments))):
            assert torch.equal(a, b)


def test_weights_at_odd_addresses(plan):
    """A parameter may be a view into a flat buffer: no vector load may count on its address."""
    skip_if_impossible(plan, torch.bfloat16, 48)
    arguments = on_gpu(layer_arguments(torch.bfloat16, 48))
    expected = flat(torch.ops.fusedlstm.lstm_layer(*arguments))
    shifted = mapped(lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape), arguments)
    for a, b in zip(expected, flat(torch.ops.fusedlstm.lstm_layer(*shifted))):
        torch.testing.assert_close(a, b, rtol=2**-6, atol=2**-6)  # cuBLAS may choose a kernel by the address


def test_other_stream(plan):
    skip_if_impossible(plan, torch.float32, 50)
    arguments = on_gpu(layer_arguments(torch.float32, 50))
    expected = flat(torch.ops.fusedlstm.lstm_layer(*arguments))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = flat(torch.ops.fusedlstm.lstm_layer(*arguments))
    stream.synchronize()
    for a, b in zip(out, expected):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", ["plain", "packed", "lengths", "resets"])
def test_cuda_graph(plan, options):
    skip_if_impossible(plan, torch.float32, 50)
    arguments = on_gpu(layer_arguments(torch.float32, 50, **OPTIONS[options]))
    # Also the warm-up that loads the kernels.
    expected = [t.clone() for t in flat(torch.ops.fusedlstm.lstm_layer_inference(*arguments))]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flat(torch.ops.fusedlstm.lstm_layer_inference(*arguments))
    for _ in range(2):
        graph.replay()
    for a, b in zip(out, expected):
        assert torch.equal(a, b)


@pytest.mark.parametrize("allow_tf32", [False, True])
def test_only_the_switch_of_nn_lstm_decides_on_tf32(plan, allow_tf32):
    """The products outside the recurrence too: torch.matmul's switch changes no bit."""
    skip_if_impossible(plan, torch.float32, 50)
    arguments = layer_arguments(torch.float32, 50)._replace(allow_tf32=allow_tf32)
    runs = []
    for matmul in (False, True):
        with tf32(lstm=False, matmul=matmul):
            inputs = differentiable(on_gpu(arguments))
            out = flat(torch.ops.fusedlstm.lstm_layer(*inputs))
            runs.append(
                [*out, *torch.autograd.grad(out[0].sum(), [inputs.input, *inputs.weight_ih, *inputs.weight_hh])]
            )
    for a, b in zip(*runs):
        assert torch.equal(a, b)


def test_one_step_and_many():
    """Against nn.LSTM on the CPU; of many steps only the last few reach the state, so those are enough."""
    for T in (1, 70_000):
        lstm, right = fusedlstm.FusedLSTM(4, 8).cuda(), torch.nn.LSTM(4, 8).double()
        right.load_state_dict(lstm.state_dict())
        x = torch.randn(T, 2, 4)
        with torch.no_grad():
            found, expected = lstm(x.cuda())[1][0], right(x[-1000:].double())[1][0]
        assert_near(found, expected, tolerance(torch.float32, 12, T, device_type="cuda"), f"T={T}")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_second_device_and_mixed_devices():
    arguments = layer_arguments(torch.float32, 33)
    first, second = (mapped(lambda t, d=d: t.to(f"cuda:{d}"), arguments) for d in range(2))
    for a, b in zip(*(flat(torch.ops.fusedlstm.lstm_layer(*each)) for each in (first, second))):
        assert b.device.index == 1
        assert torch.equal(a.cpu(), b.cpu())
    second.initial[0] = second.initial[0].to("cuda:0")
    with pytest.raises(RuntimeError, match="device"):
        torch.ops.fusedlstm.lstm_layer(*second)


def test_forced_plan_that_does_not_fit(monkeypatch):
    monkeypatch.setenv("FUSEDLSTM_PLAN", "local")
    with pytest.raises(RuntimeError, match="does not fit"):
        torch.ops.fusedlstm.lstm_layer_inference(*on_gpu(layer_arguments(torch.float32, 700)))
