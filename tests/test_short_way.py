"""The usual call of a layer takes the short way (fusedlstm/_usual.py): what fits is run once, the rest elsewhere."""

import ctypes
import sys
import threading
import time
from unittest import mock

import pytest
import torch
from family import EVERY, LSTM, every, tensors_of
from torch import nn

from fusedlstm import FusedLSTM, FusedRNN, FusedRNNCell, _module, _run, _run_cell, _usual, freeze, quantize, quantized

OPTIONS = {
    "plain": {},
    "no-bias": {"bias": False},
    "batch-first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "stack": {"num_layers": 3, "dropout": 0.5},
}
USUAL = {f"{member}-{name}": (member, options) for member in EVERY for name, options in OPTIONS.items()}
USUAL["lstm-projection"] = LSTM, {"proj_size": 3}


@pytest.fixture
def short_way(monkeypatch):
    """A list of the ways that calls went which were short: that of gradients, or that of inference."""
    calls = []

    def watch(module, name, way):
        run = getattr(module, name)

        def watched(*arguments):
            results = run(*arguments)
            calls.append(way if results is not None else f"no {way}")
            return results

        monkeypatch.setattr(module, name, watched)

    watch(_run, "_run_plain", "gradients")
    watch(_usual, "as_returned", "inference")
    return calls


@pytest.mark.parametrize("member, options", USUAL.values(), ids=USUAL)
def test_runs_what_is_usual(member, options, short_way):
    fused, plain = member.pair(4, 6, **options)
    fused, plain = fused.eval(), plain.eval()
    x = torch.randn(5, 3, 4, requires_grad=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            (y, hx), (expected, _) = fused(x), plain(x)
            assert torch.equal(fused(x, hx)[0], fused(x, hx)[0])
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    assert short_way == ["gradients"] * 3 + ["inference"] * 3


@every
@pytest.mark.parametrize("grad", [True, False])
def test_leaves_the_rest_to_the_long_way(member, grad, short_way):
    layer = member.layer(4, 6).eval()
    with torch.set_grad_enabled(grad):
        layer(torch.randn(5, 4))  # one sequence without a batch
        with pytest.raises(RuntimeError, match=r"[Ee]xpected"):
            layer(torch.randn(5, 3, 7))
        layer(torch.randn(5, 3, 4), lengths=torch.tensor([5, 2, 0]))
        member.layer(4, 6, num_layers=2, dropout=0.5)(torch.randn(5, 3, 4))
        member.layer(4, 6, recurrent_dropout=0.5)(torch.randn(5, 3, 4))
        assert short_way == []
        member.layer(4, 6, weight_dropout=0.5)(torch.randn(5, 3, 4))
    assert short_way == ["gradients"]


@every
def test_training_mode_without_gradients_is_usual_where_nothing_is_dropped(member, short_way):
    layer = member.layer(4, 6, recurrent_dropout=0.5)
    layer.recurrent_dropout, x = 0.0, torch.randn(5, 3, 4)
    with torch.no_grad():
        assert torch.equal(layer(x)[0], layer.eval()(x)[0])
    assert short_way == ["inference"] * 2


@every
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("input_size, hidden_size", [(5, 6), (4, 7)])
def test_weights_that_fit_together_but_not_the_layer_are_refused(member, input_size, hidden_size, grad, short_way):
    layer, other = member.layer(4, 6).eval(), member.layer(input_size, hidden_size)
    for name, weight in other.named_parameters():
        setattr(layer, name, weight)
    with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, ValueError), match=r"[Ee]xpected"):
        layer(torch.randn(5, 3, input_size))
    assert short_way == []


def test_what_the_operator_refuses_is_told_as_by_the_long_way(short_way, monkeypatch):
    layer = LSTM.layer(4, 6).eval()
    gates, operator = _usual._PLAIN["LSTM"]
    asked = mock.Mock(side_effect=operator)
    monkeypatch.setitem(_usual._PLAIN, "LSTM", (gates, asked))
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size"):
        layer(torch.randn(5, 3, 4), (torch.zeros(1, 3, 6), torch.zeros(1, 2, 6)))
    asked.assert_called_once()
    assert short_way == []


def test_weights_that_are_no_parameters_go_the_long_way(short_way):
    layer = LSTM.layer(4, 6).eval()
    weight = layer.weight_hh_l0.detach().clone()
    del layer.weight_hh_l0
    layer.weight_hh_l0 = weight
    with torch.no_grad():
        layer(torch.randn(5, 3, 4))
    assert short_way == ["gradients"]


@every
def test_parameters_in_another_order_are_those_of_their_names(member, short_way):
    layer = member.layer(4, 4).eval()
    x, weight = torch.randn(5, 3, 4), layer.weight_ih_l0
    with torch.no_grad():
        expected = layer(x)[0]
        del layer.weight_ih_l0
        layer.weight_ih_l0 = weight
        assert next(iter(layer._parameters)) == "weight_hh_l0"
        assert torch.equal(layer(x)[0], expected)
    assert short_way == ["inference"] * 2


