"""Ensembles: layers of the same sizes with weights of their own, in one operator call; torch.func.vmap makes it."""

from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
import torch
from cases import Case
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fusedlstm import FusedLSTM, functional, ops, reference

SMALL = Case("small", 4, 3, 5, 7)
CASES = [
    SMALL,
    replace(SMALL, name="no-bias", bias=False),
    replace(SMALL, name="bidirectional", bidirectional=True),
    replace(SMALL, name="projection", proj_size=3, bidirectional=True),
    replace(SMALL, name="lengths", bidirectional=True, variable="lengths"),
    replace(SMALL, name="packed", bidirectional=True, variable="packed"),
    replace(SMALL, name="resets", resets=True),
    replace(SMALL, name="one-step", T=1, B=1),
    replace(SMALL, name="no-steps", T=0),
    replace(SMALL, name="no-rows", B=0),
    # Work enough for a team of threads.
    Case("team", 6, 9, 33, 66, proj_size=20, bidirectional=True),
    Case("team-resets", 8, 8, 64, 48, resets=True),
]


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw_ensemble(case, M, device, dtype):
    """The arguments of `lstm_layer` for M members, and gradients for output, h_n, c_n and cell_states."""

    def draw(*shape, scale=0.5):
        return (scale * torch.randn(M, *shape, dtype=torch.float64)).to(device, dtype)

    T, B, I, H, D, R = case.T, case.B, case.input_size, case.hidden_size, case.directions, case.output_size
    batch_sizes = lengths = reset = None
    rows, N = (T, B), T * B
    if case.variable == "packed":
        batch_sizes = torch.tensor([3, 3, 2, 1])
        rows, N = (9,), 9
    if case.variable == "lengths":
        lengths = torch.randint(0, T + 1, (M, B), device=device)
    if case.resets:
        reset = torch.rand(M, T, B, device=device) < 0.3
    weights = [[draw(4 * H, I), draw(4 * H, R), draw(4 * H), draw(4 * H), draw(R, H)] for _ in range(D)]
    kinds = [list(kind) for kind in zip(*weights)]
    if not case.bias:
        kinds[2] = kinds[3] = []
    if not case.proj_size:
        kinds[4] = []
    states = draw(D, B, R), draw(D, B, H)
    reset_state = (draw(D, B, R), draw(D, B, H)) if case.resets else (None, None)
    arguments = (draw(*rows, I), *states, *kinds, batch_sizes, lengths, reset, *reset_state, False)
    d_cell_states = draw(D, N, H).to(torch.promote_types(dtype, torch.float32))
    return arguments, (draw(*rows, D * R), draw(D, B, R), draw(D, B, H), d_cell_states)


def flat(results) -> list:
    return list(chain.from_iterable(r if isinstance(r, list) else [r] for r in results))


def run_operators(arguments, incoming, needs):
    """All results of the three operators."""
    results = ops.lstm_layer(*arguments)
    output, _, _, gates, cell_states = results
    gradients = ops.lstm_layer_backward(*incoming, *arguments, output, gates, cell_states, needs)
    return [*results, *ops.lstm_layer_inference(*arguments), *flat(gradients)]


def assert_members_are_calls(arguments, incoming, needs, rtol=0.0):
    M = arguments[1].size(0)
    found = run_operators(arguments, incoming, needs)
    for m in range(M):
        expected = run_operators(reference.member(arguments, m), reference.of_member(incoming, m), needs)
        for actual, one in zip(found, expected, strict=True):
            if one.shape == (0,):
                assert actual.shape == (0,)  # not needed
            else:
                assert actual.size(0) == M
                torch.testing.assert_close(actual[m], one, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("M", [1, 2, 3, 7])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_members_are_calls_bit_for_bit(case, M, dtype, device):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_members_are_calls(*draw_ensemble(case, M, device, dtype), [True] * 10)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("M", [1, 2, 3, 7])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_members_by_threads_and_by_teams(case, M, threads):
    """Sums over rows are added in another order by teams."""
    assert_members_are_calls(*draw_ensemble(case, M, "cpu", torch.float64), [True] * 10, rtol=1e-12)


@pytest.mark.parametrize("plan", ["direct:rows", "direct:units", "packed:rows", "packed:units"])
def test_every_plan(plan):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ops.fusedlstm._cpu_force("", plan)
    try:
        for case in (CASES[3], CASES[-1]):
            assert_members_are_calls(*draw_ensemble(case, 3, "cpu", torch.float64), [True] * 10, rtol=1e-12)
    finally:
        torch.ops.fusedlstm._cpu_force("", "")
        torch.set_num_threads(before)


@pytest.mark.parametrize("place", range(10))
def test_one_gradient_is_needed(place, device):
    needs = [k == place for k in range(10)]
    for case in (CASES[3], CASES[6]):
        assert_members_are_calls(*draw_ensemble(case, 3, device, torch.float64), needs)
        nothing = (None, None, None, None)
        arguments, _ = draw_ensemble(case, 2, device, torch.float64)
        assert_members_are_calls(arguments, nothing, needs)


def test_strides(device):
    """Members that share a tensor, in another dimension, and as parts of larger tensors."""

    def common(t):
        return t[:1].expand_as(t)

    def last(t):
        return t.movedim(0, -1).contiguous().movedim(-1, 0)

    def part(t):
        return torch.stack([t, t], 1)[:, 1]

    for case in (CASES[3], CASES[4], CASES[6]):
        arguments, incoming = draw_ensemble(case, 3, device, torch.float64)
        for change in (common, last, part):

            def changed(a, change=change):
                return list(map(changed, a)) if isinstance(a, (list, tuple)) else a if a is None else change(a)

            changed_incoming = changed(incoming)
            assert_members_are_calls([*changed(arguments[:-1]), False], changed_incoming, [True] * 10)


@pytest.mark.parametrize("case", CASES[:9], ids=lambda case: case.name)
def test_near_reference(case, device):
    arguments, incoming = draw_ensemble(case, 2, device, torch.float64)
    results, expected = ops.lstm_layer(*arguments), reference.lstm_layer(*arguments)
    for actual, e in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, e, rtol=0, atol=1e-12)
    more = (*incoming, *arguments, results[0], *results[3:], [True] * 10)
    found, expected = ops.lstm_layer_backward(*more), reference.lstm_layer_backward(*more)
    for actual, e in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(actual, e, rtol=0, atol=1e-12)


