"""Cells with variants of the recurrence: against the papers' formulas, their layers, and in what is around a call."""

import copy
import itertools
import warnings

import pytest
import torch
from family import EVERY, tensors_of
from test_varied import OF, by_kind, moved
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from varied_loops import run_loop

from fusedlstm import (
    FusedGRU,
    FusedGRUCell,
    FusedLSTM,
    FusedLSTMCell,
    FusedRNNCell,
    _recurrence,
    convert,
    freeze,
    functional,
    quantize,
    revert,
)
from fusedlstm._variants import Variants, masks_of

STEPS, B, I, H = 4, 3, 4, 6
# In a cell recurrent dropout is one mask a call, by which a layer has its name "per step".
NAMES = [(member, name) for member in EVERY for name in OF[member.cell] if name != "recurrent dropout per step"]
cases = pytest.mark.parametrize(("member", "name"), NAMES, ids=[f"{member}-{name}" for member, name in NAMES])


def cell_of(member, name, **options):
    return moved(member.one_step(I, H, **OF[member.cell][name], **options))


def unrolled(cell, x):
    """h of all steps, and the last states."""
    states, outputs = None, []
    for row in x:
        states = cell(row, states)
        outputs.append(tensors_of(states)[0])
    return [torch.stack(outputs), *tensors_of(states)]


def drawn(member, cell, x):
    """The masks of these calls of a cell, one after the other."""
    states = 2 if member.cell == "lstm" else 1
    steps = [masks_of(Variants.of(cell), states, 1, x.size(1), H, cell.training, x) for _ in x]
    masks, zoneouts = zip(*steps)
    mask = None if masks[0] is None else torch.cat(masks)
    return mask, [torch.cat(of_state) for of_state in zip(*zoneouts)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
@cases
def test_formulas(member, name, training, bias, device):
    """Values and every gradient through some steps are those of the loop by hand."""
    cell = cell_of(member, name, bias=bias, dtype=torch.float64).to(device).train(training)
    x = torch.randn(STEPS, B, I, dtype=torch.float64, device=device, requires_grad=True)
    torch.manual_seed(1)
    mask, zoneout = drawn(member, cell, x.detach())
    output, last = run_loop(member.cell, by_kind(cell), x, mask, zoneout, cell.layer_norm_eps)
    expected = [output, *last]
    torch.manual_seed(1)
    found = unrolled(cell, x)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    inputs, cotangents = [x, *cell.parameters()], [torch.randn_like(t) for t in expected]
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, cotangents), torch.autograd.grad(expected, inputs, cotangents),
        rtol=1e-9, atol=1e-10,
    )  # fmt: skip


@cases
def test_state_dict_and_initial_values_are_the_layers(member, name):
    torch.manual_seed(2)
    layer = member.layer(I, H, **OF[member.cell][name])
    torch.manual_seed(2)
    cell = member.one_step(I, H, **OF[member.cell][name])
    found = cell.state_dict()
    assert list(found) == [key.removesuffix("_l0") for key in layer.state_dict()]
    assert all(torch.equal(found[key.removesuffix("_l0")], value) for key, value in layer.state_dict().items())
    moved(cell).reset_parameters()
    assert all(value.eq(1).all() for key, value in cell.state_dict().items() if key.startswith("gain"))
    assert all(value.eq(0).all() for key, value in cell.state_dict().items() if key == "bias_c")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@cases
def test_is_a_layer_of_one_step(member, name, dtype):
    """To the last bit, without a batch too; and so is the function."""
    cell = cell_of(member, name, dtype=dtype).eval()
    layer = member.layer(I, H, dtype=dtype, **OF[member.cell][name]).eval()
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    x = torch.randn(B, I).to(dtype)
    states = [torch.randn(B, H).to(dtype) for _ in tensors_of(cell(x))]

    def passed(states):
        return tuple(states) if len(states) > 1 else states[0]

    expected = [state[0] for state in tensors_of(layer(x[None], passed([s[None] for s in states]))[1])]
    assert all(map(torch.equal, tensors_of(cell(x, passed(states))), expected))
    alone = tensors_of(cell(x[1], passed([s[1] for s in states])))
    torch.testing.assert_close(alone, [state[1] for state in expected])
    options = {key: value for key, value in OF[member.cell][name].items() if key not in ("layer_norm", "peephole")}
    if hasattr(cell, "nonlinearity"):
        options["nonlinearity"] = cell.nonlinearity
    function = getattr(functional, f"{member.cell.partition('_')[0]}_cell")
    assert all(map(torch.equal, tensors_of(function(x, passed(states), **by_kind(cell), **options)), expected))


