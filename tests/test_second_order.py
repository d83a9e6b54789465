"""Double backward: its chunks of steps, against differentiating the reference at once; its memory."""

import gc
import weakref
from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch
from layers import differentiable, draw, flat, leaves
from tolerance import assert_near, tolerance
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.cases import Case
from fusedlstm import _arguments, _second_order_chunks, reference
from fusedlstm._arguments import Differentiable, Incoming
from fusedlstm._second_order import second_order
from fusedlstm.cells import CELLS, LSTM
from fusedlstm.ops import OPERATORS

SMALL = Case("small", 5, 3, 2, 4)
T, B, H = SMALL.T, SMALL.B, SMALL.hidden_size

KINDS = {
    "plain": {},
    "no-bias": {"bias": False},
    "projection": {"proj_size": 3},
    "bidirectional": {"bidirectional": True},
    "packed": {"variable": "packed"},
    "packed-everything": {"bidirectional": True, "proj_size": 3, "variable": "packed"},
    "lengths": {"variable": "lengths"},
    "lengths-everything": {"bidirectional": True, "proj_size": 3, "variable": "lengths"},
    "reset": {"resets": True},
    "reset-state": {"proj_size": 3, "resets": True, "reset_state": True},
    "reset-and-lengths": {"resets": True, "reset_state": True, "variable": "lengths"},
    "gru-no-bias": {"cell": "gru", "bias": False},
    "gru-packed": {"cell": "gru", "bidirectional": True, "variable": "packed"},
    "gru-lengths": {"cell": "gru", "bidirectional": True, "variable": "lengths"},
    "gru-reset-state": {"cell": "gru", "resets": True, "reset_state": True},
    "rnn_tanh-packed": {"cell": "rnn_tanh", "bidirectional": True, "variable": "packed"},
    "rnn_tanh-lengths": {"cell": "rnn_tanh", "bidirectional": True, "variable": "lengths"},
    "rnn_tanh-reset": {"cell": "rnn_tanh", "resets": True},
    "rnn_relu-bidirectional": {"cell": "rnn_relu", "bidirectional": True},
}
BY_STEPS = [kind for kind in KINDS if kind != "reset-and-lengths"]


@pytest.fixture
def one_step_a_chunk(monkeypatch):
    monkeypatch.setattr(_second_order_chunks, "CHUNK", 1)


def _cell(kind):
    return CELLS[KINDS[kind].get("cell", "lstm")]


def _operators(kind):
    """The layer of a kind by its operator, and by the reference."""
    return OPERATORS[_cell(kind).name].layer, partial(reference.layer, _cell(kind))


def _layer(kind, device, dtype=torch.float64, **sizes):
    """Arguments of `<cell>_layer`, those of them that can have gradients, and gradients that arrive at its results."""
    options = {"cell": "lstm"} | KINDS[kind] | sizes
    cell = CELLS[options.pop("cell")]
    has_state = options.pop("reset_state", False)
    case = replace(SMALL, **options)
    lengths = {"packed": [case.T, case.T - 2, 1], "lengths": [2, case.T, 0], "": None}[case.variable]
    drawn = draw(case, cell, lengths=lengths, reset_state=has_state, device=device, dtype=dtype)
    layer = differentiable(drawn.layer)
    return layer, leaves(layer), flat(differentiable(drawn.incoming))


def _like(tensors):
    return [torch.randn_like(tensor) for tensor in tensors]


def _results(operator, layer):
    """Those that may have gradients: output, last states and what is carried."""
    output, last, _, carried = operator(*layer)
    return output, *last, carried


def _gradients_of(results, inputs, incoming):
    """First order, to be differentiated again; None among the incoming: left out."""
    arrive = [(result, d) for result, d in zip(results, incoming) if d is not None and result.requires_grad]
    results, gradients = zip(*arrive)
    return torch.autograd.grad(results, inputs, gradients, create_graph=True, materialize_grads=True)


def _differentiated(gradients, cotangents, wanted):
    """Gradients for `wanted` of the sum of <cotangent, gradient>; None among the cotangents: left out."""
    moved = [(gradient, u) for gradient, u in zip(gradients, cotangents) if u is not None and gradient.requires_grad]
    gradients, directions = zip(*moved)
    return torch.autograd.grad(gradients, wanted, directions, retain_graph=True, materialize_grads=True)


def _second_order_of(operator, layer, incoming, cotangents, wanted):
    return _differentiated(_gradients_of(_results(operator, layer), leaves(layer), incoming), cotangents, wanted)


def _assert_equal(kind, layer, incoming, cotangents, wanted):
    actual, expected = (
        _second_order_of(operator, layer, incoming, cotangents, wanted) for operator in _operators(kind)
    )
    _assert_close(actual, expected)