def test_a_property_in_place_of_an_attribute_goes_the_long_way(short_way):
    class Layer(FusedLSTM):
        @property
        def batch_first(self):
            return self.is_first

        @batch_first.setter
        def batch_first(self, is_first):
            self.is_first = is_first

    layer, plain = Layer(4, 6, batch_first=True).eval(), FusedLSTM(4, 6).eval()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(3, 5, 4)
    with torch.no_grad():
        assert torch.equal(layer(x)[0], plain(x.transpose(0, 1))[0].transpose(0, 1))
    assert short_way == ["gradients", "inference"]


FEW_STEPS = {
    "plain": {},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "both directions of two layers": {"num_layers": 2, "bidirectional": True},
    "relu": {"nonlinearity": "relu"},
    "dropout of one layer": {"dropout": 0.5},
}


@pytest.fixture
def only_few_steps():
    """Calls of a module that take any other way fail."""
    with mock.patch.object(_module, "run", side_effect=AssertionError("by the long way")):
        yield


@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last")
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("has_state", [True, False])
@pytest.mark.parametrize("options", FEW_STEPS.values(), ids=FEW_STEPS)
def test_few_steps_in_training_are_those_of_torch(options, has_state, steps, only_few_steps):
    plain = nn.RNN(4, 6, **options)
    fused = FusedRNN(4, 6, **options)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(*((3, steps) if fused.batch_first else (steps, 3)), 4, requires_grad=True)
    hx = torch.randn(fused.num_layers * (1 + fused.bidirectional), 3, 6, requires_grad=True) if has_state else None
    found = []
    for module in (fused, plain):
        results = tensors_of(module(x, hx))
        leaves = [x, *([hx] if has_state else []), *module.parameters()]
        found.append([*results, *torch.autograd.grad(results, leaves, [result.cos() for result in results])])
    assert all(map(torch.equal, *found)) and len(found[0]) == len(found[1])


OTHER_CALLS = {
    "three steps": ({}, (3, 3, 4), {}),
    "no batch": ({}, (2, 4), {}),
    "lengths": ({}, (2, 3, 4), {"lengths": torch.tensor([2, 1, 0])}),
    "dropout": ({"num_layers": 2, "dropout": 0.5}, (2, 3, 4), {}),
    "dropout of weights": ({"weight_dropout": 0.5}, (2, 3, 4), {}),
    "dropout of states": ({"recurrent_dropout": 0.5}, (2, 3, 4), {}),
    "zoneout": ({"zoneout": 0.5}, (2, 3, 4), {}),
    "16 bits": ({"dtype": torch.bfloat16}, (2, 3, 4), {}),
    "nothing to train": ({}, (2, 3, 4), {}),
}


@pytest.mark.parametrize("name", OTHER_CALLS)
def test_other_calls_in_training_take_the_long_way(name, only_few_steps):
    options, shape, others = OTHER_CALLS[name]
    layer = FusedRNN(4, 6, **options).requires_grad_(name != "nothing to train")
    with pytest.raises(AssertionError, match="by the long way"):
        layer(torch.randn(shape, dtype=options.get("dtype")), **others)


def test_inference_mode_takes_the_long_way_whatever_grad_mode_is_inside(only_few_steps):
    with torch.inference_mode(), torch.enable_grad(), pytest.raises(AssertionError, match="by the long way"):
        FusedRNN(4, 6)(torch.randn(2, 3, 4))


# What PyTorch's operator takes, and broadcasts or converts.
MISFITS = {
    "bias of one element": ("bias_ih_l0", (1,), torch.float32),
    "bias of another dtype": ("bias_hh_l0", (6,), torch.float64),
    "weight of one row": ("weight_ih_l0", (1, 4), torch.float32),
    "weight that is missing": ("bias_hh_l0", None, None),
    "state of one row": ("hx", (1, 1, 6), torch.float32),
    "state of another dtype": ("hx", (1, 3, 6), torch.float64),
}


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name, shape, dtype", MISFITS.values(), ids=MISFITS)
def test_misfits_are_refused_with_few_steps_as_with_many(name, shape, dtype, steps):
    layer, hx = FusedRNN(4, 6), torch.zeros(1, 3, 6)
    other = None if shape is None else torch.zeros(shape, dtype=dtype)
    if name == "hx":
        hx = other
    else:
        setattr(layer, name, None if other is None else nn.Parameter(other))
    with pytest.raises((RuntimeError, TypeError), match=r"xpected|Input and hidden") as refusal:
        layer(torch.randn(steps, 3, 4), hx)
    assert (name if name != "hx" else "hidden") in str(refusal.value)


# Options, the input's shape, whether there is a state, and what requires gradients.
STEPS_OF_TORCH = {
    "batch": ({}, (3, 4), True, "all"),
    "no batch": ({}, (4,), True, "all"),
    "no state": ({}, (3, 4), False, "all"),
    "neither": ({}, (4,), False, "all"),
    "no rows": ({}, (0, 4), True, "all"),
    "no bias": ({"bias": False}, (3, 4), True, "all"),
    "relu": ({"nonlinearity": "relu"}, (3, 4), True, "all"),
    "float64": ({"dtype": torch.float64}, (3, 4), True, "all"),
    **{f"{name} alone": ({}, (3, 4), True, name) for name in ("weight_hh", "bias_ih", "bias_hh", "x", "hx")},
}


