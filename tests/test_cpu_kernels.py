"""The CPU kernels of every instruction set and plan of this machine, each forced by name."""

import json
from functools import cache

import pytest
import torch
from forked_python import run_python
from instruction_sets import FLOAT_ISAS, ISAS
from layers import draw
from oracle import ReferenceLSTM, check, make_inputs, run
from tolerance import assert_near, tolerance
from torch import nn

import fusedlstm
from benchmarks.cases import Case

cpu_info = torch.ops.fusedlstm._cpu_info
cpu_force = torch.ops.fusedlstm._cpu_force

PLANS = ["direct:rows", "direct:units", "packed:rows", "packed:units"]
# Plans do not depend on the instruction set: the two that differ most for all sets, the others for one.
KERNELS = [(isa, plan) for isa in FLOAT_ISAS for plan in PLANS if isa == FLOAT_ISAS[-1] or plan in PLANS[::3]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Below, on and above the borders of tiles (4, 6 or 8 rows; 16 and 32), vectors (2 to 16 units), panels (8 to 64
# columns) and, in the last one, of the stretches (32, 128), of the blocks of depth (1024 gate rows) and of rows (256).
SHAPES = [
    Case("units-1", 2, 1, 1, 1),
    Case("rows-7", 3, 7, 9, 33, bidirectional=True),
    Case("rows-13", 4, 13, 5, 20, proj_size=3),
    Case("columns-65", 5, 6, 65, 16, bias=False),
    Case("rows-40", 3, 40, 64, 32),
    Case("deep", 9, 33, 3, 258),
]


@pytest.fixture
def forced():
    """Force kernels for one test; two threads, so that plans with a team have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield cpu_force
    cpu_force("", "")
    torch.set_num_threads(threads)


@cache
def inputs_and_expected(case, dtype):
    """The same for every kernel."""
    inputs = make_inputs(case, dtype)
    return inputs, {name: value.detach() for name, value in run(ReferenceLSTM, case, inputs).items()}


@pytest.mark.parametrize(
    "case, isa, plan",
    [(case, *kernel) for case in SHAPES for kernel in KERNELS]
    + [(SHAPES[1], isa, "") for isa in ISAS if isa not in FLOAT_ISAS],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_kernel_is_near_the_reference(case, isa, plan, forced):
    """Every dtype of an instruction set meets every shape, under one of two plans."""
    first = SHAPES.index(case) + PLANS.index(plan or PLANS[0])
    for dtype in DTYPES[first % 2 :: 2] if plan else DTYPES:
        inputs, expected = inputs_and_expected(case, dtype)
        forced(isa, plan)
        check(run(fusedlstm.FusedLSTM, case, inputs.to("cpu", dtype)), expected, case, dtype)
        forced("", "")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("option", ["lengths", "reset"])
def test_row_states_under_every_plan(option, plan, forced):
    case = Case("rows", 6, 7, 4, 18, bidirectional=option == "lengths")
    lengths = torch.tensor([6, 0, 3, 1, 6, 5, 2])
    options = {"lengths": lengths} if option == "lengths" else {"reset": torch.rand(6, 7) < 0.3}
    inputs = make_inputs(case, torch.float64)
    expected = run(ReferenceLSTM, case, inputs, **options)
    forced("", plan)
    check(run(fusedlstm.FusedLSTM, case, inputs, **options), expected, case, torch.float64)


@pytest.mark.parametrize("isa", FLOAT_ISAS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("hidden", [37, 200])
def test_a_sequence_does_not_depend_on_the_others_of_its_batch(hidden, kind, isa, forced):
    # Tiles of two rows or more sum in the same order; a batch of two or more has no others. Shorter sequences of a
    # small batch would be multiplied without packing.
    forced(isa, "")
    torch.manual_seed(0)
    layer = getattr(fusedlstm, f"Fused{kind}")(9, hidden)
    x = torch.randn(9, 33, 9)
    everything = layer(x)[0]
    for batch in (2, 3, 4, 5, 7, 8, 13):
        assert torch.equal(layer(x[:, :batch])[0], everything[:, :batch]), batch


@pytest.mark.parametrize("plan", PLANS)
def test_bitwise_equal_from_run_to_run(plan, forced):
    case = Case("team", 12, 24, 16, 96)
    inputs = make_inputs(case, torch.float32).to("cpu", torch.float32)
    forced("", plan)
    first, second = (run(fusedlstm.FusedLSTM, case, inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads, forced):
    """More threads than cores or than work, and the pool's number of threads left as it was."""
    case = Case("team", 5, 9, 6, 40, bidirectional=True)
    inputs = make_inputs(case, torch.float64)
    expected = run(ReferenceLSTM, case, inputs)
    torch.set_num_threads(threads)
    for plan in PLANS:
        forced("", plan)
        check(run(fusedlstm.FusedLSTM, case, inputs), expected, case, torch.float64)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1, 3])
def test_error_is_at_most_that_of_torch(dtype, scale):
    """Root mean square error of a thousand steps against float64, ours and nn.LSTM's on equal inputs."""
    T, B, H = 1000, 4, 64
    exact = nn.LSTM(H, H)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_((parameter * scale).to(dtype))
    x = torch.randn(T, B, H).to(dtype)
    modules = [make(H, H).to(dtype) for make in (fusedlstm.FusedLSTM, nn.LSTM)]
    exact = exact.double()
    errors = []
    with torch.no_grad():
        expected = exact(x.double())[0]
        for module in modules:
            module.load_state_dict(exact.state_dict())
            errors.append((module(x)[0].double() - expected).pow(2).mean().sqrt().item())
    ours, torchs = errors
    assert ours <= torchs, f"ours {ours:.3e}, nn.LSTM's {torchs:.3e}"


