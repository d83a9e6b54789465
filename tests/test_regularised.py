"""Weight dropout, forget bias and initial values: against what the papers' loops in plain PyTorch say."""

import copy
import math
import pickle

import pytest
import torch
from family import EVERY, every, tensors_of
from torch import nn
from torch.func import functional_call, vmap

from fusedlstm import FusedGRU, FusedLSTM, FusedLSTMCell, FusedRNN, convert, freeze, functional, init, quantize, revert

OPTIONS = {"plain": {}, "stack in both directions": {"num_layers": 2, "bidirectional": True}}


def dropped(module, seed):
    """The module's parameters as a call with this seed runs with them."""
    torch.manual_seed(seed)
    return {
        name: torch.dropout(weight, module.weight_dropout, True) if name.startswith("weight_hh") else weight
        for name, weight in module.named_parameters()
    }


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@every
def test_weight_dropout(member, options):
    """One mask for each weight_hh and call, drawn from PyTorch's generator; gradients reach what the mask leaves."""
    fused, plain = member.pair(4, 6, **options)
    fused.weight_dropout = 0.5
    x = torch.randn(7, 3, 4)
    torch.manual_seed(1)
    output, hx = fused(x)
    expected = functional_call(plain, dropped(fused, 1), (x,))
    torch.testing.assert_close(tensors_of((output, hx)), tensors_of(expected))
    found, wanted = (torch.autograd.grad(of.sum(), list(fused.parameters())) for of in (output, expected[0]))
    torch.testing.assert_close(found, wanted)
    d_weight = dict(zip(dict(fused.named_parameters()), found))["weight_hh_l0"]
    masked = dropped(fused, 1)["weight_hh_l0"] == 0
    assert 0 < masked.sum() < masked.numel() and d_weight[masked].eq(0).all() and d_weight[~masked].ne(0).any()


@every
def test_weight_dropout_is_of_training_alone(member):
    """The parameters stay as they are, masks differ from call to call, and in evaluation there are none."""
    module = member.layer(4, 6, weight_dropout=0.3)
    before = copy.deepcopy(module.state_dict())
    x = torch.randn(7, 3, 4)
    first, second = module(x)[0], module(x)[0]
    assert not torch.equal(first, second)
    assert list(module.state_dict()) == list(member.plain(4, 6).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.eval()
    plain = member.plain(4, 6)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x)[0], plain(x)[0])
    assert torch.equal(module(x)[0], module(x)[0])


def test_reproducible_from_a_seed():
    module, x = FusedLSTM(4, 6, 2, weight_dropout=0.3, dropout=0.2), torch.randn(7, 3, 4)
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(module(x)[0])
    assert torch.equal(*outputs)


def test_functional():
    module = FusedLSTM(4, 6, 2, bidirectional=True, weight_dropout=0.4)
    x = torch.randn(7, 3, 4)
    torch.manual_seed(1)
    expected = module(x)[0]
    torch.manual_seed(1)
    arguments = {"bidirectional": True, "training": True}
    output, _ = functional.lstm(x, None, module.all_weights, weight_dropout=0.4, **arguments)
    assert torch.equal(output, expected)
    assert torch.equal(
        functional.lstm(x, None, module.all_weights, weight_dropout=0.4, bidirectional=True)[0],
        functional.lstm(x, None, module.all_weights, **arguments)[0],
    )


def test_weight_dropout_compiled():
    """One node for the layer, the mask beside it; each call draws."""
    module = FusedLSTM(4, 6, weight_dropout=0.5)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(7, 3, 4)
    torch.manual_seed(1)
    expected = module(x)[0]
    torch.manual_seed(1)
    assert torch.equal(compiled(x)[0], expected)
    assert not torch.equal(compiled(x)[0], expected)


def test_weight_dropout_with_lengths_and_vmap():
    module, x = FusedGRU(4, 6, weight_dropout=0.5), torch.randn(7, 3, 4)
    torch.manual_seed(1)
    expected = module(x)[0]
    torch.manual_seed(1)
    assert torch.equal(module(x, lengths=torch.full((3,), 7))[0], expected)
    torch.manual_seed(1)
    one_mask = vmap(lambda x: module(x)[0], randomness="same")(torch.stack([x, x]))
    torch.testing.assert_close(one_mask, torch.stack([expected, expected]))


def test_is_shown_and_kept():
    module = FusedLSTM(4, 6, weight_dropout=0.5, forget_bias=1)
    assert repr(module) == "FusedLSTM(4, 6, weight_dropout=0.5)"
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.weight_dropout == 0.5 and other.forget_bias == 1
    assert repr(FusedLSTM(4, 6)) == "FusedLSTM(4, 6)" and "weight_dropout" not in vars(FusedLSTM(4, 6))


def test_convert_and_revert():
    """A converted layer is the plain one; PyTorch's has no such option, and is not made of one that uses it."""
    assert convert(nn.LSTM(4, 6)).weight_dropout == 0
    module = nn.Sequential(FusedLSTM(4, 6, weight_dropout=0.5))
    with pytest.warns(UserWarning, match="weight_dropout is 0.5, which PyTorch's layers have none of"):
        assert type(revert(module)[0]) is FusedLSTM
    module[0].weight_dropout = 0.0
    assert type(revert(module)[0]) is nn.LSTM