@pytest.fixture
def only_by_torch():
    """Cells that run any other step than PyTorch's fail."""
    error = AssertionError("by operators")
    with mock.patch.multiple(_run_cell, run_step=mock.Mock(side_effect=error), _as_layer=mock.Mock(side_effect=error)):
        yield


@pytest.mark.parametrize("options, shape, has_state, wanted", STEPS_OF_TORCH.values(), ids=STEPS_OF_TORCH)
def test_an_rnn_s_step_in_training_is_that_of_torch(options, shape, has_state, wanted, only_by_torch):
    plain, fused = nn.RNNCell(4, 6, **options), FusedRNNCell(4, 6, **options)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(shape, dtype=plain.weight_ih.dtype)
    hx = torch.randn(*shape[:-1], 6, dtype=x.dtype) if has_state else None
    found = []
    for module in (fused, plain):
        given = {"x": x, **({"hx": hx} if has_state else {}), **dict(module.named_parameters())}
        for name, tensor in given.items():
            tensor.requires_grad_(wanted in ("all", name))
        leaves = [tensor for tensor in given.values() if tensor.requires_grad]
        h = module(x, hx)
        found.append([h, *torch.autograd.grad(h, leaves, h.cos())])
    assert all(map(torch.equal, *found)) and len(found[0]) == len(found[1])


OTHER_STEPS = {
    "16 bits": ({"dtype": torch.bfloat16}, (3, 4)),
    "zoneout": ({"zoneout": 0.5}, (3, 4)),
    "nothing to train": ({}, (3, 4)),
}


@pytest.mark.parametrize("name", OTHER_STEPS)
def test_other_steps_run_operators(name, only_by_torch):
    options, shape = OTHER_STEPS[name]
    cell = FusedRNNCell(4, 6, **options).requires_grad_(name != "nothing to train")
    with (
        mock.patch.object(_run_cell, "run_varied_step", side_effect=AssertionError("by operators")),
        pytest.raises(AssertionError, match="by operators"),
    ):
        cell(torch.randn(shape, dtype=options.get("dtype")))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name, shape, dtype", MISFITS.values(), ids=MISFITS)
def test_a_cell_s_misfits_are_refused_with_gradients_as_without(name, shape, dtype, grad):
    cell, hx = FusedRNNCell(4, 6), torch.zeros(3, 6)
    other = None if shape is None else torch.zeros(shape, dtype=dtype)
    if name == "hx":
        hx = other[0]
    else:
        setattr(cell, name.removesuffix("_l0"), None if other is None else nn.Parameter(other))
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=r"xpected|Input") as refusal:
        cell(torch.randn(3, 4), hx)
    expected = {"hx": "hidden", None: "both bias_ih and bias_hh"}.get(name if shape else None, name)
    assert expected in str(refusal.value)


@every
@pytest.mark.parametrize("kind, x", [("layer", torch.randn(5, 3, 4)), ("one_step", torch.randn(3, 4))])
def test_int8_weights_are_read_by_each_short_call(member, kind, x, monkeypatch):
    module = quantize(getattr(member, kind)(4, 6).eval())
    for long_way in ("run", "run_quantized_cell"):
        monkeypatch.setattr(quantized, long_way, None)
    name = next(name for name, _ in module.named_buffers() if name.startswith("scale_ih"))
    first = tensors_of(module(x))[0]
    getattr(module, name).mul_(2)
    assert not torch.equal(tensors_of(module(x))[0], first)
    setattr(module, name, getattr(module, name) / 2)
    assert torch.equal(tensors_of(module(x))[0], first)


@pytest.fixture
def lets_others_run():
    """Whether a call of milliseconds lets other threads of Python run meanwhile, as a function of the call."""
    interval, counted, ends = sys.getswitchinterval(), [0], threading.Event()

    def count():
        while not ends.is_set():
            counted[0] += 1
            time.sleep(1e-4)

    def asked(call):
        call()
        before = counted[0]
        for calls in range(1, 201):
            call()
            passed = counted[0] - before
            if calls >= 5 and passed > 3 * calls:  # not only between calls
                return True
        return False

    other = threading.Thread(target=count)
    sys.setswitchinterval(1000)  # threads change hands only where one waits or lets the interpreter go
    other.start()
    yield asked
    ends.set()
    other.join()
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("prepare", [lambda layer: layer, freeze, quantize], ids=["plain", "frozen", "int8"])
def test_calls_let_other_threads_run(prepare, lets_others_run):
    """As in a server: calls that held the interpreter would run one after another."""
    layer, x = prepare(FusedLSTM(128, 128).eval()), torch.randn(1000, 16, 128)
    with torch.no_grad():
        assert lets_others_run(lambda: layer(x))


def test_a_call_that_holds_the_interpreter_is_noticed(lets_others_run):
    assert not lets_others_run(lambda: ctypes.PyDLL(None).usleep(2000))