@pytest.mark.parametrize("training", [True, False])
@cases
def test_function_draws_as_the_module_does(member, name, training):
    cell, x = cell_of(member, name), torch.randn(B, I)
    torch.manual_seed(1)
    expected = tensors_of(cell.train(training)(x))
    options = {key: value for key, value in OF[member.cell][name].items() if key not in ("layer_norm", "peephole")}
    if hasattr(cell, "nonlinearity"):
        options["nonlinearity"] = cell.nonlinearity
    function = getattr(functional, f"{member.cell.partition('_')[0]}_cell")
    torch.manual_seed(1)
    assert all(map(torch.equal, tensors_of(function(x, None, **by_kind(cell), training=training, **options)), expected))


@pytest.mark.parametrize("training", [True, False])
def test_steps_run_kernels(training, monkeypatch):
    """Of cells and of layers, with gradients and without."""
    monkeypatch.setattr(_recurrence, "recurrence", lambda *arguments: pytest.fail("ran the loop"))
    options = {"layer_norm": True, "zoneout": 0.1}
    cell, layer = (made(I, H, **options).train(training) for made in (FusedGRUCell, FusedGRU))
    for run, x in ((cell, torch.randn(B, I)), (layer, torch.randn(1, B, I)), (cell, torch.randn(I))):
        with torch.no_grad():
            assert not tensors_of(run(x))[0].requires_grad
        tensors_of(run(x))[0].sum().backward()


def test_states_are_tensors_of_their_own():
    cell, x = FusedLSTMCell(I, H, layer_norm=True), torch.randn(B, I)
    h, c = cell(x)
    expected = torch.autograd.grad(c.sum(), list(cell.parameters()), retain_graph=True)
    h.detach_()
    h[...] = 3
    torch.testing.assert_close(torch.autograd.grad(c.sum(), list(cell.parameters())), expected, rtol=0, atol=0)


def test_derivatives_of_second_order_and_transforms():
    cell = moved(FusedLSTMCell(3, 4, layer_norm=True, peephole=True, zoneout=0.1, dtype=torch.float64)).eval()
    x, h, c = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (3, 4, 4))
    assert torch.autograd.gradcheck(lambda *a: cell(a[0], a[1:]), (x, h, c))
    assert torch.autograd.gradgradcheck(lambda *a: cell(a[0], a[1:]), (x, h, c), fast_mode=True)
    x = x.detach()

    def energy(weights, x):
        return functional_call(cell, weights, (x,))[0].square().sum()

    weights = {name: parameter.detach() for name, parameter in cell.named_parameters()}
    expected = torch.autograd.grad(cell(x)[0].square().sum(), list(cell.parameters()))
    torch.testing.assert_close(list(grad(energy)(weights, x).values()), list(expected))
    torch.testing.assert_close(vmap(lambda x: cell(x)[0])(x), cell(x)[0])


def test_results_are_not_changed_after_their_derivatives_have_kept_them():
    """Of all states: that of c is one of what the loop over steps keeps."""
    cell = moved(FusedLSTMCell(I, H, layer_norm=True, peephole=True))

    def energy(x):
        h, c = cell(x)
        return h.square().sum() + c.square().sum()

    x = torch.randn(B, I, requires_grad=True)
    (expected,) = torch.autograd.grad(energy(x), x)
    x = x.detach()
    torch.testing.assert_close(grad(energy)(x), expected)
    torch.testing.assert_close(vmap(grad(energy))(x), expected)


