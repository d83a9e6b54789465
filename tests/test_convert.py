"""convert and revert: the same parameters, hooks and options in a module of the other type."""

import abc
import copy
import pickle
import warnings

import pytest
import torch
from family import every
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from fusedlstm import FusedLSTM, FusedLSTMCell, convert, revert


class Doubled(nn.LSTM):
    """A subclass with an option, a method and a forward of its own, and an older spelling of super."""

    def __init__(self, *sizes, factor=2.0, **options):
        super().__init__(*sizes, **options)
        self.factor = factor

    def zero_state(self, B):
        return (torch.zeros(self.num_layers, B, self.hidden_size, dtype=self.weight_ih_l0.dtype),) * 2

    def forward(self, input, hx=None):
        hx = self.zero_state(input.size(1)) if hx is None else hx
        output, state = super(Doubled, self).forward(input, hx)  # noqa: UP008
        return self.factor * output, state


class NamedCell(nn.LSTMCell):
    def name(self):
        return "cell"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4, 2, batch_first=True, dropout=0.25))
        self.cells = nn.ModuleList([nn.LSTMCell(4, 4), nn.LSTMCell(4, 4)])

    def forward(self, x):
        output, _ = self.encoder(x)
        state = None
        for cell in self.cells:
            state = cell(output[:, -1], state)
        return output, state[0]


def test_there_and_back():
    model, x = Model().eval(), torch.randn(2, 5, 3)
    expected = model(x)
    parameters = dict(model.named_parameters())
    description = repr(model)
    assert convert(model) is model
    assert type(model.encoder[1]) is FusedLSTM and type(model.cells[0]) is FusedLSTMCell
    assert not model.encoder[1].training and model.encoder[1].dropout == 0.25
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    for actual, e in zip(model(x), expected):
        torch.testing.assert_close(actual, e, rtol=0, atol=1e-6)
    assert revert(model) is model
    assert repr(model) == description and type(model.encoder[1]) is nn.LSTM
    for actual, e in zip(model(x), expected):
        assert torch.equal(actual, e)
    assert all(p is parameters[name] for name, p in model.named_parameters())


@every
def test_a_layer_itself(member):
    plain = member.plain(3, 4)
    fused = convert(plain)
    assert type(fused) is member.layer.func and fused.weight_ih_l0 is plain.weight_ih_l0
    assert type(revert(fused)) is member.plain.func
    linear = nn.Linear(1, 1)
    assert convert(linear) is linear


