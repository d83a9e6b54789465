"""torch.func: ensembles and batches by vmap; per-sample gradients, forward mode, Hessians."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from fusedlstm import FusedGRU, FusedGRUCell, FusedLSTM, FusedLSTMCell, functional, reference
from fusedlstm.cells import LSTM

# PyTorch's own decompositions for forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def module(device, dtype):
    return FusedLSTM(3, 4, 2, bidirectional=True, device=device, dtype=dtype)


@pytest.fixture
def x(device, dtype):
    return torch.randn(5, 2, 3, device=device, dtype=dtype)


def test_vmap_over_inputs(module, x):
    xs = torch.stack([x, 2 * x, -x])
    output, (h_n, c_n) = vmap(module)(xs)
    for k, one in enumerate(xs):
        expected, (h, c) = module(one)
        for a, e in ((output[k], expected), (h_n[k], h), (c_n[k], c)):
            torch.testing.assert_close(a, e)


def test_vmap_over_lengths_and_resets(x):
    module = FusedLSTM(3, 4, device=x.device, dtype=x.dtype)
    lengths = torch.tensor([[5, 1], [2, 3]], device=x.device)
    outputs = vmap(lambda n: module(x, lengths=n)[0])(lengths)
    for output, n in zip(outputs, lengths):
        torch.testing.assert_close(output, module(x, lengths=n)[0])
    resets = torch.rand(3, 5, 2, device=x.device) < 0.5
    outputs = vmap(lambda r: module(x, reset=r)[0])(resets)
    for output, r in zip(outputs, resets):
        torch.testing.assert_close(output, module(x, reset=r)[0])


def test_ensemble(module, x):
    """vmap over stacked weights."""
    modules = [copy.deepcopy(module) for _ in range(3)]
    for m in modules:
        m.reset_parameters()
    parameters, buffers = stack_module_state(modules)

    def call(parameters, buffers):
        return functional_call(module, (parameters, buffers), (x,))[0]

    outputs = vmap(call)(parameters, buffers)
    for output, m in zip(outputs, modules):
        torch.testing.assert_close(output, m(x)[0])


def test_training_an_ensemble(module, x):
    """Gradients outside vmap: members with their own weights, and with their own states only."""
    modules = [copy.deepcopy(module) for _ in range(3)]
    for m in modules:
        m.reset_parameters()
    parameters, buffers = stack_module_state(modules)
    vmap(lambda p, b: functional_call(module, (p, b), (x,))[0])(parameters, buffers).sin().sum().backward()
    for k, m in enumerate(modules):
        m(x)[0].sin().sum().backward()
        for name, parameter in m.named_parameters():
            torch.testing.assert_close(parameters[name].grad[k], parameter.grad)

    states = torch.randn(4, 3, 2, 4, device=x.device, dtype=x.dtype, requires_grad=True)
    vmap(lambda h: module(x, (h, h))[0], in_dims=1)(states).sin().sum().backward()
    found, states.grad = states.grad, None
    sum(module(x, (h, h))[0].sin().sum() for h in states.unbind(1)).backward()
    torch.testing.assert_close(found, states.grad)


def test_vmap_of_vmap_and_of_all_states(module, x):
    xs = torch.stack([x, 2 * x, -x, x + 1]).unflatten(0, (2, 2))
    *_, cells, gates = vmap(vmap(lambda x: module(x, return_cell_states=True, return_gates=True)))(xs)
    *_, expected_cells, expected_gates = module(xs[1, 0], return_cell_states=True, return_gates=True)
    torch.testing.assert_close(cells[1, 0], expected_cells)
    torch.testing.assert_close(gates[1, 0], expected_gates)


@pytest.fixture
def no_reference(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the reference ran")

    monkeypatch.setattr(reference, "_direction", refuse)


def test_vmap_runs_kernels(module, x, no_reference):
    vmap(module)(torch.stack([x, x]))
    with torch.no_grad():
        vmap(module)(torch.stack([x, x]))


def _loss(module, x):
    return lambda parameters: functional_call(module, parameters, (x,))[0].sin().sum()


@pytest.mark.parametrize(
    "transform",
    [
        lambda m, x: vjp(lambda x: m(x)[0], x)[1](x.new_ones(5, 2, 8)),
        lambda m, x: jacrev(lambda x: m(x)[0])(x),
        lambda m, x: grad(_loss(m, x))(dict(m.named_parameters())),
        lambda m, x: vmap(grad(lambda x: m(x)[0].sin().sum()))(torch.stack([x, -x])),
        lambda m, x: vmap(lambda p: grad(_loss(m, x))(p))(stack_module_state([m, m])[0]),
        lambda m, x: torch.autograd.functional.jacobian(lambda x: m(x)[0], x, vectorize=True),
    ],
    ids=["vjp", "jacrev", "grad", "vmap of grad", "vmap of grad for weights", "vectorized jacobian"],
)
def test_first_order_by_kernels(transform, module, x, no_reference):
    """What comes out is shown by the other tests."""
    transform(module, x)


@pytest.mark.parametrize("kind", ["input", "everything"])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "proj_size": 2, "num_layers": 2}], ids=["plain", "more"]
)
def test_batched_gradients(options, kind, device, no_reference):
    """is_grads_batched and jacobian(vectorize=True), against one gradient after another."""
    module = FusedLSTM(3, 4, **options, device=device, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, device=device, requires_grad=True)
    lengths = torch.tensor([5, 3], device=device)
    for more in ({}, {"lengths": lengths}):
        output, (h_n, c_n), cells = module(x, **more, return_cell_states=True)
        wanted = [x] if kind == "input" else [x, *module.parameters()]
        results = output, h_n, c_n, cells
        incoming = [torch.randn(4, *result.shape, dtype=torch.float64, device=device) for result in results]
        found = torch.autograd.grad(results, wanted, incoming, is_grads_batched=True, retain_graph=True)
        for k in range(4):
            expected = torch.autograd.grad(results, wanted, [each[k] for each in incoming], retain_graph=True)
            for a, e in zip(found, expected):
                torch.testing.assert_close(a[k], e, rtol=1e-12, atol=1e-12)


class _InAnotherThread(torch.autograd.Function):
    """function(x), through which gradients go in another thread: as on a GPU, where it knows of no transform."""

    @staticmethod
    def forward(ctx, x, function):
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.result = function(ctx.x)
        return ctx.result.detach()

    @staticmethod
    def backward(ctx, gradient):
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(torch.autograd.grad, ctx.result, ctx.x, gradient, retain_graph=True).result()
        return *found, None


RUNS = {
    "layer": lambda x: FusedLSTM(3, 4, dtype=x.dtype)(x)[0],
    "stack": lambda x: FusedLSTM(3, 4, 2, dtype=x.dtype)(x)[0],
    "layer with all states": lambda x: FusedLSTM(3, 4, dtype=x.dtype)(x, return_cell_states=True)[0],
    "layer with variants": lambda x: FusedLSTM(3, 4, dtype=x.dtype, layer_norm=True)(x)[0],
    "cell": lambda x: FusedLSTMCell(3, 4, dtype=x.dtype)(x[0])[0],
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_batched_gradients_in_another_thread(run):
    def function(x):
        torch.manual_seed(0)
        return run(x)

    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    result = _InAnotherThread.apply(x, function)
    incoming = torch.randn(3, *result.shape, dtype=x.dtype)
    (found,) = torch.autograd.grad(result, x, incoming, is_grads_batched=True)
    for k in range(3):
        (expected,) = torch.autograd.grad(function(x), x, incoming[k])
        torch.testing.assert_close(found[k], expected, rtol=1e-12, atol=1e-12)


def test_jacobians_agree(module, x):
    def call(x):
        return module(x)[0]

    expected = torch.autograd.functional.jacobian(call, x)
    torch.testing.assert_close(torch.autograd.functional.jacobian(call, x, vectorize=True), expected)
    torch.testing.assert_close(jacrev(call)(x), expected)


def test_batched_gradients_inside_one_another(device):
    """One of the older vmaps inside another: by the reference."""
    module = FusedLSTM(2, 3, device=device, dtype=torch.float64)
    x = torch.randn(3, 1, 2, dtype=torch.float64, device=device)

    def loss(x):
        return module(x)[0].sin().sum()

    hessians = [torch.autograd.functional.hessian(loss, x, vectorize=each) for each in (True, False)]
    torch.testing.assert_close(*hessians, rtol=1e-12, atol=1e-12)


def test_per_sample_gradients(module, x):
    parameters = {k: p.detach() for k, p in module.named_parameters()}

    def loss(parameters, sample):
        return functional_call(module, parameters, (sample.unsqueeze(1),))[0].square().sum()

    gradients = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
    for sample in range(2):
        module.zero_grad()
        module(x[:, sample : sample + 1])[0].square().sum().backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(gradients[name][sample], parameter.grad, rtol=1e-4, atol=1e-5)


def test_reverse_mode(module, x):
    output, pullback = vjp(lambda x: module(x)[0], x)
    (gradient,) = pullback(torch.ones_like(output))
    leaf = x.clone().requires_grad_()
    module(leaf)[0].sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)
    jacobian = jacrev(lambda x: module(x)[0].sum())(x)
    torch.testing.assert_close(jacobian, leaf.grad)


def test_forward_mode(module, x):
    direction = torch.randn_like(x)
    _, tangent = jvp(lambda x: module(x)[0], (x,), (direction,))
    jacobian = jacfwd(lambda x: module(x)[0].sum())(x)
    torch.testing.assert_close((jacobian * direction).sum(), tangent.sum(), rtol=1e-4, atol=1e-5)
    with forward_ad.dual_level():
        output = module(forward_ad.make_dual(x, direction))[0]
        torch.testing.assert_close(forward_ad.unpack_dual(output).tangent, tangent)


def _by_dual_numbers(function, v):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(v, v.cos()))).tangent


TRANSFORMS = {
    "jvp": lambda f, v: jvp(f, (v,), (v.cos(),))[1],
    "jacfwd": lambda f, v: jacfwd(f)(v),
    "jacrev": lambda f, v: jacrev(f)(v),
    "grad": lambda f, v: grad(lambda v: f(v).sin().sum())(v),
    "vmap of jvp": lambda f, v: vmap(lambda one: jvp(f, (one,), (one.cos(),))[1])(torch.stack([v, -v])),
    "dual numbers": _by_dual_numbers,
}
KINDS = {
    "plain": ({}, lambda x: {}),
    "bidirectional projection": ({"bidirectional": True, "proj_size": 2, "num_layers": 2}, lambda x: {}),
    "lengths": ({}, lambda x: {"lengths": torch.tensor([len(x), 2], device=x.device)}),
    "reset": ({}, lambda x: {"reset": torch.eye(len(x), 2).bool().to(x.device)}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_gradients_of_a_call_outside(transform, kind, device):
    """What the transform sees are gradients of first and second order of what was computed before it."""
    options, more = KINDS[kind]
    module = FusedLSTM(3, 4, **options, device=device, dtype=torch.float64)
    x = torch.randn(3, 2, 3, device=device, dtype=torch.float64, requires_grad=True)

    def gradients(output):
        def gradient(of):
            return lambda v: torch.autograd.grad(of, x, v, retain_graph=True, create_graph=True)[0]

        incoming = output.detach().cos()
        first = gradient(output.sin())(incoming)
        return transform(gradient(output), incoming), transform(gradient(first), x.detach().cos())

    actual, expected = gradients(module(x, **more(x))[0]), gradients(_by_reference(module, x, **more(x)))
    for a, e in zip(actual, expected):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, e, rtol=0, atol=1e-12)


def _by_reference(module, x, lengths=None, reset=None):
    """The module's output by plain PyTorch, whose derivatives are PyTorch's."""
    D, H, R = 1 + module.bidirectional, module.hidden_size, module.proj_size or module.hidden_size
    each = len(module._flat_weights) // (module.num_layers * D)
    for first in range(0, len(module._flat_weights), each * D):
        kinds = [list(kind) for kind in zip(*(module._flat_weights[first + d * each :][:each] for d in range(D)))]
        kinds += [[]] * (5 - each)
        state = [x.new_zeros(D, x.size(1), R), x.new_zeros(D, x.size(1), H)]
        x = reference.layer(LSTM, x, state, *kinds, None, lengths, reset)[0]
    return x


NESTED = {
    "grad of grad": lambda f, x: grad(lambda x: grad(f)(x).sin().sum())(x),
    "jacrev of grad": lambda f, x: jacrev(grad(f))(x),
    "vmap of grad of grad": lambda f, x: vmap(grad(lambda x: grad(f)(x).sin().sum()))(torch.stack([x, -x])),
    "grad of autograd": lambda f, x: grad(lambda x: torch.autograd.grad(f(x), x, create_graph=True)[0].sin().sum())(x),
}


@pytest.mark.parametrize("kind", ["plain", "lengths", "reset"])
@pytest.mark.parametrize("transform", NESTED.values(), ids=NESTED)
def test_second_order_inside_transforms(transform, kind, device):
    options, more = KINDS[kind]
    module = FusedLSTM(2, 3, **options, device=device, dtype=torch.float64)
    x = torch.randn(5, 2, 2, dtype=torch.float64, device=device)
    actual = transform(lambda x: module(x, **more(x))[0].sin().sum(), x)
    expected = transform(lambda x: _by_reference(module, x, **more(x)).sin().sum(), x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_hessian(device):
    """Against nn.LSTM on the CPU: on CUDA it has neither a second derivative nor forward mode."""
    fused, plain = FusedLSTM(2, 3, device=device, dtype=torch.float64), nn.LSTM(2, 3, dtype=torch.float64)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(3, 1, 2, dtype=torch.float64)
    actual, expected = (hessian(lambda x, m=m: m(x)[0].sum())(x.to(m.weight_ih_l0.device)) for m in (fused, plain))
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-12)


def test_functional_call_restores(module, x):
    expected = module(x)[0]
    zeros = {k: torch.zeros_like(p) for k, p in module.named_parameters()}
    assert (functional_call(module, zeros, (x,))[0] == 0).all()
    assert torch.equal(module(x)[0], expected)


def test_functional_under_vmap_of_weights(device):
    weights = [torch.randn(4, *s, device=device) for s in [(8, 3), (8, 2), (8,), (8,)]]
    x = torch.randn(5, 1, 3, device=device)
    outputs = vmap(lambda *w: functional.lstm(x, None, [w])[0])(*weights)
    for k, output in enumerate(outputs):
        expected = functional.lstm(x, None, [[w[k] for w in weights]])[0]
        torch.testing.assert_close(output, expected)


@pytest.mark.slow
def test_compiled_autograd():
    """A backward pass of layers that ran eagerly becomes one graph: of stacks, steps, and layers with variants."""
    torch._dynamo.reset()
    lstm, gru, cell = FusedLSTM(3, 4, 2), FusedGRU(4, 4, layer_norm=True), FusedGRUCell(4, 4)
    parameters = [*lstm.parameters(), *gru.parameters(), *cell.parameters()]
    x = torch.randn(5, 2, 3, requires_grad=True)

    def loss():
        return cell(gru(lstm(x)[0])[0][-1]).square().sum()

    expected = torch.autograd.grad(loss(), [x, *parameters])
    whole = {"compiled_autograd": True, "compiled_autograd_kwargs_override": {"fullgraph": True}}
    with torch._dynamo.config.patch(whole), warnings.catch_warnings():
        warnings.filterwarnings("error", "Dynamo detected")  # what it cannot look into
        torch.compile(lambda loss: loss.backward(), backend="eager")(loss())
    torch.testing.assert_close([tensor.grad for tensor in (x, *parameters)], [*expected])