@cases
def test_second_derivatives_by_every_mode(member, name):
    """PyTorch's layer norm has wrong ones inside of forward mode."""
    cell, x = cell_of(member, name, dtype=torch.float64).eval(), torch.randn(2, I, dtype=torch.float64)

    def energy(x):
        return sum(state.square().sum() for state in tensors_of(cell(x)))

    expected = torch.autograd.functional.hessian(energy, x)
    for outer, inner in itertools.product((jacfwd, jacrev), repeat=2):
        torch.testing.assert_close(outer(inner(energy))(x), expected)


def test_compiled_and_exported():
    cell, x = moved(FusedLSTMCell(I, H, layer_norm=True, zoneout=0.3)), torch.randn(B, I)
    compiled = torch.compile(cell, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        cell.train(training)
        found = []
        for run in (cell, compiled):
            torch.manual_seed(1)
            h, c = run(x)
            found.append([h, c, *torch.autograd.grad(h.sum() + c.sum(), list(cell.parameters()))])
        torch.testing.assert_close(*found)
    exported = torch.export.export(cell, (x,)).module()
    for with_gradients in (True, False):
        with torch.set_grad_enabled(with_gradients):
            torch.testing.assert_close(exported(x), cell(x))


def test_autocast_meta_and_nothing_to_do():
    cell = FusedLSTMCell(I, H, layer_norm=True, peephole=True).eval()
    with torch.autocast("cpu", torch.bfloat16):
        for x in (torch.randn(B, I), torch.randn(B, I).bfloat16()):
            assert cell(x)[0].dtype == nn.LSTMCell(I, H)(x)[0].dtype
    h, c = copy.deepcopy(cell).to("meta")(torch.empty(B, I, device="meta"))
    assert h.is_meta and c.is_meta and h.shape == c.shape == (B, H)
    assert cell(torch.randn(0, I))[0].shape == (0, H)
    assert FusedLSTMCell(I, 0, zoneout=0.1)(torch.randn(B, I))[1].shape == (B, 0)


def test_options_are_shown_and_can_be_set_later():
    assert repr(FusedLSTMCell(4, 6, zoneout=(0.1, 0.2), peephole=True)) == (
        "FusedLSTMCell(4, 6, zoneout=(0.1, 0.2), peephole=True)"
    )
    cell, x, h = FusedGRUCell(I, H), torch.randn(B, I), torch.randn(B, H)
    before = cell(x, h)
    assert not set(Variants._fields) & set(vars(cell))
    cell.zoneout = 0.5
    stays = (cell(x, h) == h).sum()
    assert 0 < stays < h.numel() and not (cell.eval()(x, h) == h).any()
    cell.zoneout = 0.0
    assert torch.equal(cell(x, h), before)


BAD = {
    "probability": (lambda: FusedLSTMCell(I, H, zoneout=1.0), ValueError, "zoneout: Expected a probability"),
    "cell": (lambda: FusedGRUCell(I, H, zoneout=(0.1, 0.1)), ValueError, "one for each of the states h, got 2"),
    "flag": (lambda: FusedGRUCell(I, H, layer_norm=1), TypeError, "layer_norm: Expected a bool, got int"),
    "norm of an RNN": (lambda: FusedRNNCell(I, H, layer_norm=True), TypeError, "layer_norm"),
    "per step": (lambda: FusedLSTMCell(I, H, recurrent_dropout_per_step=True), TypeError, "recurrent_dropout_per_step"),
    "a part of the norm": (
        lambda: functional.lstm_cell(*TENSORS, gain_hh=torch.ones(4 * H)),
        TypeError,
        "Expected gain_ih_l0 to be a Tensor, got NoneType",
    ),
    "bias_c without biases": (
        lambda: functional.lstm_cell(*TENSORS[:4], **NORM, bias_c=torch.zeros(H)),
        ValueError,
        "bias_c: Expected bias_ih and bias_hh with it",
    ),
    "shape": (
        lambda: functional.lstm_cell(*TENSORS, weight_ch=torch.ones(H)),
        RuntimeError,
        r"Expected weight_ch_l0 of shape \[18\], .*, got \[6\]",
    ),
    "dtype": (lambda: functional.lstm_cell(TENSORS[0].double(), *TENSORS[1:], zoneout=0.1), RuntimeError, "dtype"),
    "state": (
        lambda: functional.lstm_cell(TENSORS[0], (torch.ones(B, H), torch.ones(B, 1)), *TENSORS[2:], zoneout=0.1),
        RuntimeError,
        "hidden1 has inconsistent hidden_size: got 1, expected 6",
    ),
    "bias": (
        lambda: functional.lstm_cell(*TENSORS[:5], torch.ones(1), zoneout=0.1),
        RuntimeError,
        r"Expected bias_hh_l0 of shape \[24\]",
    ),
}
TENSORS = torch.ones(B, I), None, *[t.detach() for t in nn.LSTMCell(I, H).parameters()]
NORM = {"gain_ih": torch.ones(4 * H), "gain_hh": torch.ones(4 * H), "gain_c": torch.ones(H)}


@pytest.mark.parametrize(("call", "error", "text"), BAD.values(), ids=BAD)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_parameters_of_another_dtype():
    """Of the norm and of peepholes, as of layers."""
    cell, x = moved(FusedLSTMCell(I, H, layer_norm=True, peephole=True)), torch.randn(B, I)
    expected = cell(x)
    for name in ("gain_ih", "gain_c", "weight_ch"):
        setattr(cell, name, nn.Parameter(getattr(cell, name).double()))
    assert all(map(torch.equal, cell(x), expected))


def test_conversions():
    assert Variants.of(convert(nn.LSTMCell(I, H))) == Variants()
    model = nn.Sequential(FusedGRUCell(I, H, layer_norm=True)).eval()
    with pytest.warns(UserWarning, match="its layer_norm is True, which PyTorch's layers have none of"):
        assert type(revert(model)[0]) is FusedGRUCell
    text = "its layer_norm is True, which layers of int8 weights have none of"
    with pytest.warns(UserWarning, match=text), pytest.raises(ValueError, match="Expected a model with"):
        quantize(model)
    with pytest.raises(ValueError, match="Expected layers with the plain recurrence to freeze, got FusedGRUCell"):
        freeze(model)
    frozen = freeze(FusedGRUCell(I, H).eval())
    frozen.zoneout = 0.1
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"expected the plain recurrence, got zoneout=0\.1;"):
        frozen(torch.randn(B, I))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match="Expected a model without layer_norm, got one that has it"):
            torch.onnx.export(model, (torch.randn(B, I),), "/dev/null", dynamo=False)