@every
def test_an_optimizer_made_before_goes_on(member):
    model = nn.ModuleList([member.plain(3, 4)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model[0].weight_ih_l0.detach().clone()
    convert(model)[0](torch.randn(5, 2, 3))[0].sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight_ih_l0, before)


@every
def test_shared_module_stays_shared(member):
    layer = member.plain(3, 3)
    model = convert(nn.ModuleDict({"a": layer, "b": layer}))
    assert model["a"] is model["b"] and type(model["a"]) is member.layer.func


@every
def test_hooks_attributes_and_frozen_parameters(member):
    layer, calls = member.plain(3, 4), []
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_forward_pre_hook(lambda *_: calls.append("pre"))
    layer.note = "mine"
    layer.weight_ih_l0.requires_grad_(False)
    fused = convert(layer)
    fused(torch.randn(5, 2, 3))
    assert calls == ["pre", "forward"] and fused.note == "mine"
    assert not fused.weight_ih_l0.requires_grad


@every
def test_parametrizations(member):
    layer = member.plain(3, 4, dtype=torch.float64)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = layer(x)[0]
    model = convert(nn.Sequential(layer))
    assert parametrize.is_parametrized(model[0], "weight_hh_l0")
    assert isinstance(model[0], member.layer.func)
    torch.testing.assert_close(model(x)[0], expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(copy.deepcopy(model)(x)[0], expected, rtol=0, atol=1e-14)
    back = revert(model)[0]
    assert isinstance(back, member.plain.func) and parametrize.is_parametrized(back, "weight_hh_l0")
    torch.testing.assert_close(back(x)[0], expected, rtol=0, atol=1e-14)
    parametrize.remove_parametrizations(back, "weight_hh_l0")
    assert type(back) is member.plain.func


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@every
def test_dtype_and_meta_device_are_kept(member, dtype):
    fused = convert(member.plain(3, 4, dtype=dtype, device="meta"))
    assert fused.weight_ih_l0.is_meta and fused.weight_ih_l0.dtype == dtype


class TestSubclasses:
    def converted(self, *, dtype=torch.float64):
        lstm = Doubled(3, 4, dtype=dtype)
        return lstm, convert(nn.Sequential(lstm), subclasses=True)

    def test_run_their_own_code_on_the_fused_layer(self):
        plain, model = self.converted()
        fused, x = model[0], torch.randn(5, 2, 3, dtype=torch.float64)
        assert isinstance(fused, Doubled) and isinstance(fused, FusedLSTM) and not isinstance(fused, nn.LSTM)
        with torch.profiler.profile() as profile, torch.no_grad():
            actual = fused(x)
        assert any("fusedlstm::" in event.key for event in profile.key_averages())
        torch.testing.assert_close(actual, plain(x), rtol=0, atol=1e-14)
        assert fused.weight_ih_l0 is plain.weight_ih_l0 and fused.factor == 2.0
        fused.load_state_dict(plain.state_dict())

    def test_of_one_type_become_one_type(self):
        model = convert(nn.ModuleList([Doubled(3, 4), Doubled(3, 4)]), subclasses=True)
        assert type(model[0]) is type(model[1]) and type(model[0]).__name__ == "FusedDoubled"
        assert isinstance(type(model[0])(3, 4, factor=3.0), FusedLSTM)

    def test_there_and_back(self):
        plain, model = self.converted()
        assert type(revert(model)[0]) is Doubled
        x = torch.randn(5, 2, 3, dtype=torch.float64)
        assert torch.equal(model[0](x)[0], plain(x)[0])
        cell = convert(NamedCell(3, 4), subclasses=True)
        assert isinstance(cell, FusedLSTMCell) and cell.name() == "cell" and type(revert(cell)) is NamedCell

    def test_are_copied_and_pickled(self):
        _, model = self.converted()
        x = torch.randn(5, 2, 3, dtype=torch.float64)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
            assert type(other[0]) is type(model[0])
            assert torch.equal(other[0](x)[0], model[0](x)[0])
        assert copy.deepcopy(model)[0].weight_ih_l0 is not model[0].weight_ih_l0

    def test_keep_hooks_and_parametrizations(self):
        lstm, calls = Doubled(3, 4, dtype=torch.float64), []
        lstm.register_forward_hook(lambda *_: calls.append("hook"))
        parametrizations.weight_norm(lstm, "weight_hh_l0")
        x = torch.randn(5, 2, 3, dtype=torch.float64)
        expected = lstm(x)[0]
        model = convert(nn.Sequential(lstm), subclasses=True)
        assert isinstance(model[0], FusedLSTM) and parametrize.is_parametrized(model[0], "weight_hh_l0")
        for module in (model[0], copy.deepcopy(model[0])):
            torch.testing.assert_close(module(x)[0], expected, rtol=0, atol=1e-14)
        assert calls == ["hook"] * 3
        assert isinstance(revert(model)[0], nn.LSTM)
        parametrize.remove_parametrizations(model[0], "weight_hh_l0")
        assert type(model[0]) is Doubled

    def test_with_base_classes_and_a_metaclass_of_their_own(self):
        class Mixin(abc.ABC):
            @abc.abstractmethod
            def label(self): ...

        class Labelled(Doubled, Mixin):
            def label(self):
                return "mine"

        fused = convert(Labelled(3, 4), subclasses=True)
        assert isinstance(fused, Labelled) and isinstance(fused, Mixin) and fused.label() == "mine"
        assert isinstance(fused, FusedLSTM) and not isinstance(fused, nn.LSTM)

    def test_see_later_changes_of_their_base_classes(self, monkeypatch):
        _, model = self.converted()
        model(torch.randn(5, 2, 3, dtype=torch.float64))  # fills the caches of type lookups
        monkeypatch.setattr(FusedLSTM, "forward", lambda *arguments: (1.5, "state"))
        assert model(torch.randn(5, 2, 3, dtype=torch.float64)) == (3.0, "state")

    def test_compile_in_one_graph(self):
        _, model = self.converted()
        x = torch.randn(5, 2, 3, dtype=torch.float64)
        actual = torch.compile(model, fullgraph=True, backend="eager")(x)
        torch.testing.assert_close(actual, model(x), rtol=0, atol=0)


class TestWhatIsLeft:
    """Nothing is left in silence: one warning for each call has all of it."""

    class OwnLoop(nn.LSTM):
        def forward(self, x):
            return x

    class Checked(nn.LSTM):
        def check_forward_args(self, *arguments):
            raise ValueError("never good enough")

    def check(self, model, *lines, function=convert, **options):
        types = [type(module) for module in model.modules()]
        with pytest.warns(UserWarning, match=f"fusedlstm.{function.__name__} left as they are") as warned:
            function(model, **options)
        assert len(warned) == 1 and warned[0].filename == __file__
        assert str(warned[0].message).splitlines()[1:] == [f"  {line}" for line in lines]
        return types

    def test_of_all_kinds(self):
        patched = nn.LSTM(3, 4)
        patched.forward = lambda x: x
        model = nn.ModuleDict(
            {
                "own": nn.Sequential(self.OwnLoop(3, 4)),
                "checked": self.Checked(3, 4),
                "named": NamedCell(3, 4),
                "patched": patched,
                "plain": nn.LSTM(3, 4),
            }
        )
        types = self.check(
            model,
            "own.0 (OwnLoop): a subclass of nn.LSTM whose forward does not call super().forward",
            "checked (Checked): a subclass of nn.LSTM that overrides check_forward_args, not called by FusedLSTM",
            "named (NamedCell): a subclass of nn.LSTMCell; convert(model, subclasses=True) replaces it",
            "patched (LSTM): its forward was set on the instance, and is bound to it",
        )
        assert [type(module) for module in model.modules()] == [*types[:-1], FusedLSTM]

    def test_of_subclasses_on_request(self):
        model = nn.Sequential(self.OwnLoop(3, 4), self.Checked(3, 4), NamedCell(3, 4))
        self.check(
            model,
            "0 (OwnLoop): a subclass of nn.LSTM whose forward does not call super().forward",
            "1 (Checked): a subclass of nn.LSTM that overrides check_forward_args, not called by FusedLSTM",
            subclasses=True,
        )
        assert [type(module).__name__ for module in model] == ["OwnLoop", "Checked", "FusedNamedCell"]

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
    def test_after_torch_jit(self):
        scripted = torch.jit.script(nn.Sequential(nn.LSTM(3, 4)))
        self.check(scripted, "0 (LSTM): compiled by TorchScript; replace it in the model that was compiled")

    def test_the_model_itself(self):
        self.check(
            self.OwnLoop(3, 4),
            "the model itself (OwnLoop): a subclass of nn.LSTM whose forward does not call super().forward",
        )

    def test_of_an_lstm_that_runs_with_other_tensors(self):
        """As weight dropout by hand makes it: nn.LSTM's forward runs with this list, not with its parameters."""
        model = nn.Sequential(nn.LSTM(3, 4))
        model[0]._flat_weights[1] = torch.zeros(16, 4)
        self.check(model, "0 (LSTM): its _flat_weights hold other tensors than its parameters")

    def test_by_revert(self):
        class Own(FusedLSTM):
            pass

        model = nn.Sequential(Own(3, 4), FusedLSTM(3, 4))
        self.check(
            model,
            "0 (Own): a subclass of FusedLSTM; derive it from nn.LSTM where it is to be reverted, and use "
            "convert(model, subclasses=True)",
            function=revert,
        )
        assert type(model[0]) is Own and type(model[1]) is nn.LSTM

    @pytest.mark.parametrize("function", [convert, revert])
    def test_and_nothing_is_said_where_nothing_is(self, function):
        model = Model()
        if function is revert:
            convert(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function(function(model))
