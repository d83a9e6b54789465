"""Layers with variants of the recurrence, against the papers' formulas and in all that is around a call."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from family import EVERY, tensors_of
from torch import nn
from torch.func import functional_call, grad, vmap
from varied_loops import run_loop

from fusedlstm import FusedGRU, FusedLSTM, FusedRNN, convert, freeze, functional, revert
from fusedlstm._variants import Variants, masks_of

STATES = {"recurrent_dropout": 0.4, "zoneout": 0.3}
OPTIONS = {
    "recurrent dropout": {"recurrent_dropout": 0.4},
    "recurrent dropout per step": {"recurrent_dropout": 0.4, "recurrent_dropout_per_step": True},
    "zoneout": {"zoneout": 0.3},
    "both": STATES,
}
OF_LSTM = {
    **OPTIONS,
    "zoneout of c": {"zoneout": (0.0, 0.5)},
    "peephole": {"peephole": True},
    "layer norm": {"layer_norm": True, "layer_norm_eps": 1e-3},
    "all": {**STATES, "zoneout": (0.2, 0.4), "peephole": True, "layer_norm": True},
}
OF_GRU = {**OPTIONS, "layer norm": {"layer_norm": True}, "all": {**STATES, "layer_norm": True}}
OF = {"lstm": OF_LSTM, "gru": OF_GRU, "rnn_tanh": OPTIONS, "rnn_relu": OPTIONS}
CASES = [(member, name) for member in EVERY for name in OF[member.cell]]
cases = pytest.mark.parametrize(("member", "name"), CASES, ids=[f"{member}-{name}" for member, name in CASES])


def drawn(member, module, x, seed):
    """The masks of a call of one layer with this seed."""
    torch.manual_seed(seed)
    T, B, _ = x.shape
    states = 2 if member.cell == "lstm" else 1
    return masks_of(Variants.of(module), states, T, B, module.hidden_size, module.training, x)


def by_kind(module):
    return {name.removesuffix("_l0"): parameter for name, parameter in module.named_parameters()}


def moved(module):
    """With parameters away from their initial values, of which some are ones and zeros."""
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
@cases
def test_formulas(member, name, training, bias, device):
    """Values and every gradient are those of the loop by hand, in training and in evaluation."""
    module = member.layer(4, 6, bias=bias, dtype=torch.float64, **OF[member.cell][name])
    module = moved(module).to(device).train(training)
    x = torch.randn(7, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    mask, zoneout = drawn(member, module, x.detach(), 1)
    expected = run_loop(member.cell, by_kind(module), x, mask, zoneout, module.layer_norm_eps)
    torch.manual_seed(1)
    found = module(x)
    torch.testing.assert_close(
        [t.squeeze(0) if t.dim() == 3 and len(t) == 1 else t for t in tensors_of(found)], tensors_of(expected),
        rtol=1e-11, atol=1e-11,
    )  # fmt: skip
    inputs = [x, *module.parameters()]
    cotangents = [torch.randn_like(t) for t in tensors_of(expected)]
    of_loop = torch.autograd.grad(tensors_of(expected), inputs, cotangents)
    cotangents = [u.view_as(t) for u, t in zip(cotangents, tensors_of(found))]
    torch.testing.assert_close(
        torch.autograd.grad(tensors_of(found), inputs, cotangents), of_loop, rtol=1e-9, atol=1e-10
    )


def test_zoneout_keeps_old_values():
    """In training a unit either moves or is exactly what it was; in evaluation it goes a part of the way."""
    module, x = FusedRNN(4, 50, zoneout=0.5), torch.randn(9, 3, 4)
    output, _ = module(x)
    stays = (output[1:] == output[:-1]).double().mean()
    assert abs(stays - 0.5) < 0.1
    assert (module.eval()(x)[0].diff(dim=0) != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_masks_are_the_same_for_every_default_dtype(dtype):
    """In bfloat16 a small probability would be another one."""
    module, x = FusedLSTM(4, 6, recurrent_dropout=0.3, zoneout=0.01), torch.randn(7, 3, 4)
    torch.manual_seed(1)
    expected = module(x)[0]
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(1)
        assert torch.equal(module(x)[0], expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_state_dict_is_the_plain_layers():
    """But for the parameters that layer norm and peepholes add."""
    for member in EVERY:
        module, plain = member.layer(4, 6, 2, bidirectional=True, **STATES), member.plain(4, 6, 2, bidirectional=True)
        plain.load_state_dict(module.state_dict())
        module.load_state_dict(plain.state_dict())
    added = set(FusedLSTM(4, 6, 2, layer_norm=True, peephole=True).state_dict()) - set(nn.LSTM(4, 6, 2).state_dict())
    kinds = {"weight_ch": 18, "gain_ih": 24, "gain_hh": 24, "gain_c": 6, "bias_c": 6}
    assert added == {f"{kind}_l{layer}" for kind in kinds for layer in (0, 1)}
    module = FusedLSTM(4, 6, bidirectional=True, layer_norm=True, peephole=True)
    assert all(getattr(module, f"{kind}_l0_reverse").shape == (length,) for kind, length in kinds.items())
    assert {name for name, _ in FusedGRU(4, 6, layer_norm=True).named_parameters()} - set(
        nn.GRU(4, 6).state_dict()
    ) == {"gain_l0"}


def test_initial_values():
    """nn.LSTM's for what it has; gains one, the bias of c zero, peepholes uniform; the same when initialised again."""
    torch.manual_seed(2)
    plain = nn.LSTM(4, 6)
    torch.manual_seed(2)
    module = FusedLSTM(4, 6, layer_norm=True, peephole=True)
    for name, parameter in plain.named_parameters():
        assert torch.equal(getattr(module, name), parameter), name
    for _ in range(2):
        assert all(getattr(module, f"gain_{of}_l0").eq(1).all() for of in ("ih", "hh", "c"))
        assert module.bias_c_l0.eq(0).all()
        assert 0 < module.weight_ch_l0.abs().max() <= 6**-0.5
        module.reset_parameters()