def test_names_of_subclasses():
    """What a converted subclass has by an option's name is its own."""

    class Own(nn.LSTMCell):
        def __init__(self):
            super().__init__(I, H)
            self.layer_norm, self.zoneout = nn.LayerNorm(H), 0.3

        def forward(self, x):
            h, _ = super().forward(x)
            return self.layer_norm(h) + self.zoneout

    module, x = Own(), torch.randn(B, I)
    expected = module(x)
    converted = convert(module, subclasses=True)
    assert isinstance(converted, FusedLSTMCell) and Variants.of(converted) == Variants()
    torch.testing.assert_close(converted(x), expected)


def test_layers_of_one_step_check_what_they_are_given():
    """As longer ones do, though the short way does not look at it first."""
    layer, x = FusedLSTM(I, H, zoneout=0.1), torch.randn(1, B, I)
    with pytest.raises(RuntimeError, match="must be equal to input_size"):
        layer(torch.randn(1, B, I + 1))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size"):
        layer(x, (torch.zeros(1, B, H), torch.zeros(1, B, 1)))
    with pytest.raises(RuntimeError, match="same dtype"):
        layer(x, (torch.zeros(1, B, H), torch.zeros(1, B, H).double()))
    layer.bias_hh_l0 = nn.Parameter(torch.ones(1))
    with pytest.raises(RuntimeError, match=r"Expected bias_hh_l0 of shape \[24\]"):
        layer(x)
