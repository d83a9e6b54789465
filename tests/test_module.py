"""The layers as modules: constructor, parameters, state, copies, and life beside torch.nn's habits."""

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from cases import OPTIONS
from family import every, family, tensors_of
from tolerance import tolerance
from torch import nn

from fusedlstm import FusedLSTM, FusedLSTMCell

CONFIGURATIONS = [
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"proj_size": 2},
    {"num_layers": 2, "bias": False, "bidirectional": True, "proj_size": 2, "batch_first": True},
]


def test_signatures_are_those_of_torch():
    def arguments(function):
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    of_torch = [p for p in arguments(nn.RNNBase.__init__) if p[0] != "mode"]
    ours = arguments(FusedLSTM.__init__)
    assert ours[: len(of_torch)] == of_torch
    check_others(FusedLSTM, len(of_torch))
    of_torch = arguments(nn.LSTMCell.__init__)
    assert arguments(FusedLSTMCell.__init__)[: len(of_torch)] == of_torch
    check_others(FusedLSTMCell, len(of_torch))


def check_others(made, count):
    """What there is beside torch's arguments has names alone, and does nothing unless it is asked for."""
    others = list(inspect.signature(made.__init__).parameters.values())[count:]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in others)
    assert all(p.default == 0 or p.name == "layer_norm_eps" for p in others)


@family
def test_signatures_of_the_family_are_those_of_torch(member):
    """Of constructors and of forward, which takes more at the end."""
    for ours, theirs in ((member.layer, member.plain), (member.one_step, member.plain_step)):
        mine, plain = (inspect.signature(made.func.__init__).parameters.values() for made in (ours, theirs))
        mine, plain = ([(p.name, p.kind, p.default) for p in of] for of in (mine, plain))
        assert mine[: len(plain)] == plain
        check_others(ours.func, len(plain))
        mine, plain = (list(inspect.signature(made.func.forward).parameters) for made in (ours, theirs))
        assert mine[: len(plain)] == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_same_seed_same_parameters(options, dtype):
    states = []
    for module_type in (nn.LSTM, FusedLSTM):
        torch.manual_seed(7)
        states.append((module_type(3, 4, **options, dtype=dtype), torch.get_rng_state()))
    (plain, plain_rng), (fused, fused_rng) = states
    assert torch.equal(plain_rng, fused_rng)
    assert list(plain.state_dict()) == list(fused.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), fused.parameters()))
    assert plain.state_dict()._metadata == fused.state_dict()._metadata
    assert repr(fused) == "Fused" + repr(plain)
    plain.load_state_dict(fused.state_dict(), strict=True)
    fused.load_state_dict(plain.state_dict(), strict=True)
    shapes = [[p.shape for p in layer] for layer in plain.all_weights]
    assert [[p.shape for p in layer] for layer in fused.all_weights] == shapes
    assert fused.all_weights[0][0] is fused.weight_ih_l0


@every
def test_reset_parameters_draws_as_torch(member):
    fused, plain = member.pair(3, 4, num_layers=2)
    for module in (plain, fused):
        torch.manual_seed(3)
        module.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), fused.parameters()))


@every
def test_flatten_parameters_is_silent(member):
    module = member.layer(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.flatten_parameters() is None
        module(torch.randn(2, 1, 3))


@every
def test_dropout_without_layers_to_drop_warns(member):
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        member.layer(3, 4, dropout=0.5)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, "pickle", "save"])
@every
def test_copies_follow_their_own_parameters(duplicate, member):
    module, x = member.layer(3, 4, num_layers=2), torch.randn(5, 2, 3)
    expected = module(x)[0]
    if duplicate == "pickle":
        other = pickle.loads(pickle.dumps(module))
    elif duplicate == "save":
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = duplicate(module)
    assert torch.equal(other(x)[0], expected)
    with torch.no_grad():
        other.weight_ih_l0.zero_()
    is_shared = duplicate is copy.copy
    assert torch.equal(module(x)[0], expected) != is_shared
    assert not torch.equal(other(x)[0], expected)


@pytest.fixture
def swap_tensors():
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@every
def test_load_state_dict_by_swapping(swap_tensors, member):
    module, other = member.layer(3, 4), member.layer(3, 4)
    for target in (module, pickle.loads(pickle.dumps(module))):
        target.load_state_dict(other.state_dict())
        assert torch.equal(target.weight_ih_l0, other.weight_ih_l0)
        target.double()(torch.randn(2, 1, 3, dtype=torch.float64))


@every
def test_conversions(member):
    module = member.layer(3, 4)
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.float32):
        results = tensors_of(module.to(dtype)(torch.randn(5, 2, 3, dtype=dtype)))
        assert {result.dtype for result in results} == {dtype}


@every
def test_meta_device(member):
    with torch.device("meta"):
        module = member.layer(3, 4, num_layers=2, bidirectional=True)
        output, *states = tensors_of(module(torch.randn(5, 2, 3)))
        output.sum().backward()
    assert output.shape == (5, 2, 8) and {state.shape for state in states} == {(4, 2, 4)}
    assert output.is_meta and module.weight_ih_l0.grad.is_meta
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    assert module(torch.randn(5, 2, 3))[0].isfinite().all()


@every
def test_inference_mode(member):
    module = member.layer(3, 4)
    with torch.inference_mode():
        output = module(torch.randn(5, 2, 3))[0]
    assert output.is_inference()


@every
def test_freed_without_garbage_collection(member):
    import gc
    import weakref

    gc.disable()
    try:
        module = member.layer(3, 4)
        module(torch.randn(2, 1, 3))[0].sum().backward()
        alive = weakref.ref(module.weight_ih_l0)
        del module
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case.name)
@pytest.mark.parametrize("arrangement", ["batch_first", "unbatched", "list"])
def test_arrangements(case, arrangement, device):
    """batch_first, one sequence without a batch dimension, and hx as a list, as nn.LSTM has them."""
    plain = nn.LSTM(**case.module_kwargs(), batch_first=arrangement != "list", device=device)
    fused = FusedLSTM(**case.module_kwargs(), batch_first=arrangement != "list", device=device)
    fused.load_state_dict(plain.state_dict())
    rows = case.num_layers * case.directions
    batch = () if arrangement == "unbatched" else (case.B,)
    shape = (case.T, case.input_size) if arrangement == "unbatched" else (4, case.B, case.input_size)
    if arrangement == "batch_first":
        shape = (case.B, case.T, case.input_size)
    x = torch.randn(shape, device=device)
    hx = [torch.randn(rows, *batch, n, device=device) for n in (case.output_size, case.hidden_size)]
    expected, actual = plain(x, hx), fused(x, hx)
    terms = case.input_size + case.output_size
    allowed = tolerance(torch.float32, terms, case.T, case.num_layers, device.type)
    for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1])):
        torch.testing.assert_close(a, e, rtol=0, atol=2 * allowed)  # neither is exact


def test_the_weights_as_nn_lstm_lists_them(device):
    """functional.lstm takes nn.LSTM.all_weights."""
    from fusedlstm import functional

    plain = nn.LSTM(3, 6, 2, bidirectional=True, proj_size=2, device=device)
    x = torch.randn(5, 2, 3, device=device)
    output, (h_n, c_n) = functional.lstm(x, None, plain.all_weights, bidirectional=True)
    expected, (h, c) = plain(x)
    allowed = tolerance(torch.float32, 5, 5, 2, device.type)
    for a, e in ((output, expected), (h_n, h), (c_n, c)):
        torch.testing.assert_close(a, e, rtol=0, atol=2 * allowed)
