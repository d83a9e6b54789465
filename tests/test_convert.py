"""convert and revert: the same parameters, hooks and options in a module of the other type."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from fusedlstm import FusedLSTM, FusedLSTMCell, convert, revert


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


def test_an_lstm_itself():
    plain = nn.LSTM(3, 4)
    fused = convert(plain)
    assert type(fused) is FusedLSTM and fused.weight_ih_l0 is plain.weight_ih_l0
    assert type(revert(fused)) is nn.LSTM
    linear = nn.Linear(1, 1)
    assert convert(linear) is linear


def test_an_optimizer_made_before_goes_on():
    model = nn.ModuleList([nn.LSTM(3, 4)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model[0].weight_ih_l0.detach().clone()
    convert(model)[0](torch.randn(5, 2, 3))[0].sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight_ih_l0, before)


def test_shared_module_stays_shared():
    lstm = nn.LSTM(3, 3)
    model = convert(nn.ModuleDict({"a": lstm, "b": lstm}))
    assert model["a"] is model["b"] and type(model["a"]) is FusedLSTM


def test_subclasses_are_left_alone():
    class Mine(nn.LSTM):
        def forward(self, x):
            return x

    model = convert(nn.Sequential(Mine(3, 4)))
    assert type(model[0]) is Mine


def test_hooks_attributes_and_frozen_parameters():
    lstm, calls = nn.LSTM(3, 4), []
    lstm.register_forward_hook(lambda *_: calls.append("forward"))
    lstm.register_forward_pre_hook(lambda *_: calls.append("pre"))
    lstm.note = "mine"
    lstm.weight_ih_l0.requires_grad_(False)
    fused = convert(lstm)
    fused(torch.randn(5, 2, 3))
    assert calls == ["pre", "forward"] and fused.note == "mine"
    assert not fused.weight_ih_l0.requires_grad


def test_parametrizations():
    lstm = nn.LSTM(3, 4, dtype=torch.float64)
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = lstm(x)[0]
    model = convert(nn.Sequential(lstm))
    assert parametrize.is_parametrized(model[0], "weight_hh_l0")
    assert isinstance(model[0], FusedLSTM)
    torch.testing.assert_close(model(x)[0], expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(copy.deepcopy(model)(x)[0], expected, rtol=0, atol=1e-14)
    back = revert(model)[0]
    assert isinstance(back, nn.LSTM) and parametrize.is_parametrized(back, "weight_hh_l0")
    torch.testing.assert_close(back(x)[0], expected, rtol=0, atol=1e-14)
    parametrize.remove_parametrizations(back, "weight_hh_l0")
    assert type(back) is nn.LSTM


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_and_meta_device_are_kept(dtype):
    fused = convert(nn.LSTM(3, 4, dtype=dtype, device="meta"))
    assert fused.weight_ih_l0.is_meta and fused.weight_ih_l0.dtype == dtype