@pytest.mark.parametrize("member", EVERY, ids=str)
def test_functional_and_seeds(member):
    """The function with the module's weights and the same seed gives its results; another seed gives others."""
    options = OF[member.cell].get("all", STATES)
    module = moved(member.layer(4, 6, 2, bidirectional=True, dropout=0.2, **options))
    x = torch.randn(7, 3, 4)
    function = getattr(functional, member.cell.partition("_")[0])
    nonlinearity = {"nonlinearity": module.nonlinearity} if hasattr(module, "nonlinearity") else {}
    for training in (True, False):
        module.train(training)
        torch.manual_seed(1)
        expected = module(x)
        torch.manual_seed(1)
        found = function(
            x, None, module.all_weights, bidirectional=True, dropout=0.2, training=training, **options, **nonlinearity
        )
        assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))
        assert torch.equal(module(x)[0], expected[0]) is not training


@pytest.mark.parametrize("member", EVERY, ids=str)
def test_arrangements(member, device):
    """Lengths, packed input, batch_first, unbatched input and resets say the same in their own ways."""
    options = {name: value for name, value in OF[member.cell].get("all", STATES).items() if name != "recurrent_dropout"}
    module = moved(member.layer(4, 6, 2, bidirectional=True, dtype=torch.float64, **options)).to(device).eval()
    x, lengths = torch.randn(7, 3, 4, dtype=torch.float64, device=device), torch.tensor([7, 4, 1])
    output, last = module(x, lengths=lengths.to(device))
    packed_output, packed_last = module(nn.utils.rnn.pack_padded_sequence(x, lengths))
    torch.testing.assert_close(nn.utils.rnn.pad_packed_sequence(packed_output)[0], output)
    torch.testing.assert_close(packed_last, last)
    for b, length in enumerate(lengths):
        alone = module(x[:length, b])
        torch.testing.assert_close(alone[0], output[:length, b])
        torch.testing.assert_close(tensors_of(alone[1]), [state[:, b] for state in tensors_of(last)])
    module.batch_first = True
    torch.testing.assert_close(module(x.transpose(0, 1), lengths=lengths.to(device))[0], output.transpose(0, 1))

    one_way = moved(member.layer(4, 6, dtype=torch.float64, **options)).to(device).eval()
    reset = torch.zeros(7, 3, dtype=torch.bool, device=device)
    reset[4] = True
    first, second = one_way(x[:4]), one_way(x[4:])
    torch.testing.assert_close(one_way(x, reset=reset)[0], torch.cat([first[0], second[0]]))
    torch.testing.assert_close(one_way(x[4:], first[1])[0], one_way(x)[0][4:])


