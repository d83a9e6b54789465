"""fusedlstm.freeze: the same numbers from weights prepared once, and no change of them that goes unnoticed."""

import copy
import json
import pickle

import pytest
import torch
from family import EVERY, LSTM, every, tensors_of
from torch import nn
from torch.func import functional_call, jvp, vmap
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from fusedlstm import FusedLSTM, FusedLSTMCell, convert, freeze, revert, unfreeze

ISAS = json.loads(torch.ops.fusedlstm._cpu_info())["available"]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPTIONS = {
    "plain": {},
    "no-bias": {"bias": False},
    "deep": {"num_layers": 2, "bidirectional": True},
    "batch-first": {"batch_first": True, "num_layers": 2, "dropout": 0.5},
}
MODELS = {f"{member}-{name}": (member, options) for member in EVERY for name, options in OPTIONS.items()}
MODELS["lstm-projection"] = LSTM, {"proj_size": 3, "bidirectional": True}
models = pytest.mark.parametrize("member, options", MODELS.values(), ids=MODELS)


@pytest.fixture
def forced():
    """torch.ops.fusedlstm._cpu_force, undone after the test."""
    yield torch.ops.fusedlstm._cpu_force
    torch.ops.fusedlstm._cpu_force("", "")


class Operators(TorchDispatchMode):
    """The names of the package's operators that run something."""

    def __enter__(self):
        self.names = set()
        return super().__enter__()

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        if operator.namespace == "fusedlstm" and not operator._opname.endswith("_freeze"):
            self.names.add(operator._opname)
        return operator(*arguments, **(options or {}))


def pair(member, *sizes, dtype=torch.float32, **options):
    """A layer, and the same frozen."""
    layer = member.layer(*sizes, **options, dtype=dtype).eval()
    return layer, freeze(copy.deepcopy(layer))


def ways_to_call(layer, dtype, **options):
    """By name, calls of a layer with 5 features: functions of the layer."""
    x = torch.randn(3, 4, 5, dtype=dtype)
    batch_first = options.get("batch_first", False)
    rows, steps = (0, 1) if batch_first else (1, 0)
    hx = layer(x)[1]
    ways = {
        "zeros": lambda m: m(x),
        "states": lambda m: m(x, hx),
        "one sequence": lambda m: m(x[0]),
        "no rows": lambda m: m(x.narrow(rows, 0, 0)),
        "no steps": lambda m: m(x.narrow(steps, 0, 0), hx),
        "one step": lambda m: m(x.narrow(steps, 0, 1), hx),
        "packed": lambda m: m(pack_sequence([x[0], x[1, :3], x[2, :1]])),
        "lengths": lambda m: m(x, hx, lengths=torch.arange(x.size(rows))),
    }
    if not options.get("bidirectional"):
        reset = torch.arange(12).view(3, 4) % 3 == 0
        to = tuple(map(torch.ones_like, hx)) if isinstance(hx, tuple) else torch.ones_like(hx)
        ways["resets"] = lambda m: m(x, hx, reset=reset)
        ways["resets to a state"] = lambda m: m(x, hx, reset=reset, reset_state=to)
    return ways


def assert_same(found, expected):
    """Of results of layers: output, or PackedSequence, and states."""
    found, expected = ([getattr(y, "data", y), *tensors_of(hx)] for y, hx, *_ in (found, expected))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


