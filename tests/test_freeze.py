"""fusedlstm.freeze: the same numbers from weights prepared once, and no change of them that goes unnoticed."""

import copy
import pickle

import pytest
import torch
from family import LSTM, every, tensors_of
from frozen_layers import assert_same, pair
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune, vector_to_parameters
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations
from torch.nn.utils.rnn import pack_sequence

from fusedlstm import FusedGRU, FusedLSTM, FusedLSTMCell, FusedRNNCell, convert, freeze, revert, unfreeze

CHANGES = {
    "in place": lambda layer: layer.weight_hh_l0.mul_(2),
    "other data": lambda layer: setattr(layer.weight_hh_l0, "data", torch.ones(28, 7)),
    "from a vector": lambda layer: vector_to_parameters(torch.ones(28 * 14), layer.parameters()),
    "replaced": lambda layer: setattr(layer, "bias_ih_l0", nn.Parameter(torch.ones(28))),
    "a buffer": lambda layer: (delattr(layer, "bias_ih_l0"), layer.register_buffer("bias_ih_l0", torch.ones(28))),
    "parametrized": lambda layer: weight_norm(layer, "weight_hh_l0"),
    "initialized": lambda layer: layer.reset_parameters(),
}


class TestRefuses:
    @pytest.fixture
    def frozen(self):
        return freeze(nn.Sequential(FusedLSTM(5, 7), nn.Identity()).eval())

    def test_training_mode(self, frozen):
        with pytest.raises(RuntimeError, match=r"expected evaluation mode, got training mode; call model\.eval\(\)"):
            frozen.train()(torch.randn(3, 2, 5))

    @pytest.mark.parametrize("place", ["input", "packed input", "state", "listed state"])
    def test_gradients(self, frozen, place):
        layer, x, state = frozen[0], torch.randn(3, 2, 5), torch.zeros(1, 2, 7)
        (state if place.endswith("state") else x).requires_grad_()
        input = pack_sequence([x[:, 0], x[:, 1]]) if place == "packed input" else x
        states = (list if place == "listed state" else tuple)((torch.zeros(1, 2, 7), state))
        with pytest.raises(RuntimeError, match="expected arguments without gradients, got one that requires them"):
            layer(input, states)
        with torch.no_grad():
            layer(input, states)
        assert not frozen(torch.randn(3, 2, 5))[0].requires_grad

    def test_state_dicts(self, frozen):
        state = frozen.state_dict()
        with pytest.raises(RuntimeError, match=r"Expected 0 as it was before fusedlstm\.freeze, got it frozen"):
            frozen.load_state_dict(state)
        unfreeze(frozen).load_state_dict(state)
        nn.Sequential(nn.LSTM(5, 7), nn.Identity()).load_state_dict(state)

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    @pytest.mark.parametrize("is_called_before", [False, True])
    def test_changed_weights(self, frozen, change, is_called_before):
        layer, x = frozen[0], torch.randn(3, 2, 5)
        if is_called_before:
            layer(x)
        with torch.no_grad():
            change(layer)
        with pytest.raises(RuntimeError, match="expected the weights that it was frozen with, got"):
            layer(x)
        with torch.no_grad():
            assert_same(freeze(unfreeze(frozen))[0](x), unfreeze(frozen)[0](x), atol=1e-6)

    def test_other_weights_for_one_call(self, frozen):
        layer, x = frozen[0], torch.randn(3, 2, 5)
        with pytest.raises(RuntimeError, match="expected the weights that it was frozen with, got another one"):
            functional_call(layer, {"weight_ih_l0": torch.ones(28, 5)}, x)
        layer(x)

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


class TestCopies:
    """Are frozen too, and of their own weights."""

    @pytest.fixture
    def both(self, served):  # which sees what is frozen after it
        return pair(LSTM, 5, 7, num_layers=2)

    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deep", "shallow", "pickle"]
    )
    def test_run(self, both, copied, served):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        other = copied(frozen)
        assert_same(other(x), frozen(x))
        assert served == ["lstm_layer_frozen"] * 4
        with torch.no_grad():
            assert_same(unfreeze(other)(x), layer(x))

    def test_bytes_are_not_in_pickles(self, both):
        layer, frozen = both
        frozen(torch.randn(1, 1, 5))
        assert len(pickle.dumps(frozen)) < len(pickle.dumps(layer)) + 200

    def test_are_cast(self, both, served):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        with torch.no_grad():
            assert_same(frozen.double()(x.double()), layer.double()(x.double()))
        assert served == ["lstm_layer_frozen"] * 2

    def test_revert_and_convert_leave_it_plain(self, both):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        frozen(x)
        plain = revert(frozen)
        assert type(plain) is nn.LSTM
        again = convert(plain)
        with torch.no_grad():
            assert_same(again(x), layer(x))
        assert again(x)[0].requires_grad and "frozen" in repr(frozen) and "frozen" not in repr(again)