@pytest.mark.parametrize("options", [{}, OF_LSTM["all"]], ids=["plain", "all"])
def test_packed_input_whatever_the_default_device(options):
    """Also in forward mode, where a plain layer runs the reference: batch_sizes are on the CPU, and so is all."""
    module, x = FusedLSTM(4, 6, **options), torch.randn(7, 4)
    batch_sizes = torch.tensor([3, 2, 2])
    with torch.device("meta"):
        found = torch.func.jvp(lambda x: module(nn.utils.rnn.PackedSequence(x, batch_sizes))[0].data, (x,), (x,))
    assert all(tensor.is_cpu for tensor in found)


def test_padding_reaches_nothing():
    module, x = FusedLSTM(4, 6, layer_norm=True, zoneout=0.1), torch.randn(7, 3, 4)
    x[4:, 1] = math.nan
    x.requires_grad_()
    output, _ = module(x, lengths=torch.tensor([7, 4, 7]))
    found = torch.autograd.grad(output.sum(), [x, *module.parameters()])
    assert output.isfinite().all() and all(gradient.isfinite().all() for gradient in found)
    assert found[0][4:, 1].eq(0).all() and output[4:, 1].eq(0).all()


def test_only_training_drops():
    """In evaluation a layer with recurrent dropout is the plain one, with all that that has."""
    plain = FusedLSTM(4, 6).eval()
    module, x = FusedLSTM(4, 6, recurrent_dropout=0.5).eval(), torch.randn(7, 3, 4)
    module.load_state_dict(plain.state_dict())
    assert torch.equal(module(x)[0], plain(x)[0])
    with torch.no_grad():
        torch.testing.assert_close(freeze(copy.deepcopy(module))(x)[0], plain(x)[0])


@pytest.mark.parametrize("options", [STATES, OF_LSTM["all"]], ids=["states", "all"])
def test_compiled(options):
    module, x = FusedLSTM(4, 6, bidirectional=True, **options), torch.randn(3, 2, 4)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for train in (True, False):
        module.train(train)
        torch.manual_seed(1)
        expected = module(x)[0]
        wanted = torch.autograd.grad(expected.sum(), list(module.parameters()))
        torch.manual_seed(1)
        output = compiled(x)[0]
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(torch.autograd.grad(output.sum(), list(module.parameters())), wanted)


def test_exported():
    """With any number of steps, and whether gradients are on or off when it runs."""
    module, x = FusedGRU(4, 6, layer_norm=True, zoneout=0.1).eval(), torch.randn(7, 3, 4)
    steps = torch.export.Dim("steps", min=2, max=50)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: steps},))
    traced = torch.jit.trace(module, (x,), check_trace=False)
    recorded = program.module(), program.run_decompositions().module(), traced
    for with_gradients, T in itertools.product((True, False), (7, 4)):
        with torch.set_grad_enabled(with_gradients):
            for run in recorded:
                torch.testing.assert_close(run(x[:T]), module(x[:T]))


