"""torch.func.vmap over the weights of modules: an ensemble (test_ensembles.py), in one operator call per layer."""

from collections import Counter

import pytest
import torch
from tolerance import between_calls
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fusedlstm import FusedLSTM, functional, ops


class Calls(TorchDispatchMode):
    """Counts calls of the layer operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fusedlstm":
            self.counts[function.name().removeprefix("fusedlstm::")] += 1
        return function(*args, **(kwargs or {}))


class Ensemble:
    """Modules, their stacked parameters, and calls of all: by vmap, and one by one."""

    def __init__(self, M, device, dtype=torch.float64, **options):
        self.modules = [FusedLSTM(3, 4, 2, device=device, dtype=dtype, **options) for _ in range(M)]
        self.parameters, _ = stack_module_state(self.modules)

    def vmap(self, function, in_dims=(), out_dims=0, **options):
        """function(module, *arguments), with `in_dims` for the arguments after the module."""

        def call(parameters, *arguments):
            return function(lambda *a, **k: functional_call(self.modules[0], parameters, a, k), *arguments)

        return lambda *arguments: vmap(call, (0, *in_dims), out_dims, **options)(self.parameters, *arguments)

    def gradients(self):
        """Those of vmap and those of the modules, parameter by parameter; both are cleared."""
        for name, stacked in self.parameters.items():
            single = torch.stack([dict(m.named_parameters())[name].grad for m in self.modules])
            found, stacked.grad = stacked.grad, None
            for m in self.modules:
                dict(m.named_parameters())[name].grad = None
            yield found, single


def assert_same(actual, expected):
    for a, e in zip(torch.utils._pytree.tree_leaves(actual), torch.utils._pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-12)


@pytest.fixture
def x(device):
    return torch.randn(5, 2, 3, device=device, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 2}, {"bias": False}], ids=str)
@pytest.mark.parametrize("M", [1, 3])
def test_training_makes_one_call_per_layer(M, options, x):
    ensemble = Ensemble(M, x.device, **options)
    x.requires_grad_()
    with Calls() as calls:
        found = ensemble.vmap(lambda module: module(x))()
        sum(r.sin().sum() for r in torch.utils._pytree.tree_leaves(found)).backward()
    assert calls.counts == {"lstm_layer": 2, "lstm_layer_backward": 2}
    d_x, x.grad = x.grad, None
    for m, module in enumerate(ensemble.modules):
        expected = module(x)
        assert_same([r[m] for r in torch.utils._pytree.tree_leaves(found)], torch.utils._pytree.tree_leaves(expected))
        sum(r.sin().sum() for r in torch.utils._pytree.tree_leaves(expected)).backward()
    torch.testing.assert_close(d_x, x.grad, rtol=0, atol=1e-12)
    assert_same(*zip(*ensemble.gradients()))


def test_inference_makes_one_call_per_layer(x):
    ensemble = Ensemble(3, x.device, torch.float32)
    x = x.float()
    with torch.no_grad(), Calls() as calls:
        found = ensemble.vmap(lambda module: module(x)[0])()
        assert calls.counts == {"lstm_layer_inference": 2}
        for output, module in zip(found, ensemble.modules):
            torch.testing.assert_close(output, module(x)[0], rtol=0, atol=between_calls(x.device, x.dtype))


def test_inputs_and_states_of_each_member(x):
    """In any dimension, some common to all; results in any dimension too."""
    ensemble = Ensemble(3, x.device)
    xs = torch.stack([x, 2 * x, -x], 1).requires_grad_()
    hs = torch.randn(2, 2, 4, 3, device=x.device, dtype=x.dtype, requires_grad=True)
    c = torch.randn(2, 2, 4, device=x.device, dtype=x.dtype, requires_grad=True)
    call = ensemble.vmap(lambda module, x, h: module(x, (h, c)), in_dims=(1, 3), out_dims=(2, (-1, 1)))
    output, (h_n, c_n) = call(xs, hs)
    expected_sum = 0
    for m, module in enumerate(ensemble.modules):
        expected = module(xs[:, m], (hs[..., m], c))
        assert_same((output[:, :, m], (h_n[..., m], c_n[:, m])), expected)
        expected_sum += expected[0].sin().sum() + (expected[1][0] * expected[1][1]).sum()
    found_sum = output.sin().sum() + (h_n.movedim(-1, 1) * c_n).sum()
    leaves = [xs, hs, c]
    assert_same(torch.autograd.grad(found_sum, leaves), torch.autograd.grad(expected_sum, leaves))


def test_some_weights_are_common(x):
    common = [torch.randn(16, 3, device=x.device, dtype=x.dtype), *torch.randn(2, 16, device=x.device, dtype=x.dtype)]
    w_hh = torch.randn(16, 3, 4, device=x.device, dtype=x.dtype)
    leaves = [w_hh, *(tensor.requires_grad_() for tensor in common)]
    w_hh.requires_grad_()

    def call(w):
        return functional.lstm(x, None, [[common[0], w, *common[1:]]])[0]

    found = vmap(call, in_dims=1)(w_hh)
    expected = torch.stack([call(w) for w in w_hh.unbind(1)])
    assert_same(found, expected)
    gradients = [torch.autograd.grad(outputs.sin().sum(), leaves) for outputs in (found, expected)]
    assert_same(*gradients)


@pytest.mark.parametrize("each", [False, True])
def test_lengths_and_resets(each, x):
    lengths, resets = (
        torch.tensor([[5, 1], [0, 3], [2, 4]], device=x.device),
        torch.rand(3, 5, 2, device=x.device) < 0.4,
    )
    state = torch.randn(2, 2, 4, device=x.device, dtype=x.dtype)
    dim = 0 if each else None
    options = {
        "lengths": (Ensemble(3, x.device, bidirectional=True), lengths),
        "reset": (Ensemble(3, x.device), resets),
    }
    for name, (ensemble, of_members) in options.items():
        more = {"reset_state": (state, state)} if name == "reset" else {}

        def call(module, rows, name=name, more=more):
            return module(x, return_cell_states=True, return_gates=True, **{name: rows}, **more)

        found = ensemble.vmap(call, in_dims=(dim,))(of_members if each else of_members[1])
        for m, module in enumerate(ensemble.modules):
            expected = call(module, of_members[m if each else 1])
            assert_same(
                [r[m] for r in torch.utils._pytree.tree_leaves(found)], torch.utils._pytree.tree_leaves(expected)
            )


def test_packed_sequences(x):
    ensemble = Ensemble(3, x.device, bidirectional=True)
    packed = nn.utils.rnn.pack_sequence([x[:2, 0], x[:5, 1], x[:3, 0]], enforce_sorted=False)
    with Calls() as calls:
        data, h_n = ensemble.vmap(lambda module: (lambda r: (r[0].data, r[1][0]))(module(packed)))()
        (data.sin().sum() + h_n.sum()).backward()
    assert calls.counts == {"lstm_layer": 2, "lstm_layer_backward": 2}
    for m, module in enumerate(ensemble.modules):
        output, (h, _) = module(packed)
        assert_same((data[m], h_n[m]), (output.data, h))
        (output.data.sin().sum() + h.sum()).backward()
    assert_same(*zip(*ensemble.gradients()))


@pytest.mark.parametrize("inner_is_ensemble", [True, False])
def test_vmap_of_vmap(inner_is_ensemble, x):
    """An ensemble on several inputs, either way around: one call per layer."""
    ensemble = Ensemble(3, x.device, bidirectional=True)
    xs = torch.stack([x, -x])
    with Calls() as calls:
        if inner_is_ensemble:
            found = vmap(lambda x: ensemble.vmap(lambda module: module(x)[0])())(xs).transpose(0, 1)
        else:
            found = ensemble.vmap(lambda module: vmap(lambda x: module(x)[0])(xs))()
        found.sin().sum().backward()
    assert calls.counts == {"lstm_layer": 2, "lstm_layer_backward": 2}
    for m, module in enumerate(ensemble.modules):
        for k in range(2):
            output = module(xs[k])[0]
            assert_same(found[m, k], output)
            output.sin().sum().backward()
    assert_same(*zip(*ensemble.gradients()))


def test_ensemble_of_ensembles(x):
    """Weights with two dimensions more: one call of all members; gradients of each, batched."""
    weights = [
        torch.randn(2, 3, *shape, dtype=x.dtype, device=x.device, requires_grad=True)
        for shape in [(16, 3), (16, 4), (16,), (16,)]
    ]
    call = vmap(vmap(lambda *w: functional.lstm(x, None, [w])[0]))
    with Calls() as calls:
        found = call(*weights)
    assert calls.counts == {"lstm_layer": 1}
    for i in range(2):
        for k in range(3):
            assert_same(found[i, k], functional.lstm(x, None, [[w[i, k] for w in weights]])[0])

    directions = torch.randn(5, *found.shape, dtype=x.dtype, device=x.device)
    with Calls() as calls:
        several = vmap(lambda d: torch.autograd.grad(found, weights, d, retain_graph=True))(directions)
    assert calls.counts == {"lstm_layer_backward": 1}
    for k, d in enumerate(directions):
        assert_same([g[k] for g in several], torch.autograd.grad(found, weights, d, retain_graph=True))
    batched = torch.autograd.grad(found, weights, directions, is_grads_batched=True)
    assert_same(batched, several)


def test_double_backward(x):
    ensemble = Ensemble(2, x.device, bidirectional=True)
    lengths = torch.tensor([5, 3], device=x.device)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu())
    x.requires_grad_()
    calls = [
        lambda module: module(x)[0],
        lambda module: module(x, lengths=lengths)[0],
        lambda module: module(nn.utils.rnn.PackedSequence(x.flatten(0, 1)[:8], packed.batch_sizes))[0].data,
    ]
    for call in calls:
        found = []
        for outputs in (ensemble.vmap(call)().unbind(), [call(module) for module in ensemble.modules]):
            (d_x,) = torch.autograd.grad(sum(o.sin().sum() for o in outputs), x, create_graph=True)
            d_x.square().sum().backward()
            found.append((d_x, x.grad))
            x.grad = None
        assert_same(*found)
        assert_same(*zip(*ensemble.gradients()))


def test_third_order(x):
    ensemble = Ensemble(2, x.device)
    x = x[:2].detach().requires_grad_()
    found = []
    for outputs in (ensemble.vmap(lambda m: m(x)[0])().unbind(), [m(x)[0] for m in ensemble.modules]):
        order = sum(o.sin().sum() for o in outputs)
        for _ in range(3):
            (d_x,) = torch.autograd.grad(order, x, create_graph=True)
            order = d_x.square().sum()
        found.append(d_x)
    assert_same(*found)


def test_dropout_is_as_vmap_says(x):
    module = FusedLSTM(3, 4, 2, dropout=0.5, device=x.device, dtype=x.dtype)
    ensemble = Ensemble(1, x.device)
    ensemble.modules, (ensemble.parameters, _) = [module] * 3, stack_module_state([module] * 3)

    def call(randomness):
        return ensemble.vmap(lambda m: m(x)[0], randomness=randomness)()

    with pytest.raises(RuntimeError, match="randomness"):
        call("error")
    same, different = call("same"), call("different")
    assert_same(same[0], same[1])
    assert not torch.allclose(different[0], different[1])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend, x):
    ensemble = Ensemble(3, x.device, bidirectional=True)
    call = ensemble.vmap(lambda module: module(x)[0])
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    found = torch.compile(call, backend=counter, fullgraph=True)()
    assert sum(node.target is ops.OPERATORS["lstm"].layer for node in counter.graphs[0].graph.nodes) == 2
    expected = call()
    assert_same(found, expected)
    parameters = list(ensemble.parameters.values())
    with Calls() as calls:
        d_parameters = torch.autograd.grad(found.sin().sum(), parameters)
    assert calls.counts == {"lstm_layer_backward": 2}
    assert_same(d_parameters, torch.autograd.grad(expected.sin().sum(), parameters))


def test_compiled_transforms_that_are_not_vmap_alone(x):
    """As without a compiler: the reference."""
    module = FusedLSTM(3, 4, device=x.device, dtype=x.dtype)

    def loss(x):
        return module(x.unsqueeze(1))[0].square().sum()

    torch._dynamo.reset()
    per_sample = vmap(torch.func.grad(loss), in_dims=1)
    assert_same(torch.compile(per_sample, backend="eager", fullgraph=True)(x), per_sample(x))