@pytest.mark.parametrize("prepare", [freeze, quantize])
def test_prepared_for_inference(prepare):
    module, x = FusedLSTM(4, 6, weight_dropout=0.5).eval(), torch.randn(7, 3, 4)
    plain = FusedLSTM(4, 6).eval()
    plain.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert torch.equal(prepare(module)(x)[0], prepare(plain)(x)[0])


@pytest.mark.parametrize("member", EVERY, ids=str)
@pytest.mark.parametrize(
    ("value", "error"),
    [(1.0, ValueError), (-0.1, ValueError), (math.nan, ValueError), ("a", TypeError), (True, TypeError)],
)
def test_bad_probability(member, value, error):
    with pytest.raises(error, match="weight_dropout: Expected"):
        member.layer(4, 6, weight_dropout=value)
    with pytest.raises(error, match="weight_dropout: Expected"):
        functional.lstm(torch.randn(1, 1, 4), None, FusedLSTM(4, 6).all_weights, weight_dropout=value)


def test_malformed_weights_are_refused_as_without():
    """By what they lack, whatever they are divided by first."""
    module, x = FusedLSTM(4, 6, weight_dropout=0.5), torch.randn(7, 3, 4)
    module.num_layers = 9
    with pytest.raises(RuntimeError, match="4 weights for each of 9 layers x 1 directions, got 4"):
        module(x)
    module.num_layers, module.weight_hh_l0 = 1, None
    with pytest.raises(TypeError, match="weight_hh_l0 to be a Tensor, got NoneType"):
        module(x)


# Initial values


def test_forget_bias():
    """nn.LSTM's initial values, and one added in one place; also when parameters are initialised again."""
    torch.manual_seed(2)
    plain = nn.LSTM(4, 6, 2, bidirectional=True)
    torch.manual_seed(2)
    module = FusedLSTM(4, 6, 2, bidirectional=True, forget_bias=1.5)
    for _ in range(2):
        for (name, own), expected in zip(module.named_parameters(), plain.parameters()):
            expected = expected.detach().clone()
            if name.startswith("bias_ih"):
                expected[6:12] += 1.5
            assert torch.equal(own, expected), name
        torch.manual_seed(2)
        module.reset_parameters()
    with pytest.raises(ValueError, match="forget_bias: Expected 0 with bias=False, got 1"):
        FusedLSTM(4, 6, bias=False, forget_bias=1)
    with pytest.raises(TypeError, match="forget_bias"):
        FusedGRU(4, 6, forget_bias=1)
    with pytest.raises(TypeError, match="forget_bias: Expected a number, got str"):
        FusedLSTM(4, 6, forget_bias="1")


def test_a_subclass_may_have_the_name_for_something_else():
    class Own(FusedLSTM):
        forget_bias = nn.Identity()

    assert isinstance(Own(4, 6, forget_bias=2.0).forget_bias, nn.Identity)
    module = FusedLSTM(4, 6, forget_bias=2.0)
    module.forget_bias = 3.0
    torch.manual_seed(2)
    module.reset_parameters()
    torch.manual_seed(2)
    assert torch.equal(module.bias_ih_l0, FusedLSTM(4, 6, forget_bias=3.0).bias_ih_l0)


@pytest.mark.parametrize(
    "module",
    [FusedLSTM(4, 6, 2), nn.LSTM(4, 6), FusedGRU(4, 6, bidirectional=True), FusedRNN(4, 6), FusedLSTMCell(4, 6)],
    ids=lambda module: type(module).__name__,
)
def test_orthogonal(module):
    before = copy.deepcopy(module.state_dict())
    assert init.orthogonal_(module, gain=2) is module
    for name, weight in module.named_parameters():
        if not name.startswith("weight_hh"):
            assert torch.equal(weight, before[name])
            continue
        for block in weight.split(6):
            torch.testing.assert_close(block @ block.T, 4 * torch.eye(6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("module", [FusedLSTM(4, 300, 2), nn.GRU(4, 300), FusedLSTMCell(4, 300)], ids=str)
def test_chrono(module):
    """Times of forgetting, 1 / (1 - sigmoid(b)), are uniform between 2 and the longest."""
    assert init.chrono_(module, longest=50) is module
    for name, bias in module.named_parameters():
        if name.startswith("weight"):
            continue
        i, f, *others = bias.split(300)
        if name.startswith("bias_hh"):
            assert bias.eq(0).all()
            continue
        assert all(other.eq(0).all() for other in others)
        times = 1 / (1 - f.sigmoid())
        assert 2 <= times.min() < 4 and 46 < times.max() <= 50 and abs(times.mean() - 26) < 4
        assert torch.equal(i, -f) if "LSTM" in type(module).__name__ else i.eq(0).all()


def test_initial_values_refuse():
    with pytest.raises(TypeError, match="Expected an LSTM or a GRU, got FusedRNN"):
        init.chrono_(FusedRNN(4, 6), 10)
    with pytest.raises(ValueError, match="Expected longest > 2, got 2"):
        init.chrono_(FusedLSTM(4, 6), 2)
    with pytest.raises(ValueError, match="got bias=False"):
        init.chrono_(FusedLSTM(4, 6, bias=False), 10)
    with pytest.raises(TypeError, match="Expected a recurrent layer or cell, got Linear"):
        init.orthogonal_(nn.Linear(4, 6))