def test_transforms_and_second_order():
    """vmap, functional gradients, forward mode and double backward, by the loop."""
    module = FusedLSTM(3, 4, layer_norm=True, peephole=True, zoneout=0.1, dtype=torch.float64).eval()
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64)

    def energy(weights, x):
        return functional_call(module, weights, (x,))[0].square().sum()

    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    expected = torch.autograd.grad(module(x[0])[0].square().sum(), list(module.parameters()))
    torch.testing.assert_close(list(grad(energy)(weights, x[0]).values()), list(expected))
    torch.testing.assert_close(vmap(lambda x: module(x)[0])(x), torch.stack([module(one)[0] for one in x]))
    _, tangent = torch.func.jvp(lambda x: module(x)[0], (x[0],), (x[1],))
    eps = 1e-6
    torch.testing.assert_close(
        tangent, (module(x[0] + eps * x[1])[0] - module(x[0] - eps * x[1])[0]) / (2 * eps), rtol=1e-6, atol=1e-8
    )
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], (x[0, :2].requires_grad_(),), fast_mode=True)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("steps", [0, 1])
def test_gradients_where_nothing_flows_are_zeros_in_a_graph_too(steps):
    """No step has a gradient, and that of c after one has none for the norm that h sees."""
    module, x = FusedLSTM(3, 4, layer_norm=True), torch.randn(steps, 2, 3, requires_grad=True)
    _, (_, c_n) = module(x)
    wanted = [x, *module.parameters()]
    expected = torch.autograd.grad(c_n.sum(), wanted, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(c_n.sum(), wanted, create_graph=True), expected)
    (penalized,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    penalized.sum().backward()
    assert module.weight_ih_l0.grad.any() == (steps > 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_dtypes_and_autocast(dtype):
    """Computed in float32, rounded at the end: near to float32's of the same rounded values."""
    module = FusedLSTM(4, 6, layer_norm=True, peephole=True, zoneout=0.1, dtype=dtype).eval()
    wide, x = copy.deepcopy(module).float(), torch.randn(7, 3, 4).to(dtype)
    output, (h, c) = module(x)
    assert output.dtype == h.dtype == c.dtype == dtype
    torch.testing.assert_close(output, wide(x.float())[0].to(dtype), rtol=0, atol=0)
    with torch.autocast("cpu", dtype):
        assert wide(x.float())[0].dtype == dtype


def test_meta_device():
    """Shapes and dtypes of results and gradients, without values."""
    module, x = (
        FusedLSTM(4, 6, 2, bidirectional=True, device="meta", **OF_LSTM["all"]),
        torch.empty(7, 3, 4, device="meta"),
    )
    for options in ({}, {"lengths": torch.tensor([7, 4, 0])}):
        output, _ = module(x, **options)
        assert output.is_meta and output.shape == (7, 3, 12)
        found = torch.autograd.grad(output.sum(), list(module.parameters()))
        assert [d.shape for d in found] == [p.shape for p in module.parameters()]


def test_is_shown_and_kept():
    module = FusedLSTM(4, 6, zoneout=(0.1, 0.2), layer_norm=True)
    assert repr(module) == "FusedLSTM(4, 6, zoneout=(0.1, 0.2), layer_norm=True)"
    x = torch.randn(7, 3, 4)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other.eval()(x)[0], module.eval()(x)[0])
    plain = FusedLSTM(4, 6)
    assert not set(Variants._fields) & set(vars(plain))


def test_options_can_be_set_later():
    """As schedules do; what adds parameters cannot."""
    module, x = FusedGRU(4, 6), torch.randn(7, 3, 4)
    before = module(x)[0]
    module.zoneout = 0.5
    assert not torch.equal(module(x)[0], before)
    module.layer_norm = True
    with pytest.raises(RuntimeError, match="GRU: Expected 1 parameters of zoneout, layer_norm, got 0"):
        module(x)


def test_names_of_subclasses():
    """What a subclass has by an option's name is its own, also after convert: layers with a norm often have one."""

    def named(plain):
        class Own(plain):
            def __init__(self):
                super().__init__(4, 6)
                self.layer_norm = nn.LayerNorm(6)
                if plain is nn.LSTM:
                    self.weight_dropout = self.zoneout = 0.3
                    self.peephole = nn.Parameter(torch.ones(6))

            def forward(self, x):
                output, _ = super().forward(x)
                return self.layer_norm(output) + (self.zoneout * self.peephole if plain is nn.LSTM else 0)

        return Own()

    x, module = torch.randn(7, 3, 4), named(nn.LSTM)
    expected = module(x)
    converted = convert(module, subclasses=True)
    for layer in (converted, named(FusedLSTM)):
        assert isinstance(layer, FusedLSTM) and isinstance(layer.layer_norm, nn.LayerNorm)
        assert Variants.of(layer) == Variants()
        assert "zoneout" not in layer.extra_repr()
        layer(x).sum().backward()
    torch.testing.assert_close(converted(x), expected)
    assert type(revert(converted)) is type(module)