def _replaced(place, value):
    def change(arguments):
        arguments[place] = value(arguments[place])

    return change


@pytest.mark.parametrize(
    "change, text",
    [
        (_replaced(0, lambda x: x[None]), "input with 3 dimensions, or one more for an ensemble, got 5"),
        (_replaced(0, lambda x: x[0]), r"expected weight_hh of size \[4 \* hidden_size, ...\], got \[2, 28, 7\]"),
        (_replaced(0, lambda x: x[:1]), r"expected h_0 of size \[1, 1, 3, 7\], got \[2, 1, 3, 7\]"),
        (_replaced(1, lambda h: h[0]), r"expected h_0 of size \[2, 1, 3, 7\], got \[1, 3, 7\]"),
        (_replaced(3, lambda w: [w[0][0]]), r"expected weight_ih of size \[2, 28, 5\], got \[28, 5\]"),
        (_replaced(4, lambda w: [w[0][:1]]), r"expected weight_hh of size \[2, 28, 7\], got \[1, 28, 7\]"),
        (_replaced(4, lambda w: [w[0][0]]), r"weight_hh of size \[members, 4 \* hidden_size, ...\], got \[28, 7\]"),
        (_replaced(4, lambda w: [*w, *w]), "expected 1 weight_hh, got 2"),
        (_replaced(5, lambda w: [*w, *w]), "expected 0 or 1 bias_ih, got 2"),
        (_replaced(9, lambda _: torch.ones(3).long()), r"expected lengths of size \[2, 3\], got \[3\]"),
        (_replaced(9, lambda _: torch.tensor([[1, 2, 3], [4, 5, 0]])), "between 0 and 4, got 5 at index 4"),
        (_replaced(10, lambda _: torch.ones(4, 3).bool()), r"expected reset of size \[2, 4, 3\], got \[4, 3\]"),
        (_replaced(8, lambda _: torch.tensor([3, 1])), "packed input with 2 dimensions, or one more .* got 4"),
    ],
)
def test_errors(change, text):
    arguments = list(draw_ensemble(SMALL, 2, "cpu", torch.float32)[0])
    change(arguments)
    with pytest.raises(RuntimeError, match=text):
        ops.lstm_layer(*arguments)


def test_errors_of_backward():
    arguments, incoming = draw_ensemble(SMALL, 2, "cpu", torch.float32)
    output, _, _, gates, cell_states = ops.lstm_layer(*arguments)
    more = [*arguments, output, gates, cell_states, [True] * 10]
    for place, name in enumerate(("d_output", "d_h_n", "d_c_n", "d_cell_states")):
        wrong = [*incoming]
        wrong[place] = wrong[place][:1]
        with pytest.raises(RuntimeError, match=rf"expected {name} of size \[2, .*, got \[1, "):
            ops.lstm_layer_backward(*wrong, *more)
    for place, name in zip((14, 15, 16), ("output", "gates", "cell_states")):
        wrong = [*more]
        wrong[place] = wrong[place][0]
        with pytest.raises(RuntimeError, match=rf"expected {name} of size \[2, "):
            ops.lstm_layer_backward(*incoming, *wrong)


@pytest.mark.parametrize("case", CASES[:9], ids=lambda case: case.name)
def test_opcheck(case):
    arguments, incoming = draw_ensemble(case, 2, "cpu", torch.float64)
    output, _, _, gates, cell_states = ops.lstm_layer(*arguments)
    tests = ["test_schema", "test_faketensor"]
    torch.library.opcheck(ops.lstm_layer, arguments, test_utils=tests)
    torch.library.opcheck(ops.lstm_layer_inference, arguments, test_utils=tests)
    more = (*incoming, *arguments, output, gates, cell_states, [True] * 10)
    torch.library.opcheck(ops.lstm_layer_backward, more, test_utils=tests)


# torch.func.vmap


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
            assert torch.equal(output, module(x)[0])


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


def test_batch_sizes_are_common():
    arguments, _ = draw_ensemble(CASES[5], 2, "cpu", torch.float64)
    first = reference.member(arguments, 0)
    with pytest.raises(NotImplementedError, match="batch_sizes common to all members"):
        vmap(lambda sizes: ops.lstm_layer(*first[:8], sizes, *first[9:])[0])(torch.stack([first[8], first[8]]))


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
    assert torch.equal(same[0], same[1]) and not torch.equal(different[0], different[1])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend, x):
    ensemble = Ensemble(3, x.device, bidirectional=True)
    call = ensemble.vmap(lambda module: module(x)[0])
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    found = torch.compile(call, backend=counter, fullgraph=True)()
    assert sum(node.target is ops.lstm_layer for node in counter.graphs[0].graph.nodes) == 2
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