@pytest.mark.parametrize("isa", FLOAT_ISAS)
def test_sums_over_rows_are_as_exact_as_sums_in_parts(isa, forced):
    """Weight gradients, whatever nn.LSTM's error is on this machine.

    One rounding of a float32 sum costs 0.4 * 2^-24 of it on average (root mean square, sizes spread evenly over a power
    of two). In n terms of random signs cut into sqrt(n) running sums these add up to n^(1/4) times that.
    """
    rows, features, hidden = 1200, 64, 64
    module = fusedlstm.FusedLSTM(features, hidden)
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)  # i = o = 1/2, g = 0: the gradient of g is exactly a quarter of the output's
    x, h_0, d_output = (torch.randn(1, rows, n) for n in (features, hidden, hidden))
    forced(isa, "")
    module(x, (h_0, torch.zeros(1, rows, hidden)))[0].backward(d_output)
    for parameter, operand in ((module.weight_ih_l0, x), (module.weight_hh_l0, h_0)):
        exact = d_output[0].double().T @ operand[0].double() / 4
        error = parameter.grad[2 * hidden : 3 * hidden] - exact
        assert error.square().mean() <= (0.4 * 2**-24) ** 2 * rows**0.5 * exact.square().mean()


@pytest.mark.parametrize("isa", FLOAT_ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations(isa, dtype, forced):
    """sigmoid and tanh over all magnitudes and NaN, through layers that compute nothing else."""
    values = torch.cat([torch.logspace(-6, 4, 64), torch.tensor([0.0, 88.0, 9.0])])
    x = torch.cat([values, -values, torch.tensor([float("nan")])]).to(dtype)
    B = len(x)
    gate = torch.zeros(4, 1, dtype=dtype)
    gate[1] = 1  # f = sigmoid(x); i, g, o are those of 0, so that c = sigmoid(x) c_0
    forced(isa, "packed")
    arguments = [[gate], [torch.zeros(4, 1, dtype=dtype)], [], [], [], None, None, None, [], False]
    h_0, c_0 = torch.zeros(1, B, 1, dtype=dtype), torch.ones(1, B, 1, dtype=dtype)
    _, (_, c_n) = torch.ops.fusedlstm.lstm_layer_inference(x.view(1, B, 1), [h_0, c_0], *arguments)
    allowed = tolerance(dtype, 2, 1)
    assert_near(c_n.flatten(), x.double().sigmoid(), allowed, f"{isa} sigmoid")
    gate[1], gate[2] = 0, 1  # g = tanh(x): c = g / 2 from c_0 = 0
    _, (_, c_n) = torch.ops.fusedlstm.lstm_layer_inference(x.view(1, B, 1), [h_0, h_0], *arguments)
    assert_near(c_n.flatten(), x.double().tanh() / 2, allowed, f"{isa} tanh")


def test_unknown_names_are_errors():
    with pytest.raises(RuntimeError):
        cpu_force("avx1024", "")
    with pytest.raises(RuntimeError):
        cpu_force("", "sideways")
    assert json.loads(cpu_info())["plan"] == "automatic"


def test_environment_names_the_instruction_set():
    code = "import torch, fusedlstm; print(torch.ops.fusedlstm._cpu_info())"
    info = json.loads(run_python(code, FUSEDLSTM_CPU_ISA="baseline").stdout)
    assert info["isa"] == "baseline" and "FUSEDLSTM_CPU_ISA" in info["reason"]


WRONG = {  # name of the argument and what stands there
    "features": ("input", torch.zeros(3, 2, 5)),
    "dtype": ("input", torch.zeros(3, 2, 4, dtype=torch.float64)),
    "dimensions": ("input", torch.zeros(3, 2)),
    "h_0-batch": ("initial", [torch.zeros(1, 3, 6), torch.zeros(1, 2, 6)]),
    "c_0-hidden": ("initial", [torch.zeros(1, 2, 6), torch.zeros(1, 2, 7)]),
    "one-state": ("initial", [torch.zeros(1, 2, 6)]),
    "no-directions": ("weight_ih", []),
    "weight_hh-columns": ("weight_hh", [torch.zeros(24, 5)]),
    "bias-rows": ("bias_ih", [torch.zeros(23)]),
    "weight_hr-columns": ("weight_hr", [torch.zeros(2, 5)]),
    "packed-3d": ("batch_sizes", torch.tensor([2, 1])),
    "length-beyond": ("lengths", torch.tensor([1, 4])),
    "length-negative": ("lengths", torch.tensor([1, -1])),
    "reset-batch": ("reset", torch.zeros(3, 3, dtype=torch.bool)),
    "reset_h-hidden": ("reset_state", [torch.zeros(1, 2, 5), torch.zeros(1, 2, 6)]),
}


@pytest.mark.parametrize("name, value", WRONG.values(), ids=WRONG)
def test_operator_refuses_wrong_tensors(name, value):
    """The operator called directly: an exception and not a read out of bounds."""
    layer = draw(Case("small", 3, 2, 4, 6), dtype=torch.float32).layer
    torch.ops.fusedlstm.lstm_layer(*layer)
    with pytest.raises(RuntimeError):
        torch.ops.fusedlstm.lstm_layer(*layer._replace(**{name: value}))