class TestNumbers:
    """Bit by bit those of panels that are made in each call."""

    @models
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_of_every_call(self, member, options, dtype, forced):
        layer, frozen = pair(member, 5, 7, dtype=dtype, **options)
        for name, call in ways_to_call(layer, dtype, **options).items():
            with torch.no_grad(), Operators() as operators:
                found = call(frozen)
            assert operators.names == {f"{member.cell}_layer_frozen"}, name
            forced("", "packed")
            with torch.no_grad():
                assert_same(found, call(layer))
            forced("", "")

    @every
    @pytest.mark.parametrize("isa", ISAS)
    @pytest.mark.parametrize("hidden", [1, 16, 50])
    def test_of_every_instruction_set_and_number_of_threads(self, member, isa, hidden, forced):
        threads = torch.get_num_threads()
        try:
            for count, plan in ((1, "packed"), (3, "packed:rows"), (3, "packed:units")):
                torch.set_num_threads(count)
                forced(isa, plan)
                layer, frozen = pair(member, 5, hidden, bidirectional=True)
                x = torch.randn(9, 8, 5)
                with torch.no_grad():
                    assert_same(frozen(x), layer(x))
        finally:
            torch.set_num_threads(threads)

    def test_stay_those_of_the_set_it_was_frozen_for(self, forced):
        layer, frozen = pair(LSTM, 5, 7)
        x = torch.randn(3, 2, 5)
        forced(ISAS[0], "packed")
        expected = frozen(x)
        forced(ISAS[-1], "packed")
        assert_same(frozen(x), expected)
        with torch.no_grad():
            assert_same(copy.deepcopy(frozen)(x), layer(x))

    @every
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_of_a_cell(self, member, bias, dtype, forced):
        cell = member.one_step(5, 7, bias=bias, dtype=dtype).eval()
        frozen = freeze(copy.deepcopy(cell))
        x = torch.randn(3, 5, dtype=dtype)
        layer = member.layer(5, 7, bias=bias, dtype=dtype)
        layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
        forced("", "packed")
        with torch.no_grad():
            hx = cell(x)
            for call in (lambda m: m(x), lambda m: m(x, hx), lambda m: m(x[0])):
                with Operators() as operators:
                    found = call(frozen)
                assert operators.names == {f"{member.cell}_cell_frozen"}
                for a, b in zip(tensors_of(found), tensors_of(call(cell)), strict=True):
                    assert torch.equal(a, b)
                    assert a._base is None  # a tensor of its own


class TestRefuses:
    @pytest.fixture
    def frozen(self):
        return freeze(nn.Sequential(FusedLSTM(5, 7), nn.Identity()).eval())

    def test_training_mode(self, frozen):
        with pytest.raises(RuntimeError, match=r"expected evaluation mode, got training mode; call model\.eval\(\)"):
            frozen.train()(torch.randn(3, 2, 5))

    @pytest.mark.parametrize("place", ["input", "packed input", "state"])
    def test_gradients(self, frozen, place):
        layer, x, state = frozen[0], torch.randn(3, 2, 5), torch.zeros(1, 2, 7)
        (state if place == "state" else x).requires_grad_()
        input = pack_sequence([x[:, 0], x[:, 1]]) if place == "packed input" else x
        with pytest.raises(RuntimeError, match="expected arguments without gradients, got one that requires them"):
            layer(input, (torch.zeros(1, 2, 7), state))
        with torch.no_grad():
            layer(input, (torch.zeros(1, 2, 7), state))
        assert not frozen(torch.randn(3, 2, 5))[0].requires_grad

    def test_state_dicts(self, frozen):
        state = frozen.state_dict()
        with pytest.raises(RuntimeError, match=r"Expected 0 as it was before fusedlstm\.freeze, got it frozen"):
            frozen.load_state_dict(state)
        unfreeze(frozen).load_state_dict(state)
        nn.Sequential(nn.LSTM(5, 7), nn.Identity()).load_state_dict(state)

    @pytest.mark.parametrize("change", ["in place", "replaced", "functional_call"])
    def test_changed_weights(self, frozen, change):
        layer, x = frozen[0], torch.randn(3, 2, 5)
        before = layer(x)
        call = layer
        if change == "in place":
            with torch.no_grad():
                layer.weight_hh_l0.mul_(2)
        elif change == "replaced":
            layer.bias_ih_l0 = nn.Parameter(torch.ones(28))
        else:
            call = lambda x: functional_call(layer, {"weight_ih_l0": torch.ones(28, 5)}, x)  # noqa: E731
        with pytest.raises(RuntimeError, match="expected the weights that it was frozen with, got"):
            call(x)
        if change == "functional_call":
            assert_same(layer(x), before)
        else:
            assert not torch.equal(freeze(unfreeze(frozen))(x)[0], before[0])

    def test_what_cannot_be_frozen(self):
        with pytest.raises(TypeError, match=r"Expected model to be an nn\.Module, got list"):
            freeze([FusedLSTM(5, 7)])
        with pytest.raises(ValueError, match=r"without any; fusedlstm\.convert\(model\) makes them"):
            freeze(nn.Sequential(nn.LSTM(5, 7)).eval())
        with pytest.raises(RuntimeError, match="Expected a model in evaluation mode to freeze, got FusedLSTMCell"):
            freeze(FusedLSTMCell(5, 7))

    @pytest.mark.parametrize(
        "input, error, text",
        [
            (torch.randn(3, 2, 6), RuntimeError, "Expected 5, got 6"),
            (torch.randn(3, 2, 5).double(), ValueError, "does not match weight dtype"),
            (torch.randn(3, 2, 5, device="meta"), RuntimeError, "same device|on meta"),
            (torch.randn(5), ValueError, "Expected input to be 2D or 3D, got 1D"),
            ([[0.0]], TypeError, "Expected input to be a Tensor"),
        ],
    )
    def test_other_inputs_as_the_layer_does(self, frozen, input, error, text):
        for layer in (frozen[0], unfreeze(copy.deepcopy(frozen[0]))):
            with pytest.raises(error, match=text):
                layer(input)

    def test_other_states_as_the_layer_does(self, frozen):
        for layer in (frozen[0], unfreeze(copy.deepcopy(frozen[0]))):
            with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size"):
                layer(torch.randn(3, 2, 5), (torch.zeros(1, 2, 7), torch.zeros(1, 3, 7)))