def _assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def _check_subsets_of_results(kind, layer, incoming):
    """The reference runs once: what arrives at its results does not change them."""
    inputs = leaves(layer)
    fused, by_reference = _operators(kind)
    cotangents, results = _like(inputs), _results(by_reference, layer)
    for size in range(1, len(incoming) + 1):
        for chosen in combinations(range(len(incoming)), size):
            some = [d if k in chosen else None for k, d in enumerate(incoming)]
            wanted = [*inputs, *(incoming[k] for k in chosen)]
            expected = _differentiated(_gradients_of(results, inputs, some), cotangents, wanted)
            _assert_close(_second_order_of(fused, layer, some, cotangents, wanted), expected)


def _check_each_alone(kind, layer, incoming):
    """Each cotangent and each gradient that is asked for. The reference's graph is that of all of them."""
    inputs = leaves(layer)
    fused, by_reference = _operators(kind)
    cotangents, wanted = _like(inputs), [*inputs, *incoming]
    gradients = _gradients_of(_results(by_reference, layer), inputs, incoming)
    for alone in range(len(inputs)):
        some = [u if k == alone else None for k, u in enumerate(cotangents)]
        _assert_close(_second_order_of(fused, layer, incoming, some, wanted), _differentiated(gradients, some, wanted))
    for one, expected in zip(wanted, _differentiated(gradients, cotangents, wanted), strict=True):
        _assert_close(_second_order_of(fused, layer, incoming, cotangents, [one]), [expected])


@pytest.mark.parametrize("kind", KINDS)
def test_each_subset_of_results(kind, one_step_a_chunk, device):
    layer, _, incoming = _layer(kind, device)
    _check_subsets_of_results(kind, layer, incoming)


@pytest.mark.parametrize("kind", KINDS)
def test_each_cotangent_and_each_gradient_alone(kind, one_step_a_chunk, device):
    layer, _, incoming = _layer(kind, device)
    _check_each_alone(kind, layer, incoming)


@pytest.mark.parametrize("steps", [1, T])
def test_gradients_do_not_share_memory(steps, device):
    layer, inputs, incoming = _layer("bidirectional", device, T=steps)
    layer_of = _operators("bidirectional")[0]
    found = _second_order_of(layer_of, layer, incoming, _like(inputs), [*inputs, *incoming])
    assert len({gradient.untyped_storage().data_ptr() for gradient in found}) == len(found)


@pytest.mark.parametrize(
    "kind", ["plain", "no-bias", "projection", "bidirectional", "packed-everything", "gru-packed", "rnn_tanh-packed"]
)
def test_each_part_of_one_step(kind, device):
    layer, _, incoming = _layer(kind, device, T=3 if "packed" in kind else 1)
    if "packed" in kind:
        layer = layer._replace(input=layer.input[:B].detach().requires_grad_(), batch_sizes=torch.tensor([B]))
        d_output, *d_last = incoming[: 1 + len(layer.initial)]
        d_carried = [d[:, :B] for d in incoming[1 + len(layer.initial) :]]
        incoming = [d.detach().requires_grad_() for d in (d_output[:B], *d_last, *d_carried)]
    _check_subsets_of_results(kind, layer, incoming)
    _check_each_alone(kind, layer, incoming)


@pytest.mark.parametrize("steps_a_chunk", [1, 2, 3, T, T + 1])
@pytest.mark.parametrize("kind", ["reset-state", "lengths-everything", "packed-everything", "gru-packed"])
def test_every_length_of_a_chunk(kind, steps_a_chunk, monkeypatch, device):
    monkeypatch.setattr(_second_order_chunks, "CHUNK", steps_a_chunk * B * _cell(kind).gates * H)
    layer, inputs, incoming = _layer(kind, device)
    _assert_equal(kind, layer, incoming, _like(inputs), [*inputs, *incoming])


@pytest.mark.parametrize("steps, batch", [(0, 3), (1, 3), (2, 1), (4, 0)])
@pytest.mark.parametrize("kind", ["plain", "bidirectional", "reset-state", "gru-reset-state", "rnn_relu-bidirectional"])
def test_small_sizes(kind, steps, batch, device):
    layer, inputs, incoming = _layer(kind, device, T=steps, B=batch)
    _assert_equal(kind, layer, incoming, _like(inputs), [*inputs, *incoming])


@pytest.mark.parametrize("kind", BY_STEPS)
def test_gradgradcheck(kind, one_step_a_chunk, device):
    """By finite differences of the gradients, which do not use the reference."""
    layer, inputs, _ = _layer(kind, device, T=3)

    def call(*_):
        output, last, _, carried = _operators(kind)[0](*layer)
        return tuple(result for result in (output, *last, carried) if result.requires_grad)

    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("kind", ["bidirectional", "gru-packed", "rnn_tanh-lengths"])