class TestTraced:
    """In graphs and under transforms the weights are used as they were before."""

    @pytest.fixture(params=[1, 2])
    def both(self, request):
        return pair(LSTM, 5, 7, num_layers=request.param)

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
        for strict in (False, True):
            program = torch.export.export(frozen, (x,), strict=strict)
            with torch.no_grad():
                assert_same(program.module()(x), layer(x))
            assert "frozen" not in str(program.graph) and set(program.state_dict) == set(layer.state_dict())

    @every
    def test_a_compiled_cell(self, member):
        cell = member.one_step(5, 7).eval()
        x = torch.randn(3, 5)
        with torch.no_grad():
            expected = cell(x)
        found = torch.compile(freeze(cell), fullgraph=True, backend="aot_eager")(x)
        for a, b in zip(tensors_of(found), tensors_of(expected), strict=True):
            assert torch.equal(a, b) and not a.requires_grad

    def test_traced(self, both):
        layer, frozen = both
        x = torch.randn(9, 8, 5)
        with pytest.warns(UserWarning, match="records fusedlstm's operators"):
            traced = torch.jit.trace(frozen, (x,))
        with torch.no_grad():
            assert_same(traced(x), layer(x))
            assert_same(torch.fx.symbolic_trace(frozen)(x), layer(x))

    def test_transformed(self, both):
        layer, frozen = both
        x = torch.randn(3, 9, 8, 5)
        with torch.no_grad():
            assert_same(vmap(frozen)(x), vmap(layer)(x))
            forward = [jvp(lambda x, m=m: m(x)[0], (x[0],), (x[1],)) for m in (layer, frozen)]
        assert all(map(torch.equal, *forward))

    def test_with_fake_tensors(self, both):
        _, frozen = both
        x = torch.randn(9, 8, 5)
        for module in (frozen, copy.deepcopy(frozen)):
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                outputs = module(x)[0], module(mode.from_tensor(x))[0]
            assert all(y.shape == (9, 8, 7) and not y.requires_grad for y in outputs)
            assert "frozen" not in str(make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x).graph)
        with FakeTensorMode():
            assert freeze(FusedLSTM(5, 7).eval())(torch.randn(9, 8, 5))[0].shape == (9, 8, 7)

    def test_compiled_refuses_gradients_too(self, both):
        _, frozen = both
        with pytest.raises(RuntimeError, match="expected arguments without gradients"):
            torch.compile(frozen, backend="aot_eager")(torch.randn(9, 8, 5, requires_grad=True))

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


class TestParametrized:
    @pytest.fixture
    def layer(self):
        return weight_norm(FusedLSTM(5, 7), "weight_hh_l0").eval()

    def test_weights_are_computed_once(self, layer):
        x = torch.randn(9, 8, 5)
        with torch.no_grad():
            expected = layer(x)
        calls = []
        layer.parametrizations.weight_hh_l0.register_forward_hook(lambda *_: calls.append(1))
        freeze(layer)
        for _ in range(3):
            assert_same(layer(x), expected)
        assert len(calls) == 1

    @pytest.mark.parametrize(
        "change",
        [
            lambda layer: layer.parametrizations.weight_hh_l0.original0.mul_(2),
            lambda layer: setattr(layer.parametrizations.weight_hh_l0, "original1", nn.Parameter(torch.ones(28, 7))),
            lambda layer: weight_norm(layer, "weight_ih_l0"),
            lambda layer: remove_parametrizations(layer, "weight_hh_l0"),
        ],
        ids=["in place", "replaced", "another", "removed"],
    )
    def test_changes_are_refused(self, layer, change):
        freeze(layer)
        with torch.no_grad():
            change(layer)
        with pytest.raises(RuntimeError, match="expected the weights that it was frozen with, got"):
            layer(torch.randn(9, 8, 5))

    def test_autocast_does_not_reach_the_weights(self):
        layer = orthogonal(FusedLSTM(5, 7), "weight_hh_l0").eval()
        x = torch.randn(9, 8, 5)
        with torch.no_grad():
            expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            freeze(layer)(x)
            copied = copy.deepcopy(layer)
            copied(x)
        assert_same(layer(x), expected)
        assert_same(copied(x), expected)


@pytest.mark.parametrize("kind", ["tensor", "buffer", "pruned"])
def test_weights_that_are_no_parameters_are_used_as_they_are(kind, served):
    layer, x = FusedGRU(5, 7).eval(), torch.randn(9, 8, 5)
    weight = layer.weight_hh_l0.detach().clone()
    if kind == "pruned":
        prune.l1_unstructured(layer, "weight_hh_l0", 0.2)
    else:
        del layer.weight_hh_l0
        if kind == "buffer":
            layer.register_buffer("weight_hh_l0", weight)
        else:
            layer.weight_hh_l0 = weight
    freeze(layer)
    with torch.no_grad():
        before = layer(x)
        (layer.weight_hh_l0_mask if kind == "pruned" else weight).zero_()
        assert not torch.equal(layer(x)[0], before[0])
        assert_same(layer(x), unfreeze(copy.deepcopy(layer))(x))
    assert served == []


def test_names_of_subclasses_do_not_matter():
    class Tagger(nn.LSTM):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self._frozen = self.frozen = False
            self.head = nn.Linear(7, 2)

    tagger, x = convert(nn.Sequential(Tagger(5, 7)), subclasses=True).eval(), torch.randn(9, 8, 5)
    expected = freeze(tagger)(x)
    with torch.no_grad():
        tagger[0].head.weight.zero_()  # which is none of the layer's own
    assert_same(tagger(x), expected)
    assert revert(tagger)[0]._frozen is False


def test_what_no_kernel_takes_is_left_to_the_call():
    assert freeze(FusedLSTMCell(5, 0).eval())(torch.randn(2, 5))[0].shape == (2, 0)
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: sin"):
        freeze(FusedRNNCell(5, 7, nonlinearity="sin").eval())(torch.randn(2, 5))
    mixed = FusedLSTM(5, 7).eval()
    mixed.weight_hh_l0.data = mixed.weight_hh_l0.data.double()
    with pytest.raises(RuntimeError, match=r"weight_hh_l0.*float64"):
        freeze(mixed)(torch.randn(9, 8, 5))


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