class TestOperator:
    """A tensor of bytes is all that it has to go by."""

    @pytest.fixture
    def given(self):
        weights = [[w] for w in LSTM.layer(5, 7).parameters()]
        frozen = torch.ops.fusedlstm.lstm_freeze(*weights, [])
        return [torch.randn(3, 2, 5), [], frozen, None, None, None, []]

    def test_runs(self, given):
        output, last = torch.ops.fusedlstm.lstm_layer_frozen(*given)
        assert output.shape == (3, 2, 7) and [s.shape for s in last] == [(1, 2, 7)] * 2

    @pytest.mark.parametrize(
        "damage",
        [
            lambda bytes: bytes[:-1],
            lambda bytes: bytes[:10],
            lambda bytes: bytes.float(),
            lambda bytes: bytes[::2],
            lambda bytes: torch.zeros_like(bytes),
            lambda bytes: torch.full_like(bytes, 255),
        ],
    )
    def test_refuses_other_bytes(self, given, damage):
        given[2] = damage(given[2])
        with pytest.raises(RuntimeError, match="expected a tensor of lstm_freeze, got another one"):
            torch.ops.fusedlstm.lstm_layer_frozen(*given)

    def test_refuses_another_cell_and_another_machine(self, given):
        with pytest.raises(RuntimeError, match="expected frozen weights of gru, got those of lstm"):
            torch.ops.fusedlstm.gru_layer_frozen(*given)
        given[2] = given[2].clone()
        given[2][:3] = torch.tensor(list(b"sse"), dtype=torch.uint8)
        with pytest.raises(RuntimeError, match="expected a CPU instruction set of this machine"):
            torch.ops.fusedlstm.lstm_layer_frozen(*given)

    @pytest.mark.parametrize("place, other", [(0, torch.randn(3, 2, 4)), (0, torch.randn(3, 2, 5).double())])
    def test_refuses_other_sizes(self, given, place, other):
        given[place] = other
        with pytest.raises(RuntimeError, match="expected input with 5 features and of the dtype of the frozen weights"):
            torch.ops.fusedlstm.lstm_layer_frozen(*given)


class TestCopies:
    """Are frozen too, and of their own weights."""

    @pytest.fixture
    def both(self):
        return pair(LSTM, 5, 7, num_layers=2)

    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deep", "shallow", "pickle"]
    )
    def test_run(self, both, copied):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        frozen(x)
        other = copied(frozen)
        with Operators() as operators:
            assert_same(other(x), frozen(x))
        assert operators.names == {"lstm_layer_frozen"}
        assert_same(unfreeze(other)(x), layer(x))

    def test_bytes_are_not_in_pickles(self, both):
        layer, frozen = both
        frozen(torch.randn(1, 1, 5))
        assert len(pickle.dumps(frozen)) < len(pickle.dumps(layer)) + 200

    def test_are_cast(self, both):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        frozen(x)
        with Operators() as operators, torch.no_grad():
            assert_same(frozen.double()(x.double()), layer.double()(x.double()))
        assert operators.names == {"lstm_layer_frozen", "lstm_layer_inference"}

    def test_revert_and_convert_leave_it_plain(self, both):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        frozen(x)
        plain = revert(frozen)
        assert type(plain) is nn.LSTM
        again = convert(plain)
        assert_same(again(x), layer(x))
        assert again(x)[0].requires_grad and "frozen" in repr(frozen) and "frozen" not in repr(again)