def test_the_steps_are_not_a_graph(kind, one_step_a_chunk, monkeypatch, device):
    """The reference is not differentiated, unless there is to be a third order."""
    monkeypatch.setattr(reference, "_direction", None)
    for steps in (1, T) if kind == "bidirectional" else (T,):
        layer, inputs, incoming = _layer(kind, device, T=steps)
        _second_order_of(_operators(kind)[0], layer, incoming, _like(inputs), inputs)


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operators make while it is active: those alive, and the most at one time."""

    def __init__(self, given):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in given}
        self.alive = self.most = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self._count(tensor.untyped_storage())
        return results

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key, size):
        self.known.remove(key)
        self.alive -= size


def _bytes_beyond_results(kind, steps, device) -> int:
    """The most memory that double backward takes at one time, beyond its arguments and what it returns."""
    layer, _, incoming = _layer(kind, device, T=steps)
    output, _, *kept = _operators(kind)[0](*layer)
    states = len(layer.initial)
    incoming = Incoming(incoming[0], incoming[1 : 1 + states], *(incoming[1 + states :] or [None]))
    results = [output, *kept]
    kinds = _arguments.differentiable(layer)
    cotangents = Differentiable(*map(_cotangent, kinds))
    asked = [bool(reference.listed(kind)) for kind in kinds]
    given = [t for t in tree_leaves([layer, incoming, results, cotangents]) if isinstance(t, torch.Tensor)]
    gc.disable()  # what waits for it counts; what has been waiting is not seen
    try:
        with torch.no_grad(), _Live(given) as live:
            asked_incoming = Incoming(True, True, incoming.carried is not None)
            found = second_order(_cell(kind), layer, incoming, results, cotangents, asked_incoming, asked)
    finally:
        gc.enable()
    return live.most - sum(tensor.nbytes for tensor in tree_leaves(found) if tensor is not None)


def _cotangent(argument):
    if isinstance(argument, list):
        return _like(argument)
    return None if argument is None else torch.randn_like(argument)


@pytest.mark.parametrize("kind", BY_STEPS)
def test_memory_does_not_grow_with_time(kind, monkeypatch, device):
    """But by the two states, and in the reverse direction the row of a mask, that are kept for each chunk."""
    steps_a_chunk = 2
    monkeypatch.setattr(_second_order_chunks, "CHUNK", steps_a_chunk * B * _cell(kind).gates * H)
    few, many = 4, 12
    grown = _bytes_beyond_results(kind, many, device) - _bytes_beyond_results(kind, few, device)
    states = B * (KINDS[kind].get("proj_size", H) + H * _cell(kind).carried) * 8
    mask = steps_a_chunk * B * 2
    assert 0 < grown <= (many - few) // steps_a_chunk * (states + mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "kind, steps",
    [
        ("plain", 20),
        ("projection", 20),
        ("projection", 1),
        ("lengths-everything", 20),
        ("reset-state", 20),
        ("gru-lengths", 20),
        ("gru-reset-state", 20),
        ("rnn_tanh-lengths", 20),
    ],
)
def test_other_dtypes(kind, steps, dtype, monkeypatch, device):
    """Values and gradients in the dtype, against float64 of the same values."""
    features, hidden = 16, 32
    monkeypatch.setattr(_second_order_chunks, "CHUNK", 3 * B * _cell(kind).gates * hidden)
    layer, inputs, incoming = _layer(kind, device, dtype, T=steps, input_size=features, hidden_size=hidden)
    with torch.no_grad():
        for weight in inputs[1 + len(layer.initial) :]:
            weight *= hidden**-0.5 / weight.std()  # the usual ones, for which the tolerance is computed
    cotangents, exact = _like(inputs), differentiable(layer, torch.float64)
    fused, by_reference = _operators(kind)
    found = [_second_order_of(fused, layer, incoming, cotangents, [*inputs, *incoming])]
    incoming, cotangents = ([d.detach().double().requires_grad_() for d in ds] for ds in (incoming, cotangents))
    found.append(_second_order_of(by_reference, exact, incoming, cotangents, [*leaves(exact), *incoming]))
    allowed = tolerance(dtype, steps * B + features + hidden, steps, device_type=device.type)
    for k, (actual, expected) in enumerate(zip(*found, strict=True)):
        assert_near(actual / expected.abs().max(), expected / expected.abs().max(), allowed, f"gradient {k}")


def test_an_argument_without_gradient_of_its_own(device):
    """Who calls the operator may ask for any gradient, and differentiate it for the other arguments."""
    layer, *_ = _layer("plain", device)
    d_output, u = torch.randn(T, B, H, dtype=torch.float64, device=device), torch.randn_like(layer[0])
    (weight,) = layer.weight_hh
    output = reference.layer(LSTM, *layer)[0]
    (gradient,) = torch.autograd.grad(output, layer[0], d_output, create_graph=True)
    expected = torch.autograd.grad(gradient, weight, u)[0]

    layer = layer._replace(input=layer.input.detach())
    output, _, gates, cell_states = OPERATORS["lstm"].layer(*layer)
    needs = [True] + [False] * 7
    gradient = OPERATORS["lstm"].backward(d_output, [None, None], None, *layer, output, gates, cell_states, needs)[0]
    torch.testing.assert_close(torch.autograd.grad(gradient, weight, u)[0], expected, rtol=1e-12, atol=1e-12)