class TestTraced:
    """In graphs and under transforms the weights are used as they were before."""

    @pytest.fixture
    def both(self):
        return pair(LSTM, 5, 7, num_layers=2)

    def test_compiled_in_one_graph(self, both):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert_same(compiled(x), layer(x))
        assert not compiled(x)[0].requires_grad

    def test_exported(self, both):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        program = torch.export.export(frozen, (x,))
        assert_same(program.module()(x), layer(x))
        assert "frozen" not in str(program.graph) and set(program.state_dict) == set(layer.state_dict())

    def test_traced(self, both):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        with pytest.warns(UserWarning, match="records fusedlstm's operators"):
            traced = torch.jit.trace(frozen, (x,))
        assert_same(traced(x), layer(x))
        assert_same(torch.fx.symbolic_trace(frozen)(x), layer(x))

    def test_transformed(self, both):
        layer, frozen = both
        x = torch.randn(3, 9, 8, 5)
        with torch.no_grad():
            assert_same(vmap(frozen)(x), vmap(layer)(x))
            forward = [jvp(lambda x, m=m: m(x)[0], (x[0],), (x[1],)) for m in (layer, frozen)]
        assert all(map(torch.equal, *forward))

    def test_under_autocast(self, both):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert_same(frozen(x), layer(x))

    def test_with_gates_of_all_steps(self, both):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        with torch.no_grad():
            assert_same(frozen(x, return_gates=True), layer(x, return_gates=True))
            assert torch.equal(frozen(x, return_gates=True)[2], layer(x, return_gates=True)[2])


def test_parametrized_weights_are_computed_once():
    layer = weight_norm(FusedLSTM(5, 7), "weight_hh_l0").eval()
    x = torch.randn(9, 8, 5)
    with torch.no_grad():
        expected = layer(x)
    calls = []
    layer.parametrizations.weight_hh_l0.register_forward_hook(lambda *_: calls.append(1))
    freeze(layer)
    for _ in range(3):
        assert_same(layer(x), expected)
    assert len(calls) == 1
    with torch.no_grad():
        layer.parametrizations.weight_hh_l0.original0.mul_(2)
    with pytest.raises(RuntimeError, match="got one that was written to since"):
        layer(x)


def test_a_graph_made_before_still_has_its_gradients():
    layer = FusedLSTM(5, 7).eval()
    x = torch.randn(9, 8, 5)
    layer(x)[0].sum().backward()
    expected = [weight.grad.clone() for weight in layer.parameters()]
    layer.zero_grad()
    output = layer(x)[0]
    freeze(layer)(x)
    output.sum().backward()
    assert all(torch.equal(weight.grad, grad) for weight, grad in zip(layer.parameters(), expected, strict=True))


def test_parameters_stay_what_they_were():
    model = nn.Sequential(FusedLSTM(5, 7), FusedLSTMCell(7, 7)).eval()
    model[0].weight_ih_l0.requires_grad_(False)
    before = {name: (parameter, parameter.requires_grad) for name, parameter in model.named_parameters()}
    assert freeze(freeze(model)) is model
    assert {name: (p, p.requires_grad) for name, p in unfreeze(model).named_parameters()} == before
    assert model[0](torch.randn(3, 2, 5))[0].requires_grad


def test_weights_of_inference_mode():
    with torch.inference_mode():
        layer = FusedLSTM(5, 7).eval()
    x = torch.randn(3, 2, 5)
    with torch.inference_mode():
        torch.testing.assert_close(freeze(layer)(x)[0], unfreeze(copy.deepcopy(layer))(x)[0])
