"""Numbers: forward and every gradient against the float64 reference and against nn.LSTM."""

import pytest
import torch
from cases import OPTIONS, TILES
from oracle import ReferenceLSTM, check, make_inputs, run
from torch import nn

from benchmarks.cases import Case
from fusedlstm import FusedLSTM, reference
from fusedlstm.cells import LSTM

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", TILES + OPTIONS, ids=lambda case: case.name)
def test_near_reference(case, dtype, device):
    inputs = make_inputs(case, dtype)
    expected = run(ReferenceLSTM, case, inputs)
    check(run(FusedLSTM, case, inputs.to(device, dtype)), expected, case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", TILES + OPTIONS, ids=lambda case: case.name)
def test_near_torch(case, dtype, device):
    inputs = make_inputs(case, dtype).to(device, dtype)
    expected = run(nn.LSTM, case, inputs.to(device, torch.float64))
    check(run(FusedLSTM, case, inputs), expected, case, dtype)


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case.name)
def test_reference_is_torch(case):
    """The reference itself, in float64, against nn.LSTM: it is what all else rests on."""
    inputs = make_inputs(case, torch.float64)
    expected = run(nn.LSTM, case, inputs)
    check(run(ReferenceLSTM, case, inputs), expected, case, torch.float64)


def _swapped_gates(*arguments):
    """The reference with the input and forget gates exchanged."""

    def swap(tensors):
        return [torch.cat([(b := t.chunk(4))[1], b[0], b[2], b[3]]) for t in tensors]

    head, lists, tail = arguments[:2], arguments[2:6], arguments[6:]
    return reference.layer(LSTM, *head, *map(swap, lists), *tail)


def _slightly_larger_state(*arguments):
    """The reference with c_0 larger by 2^-16, which float32 resolves and a careless test does not."""
    input, (h_0, c_0), *rest = arguments
    return reference.layer(LSTM, input, [h_0, c_0 * (1 + 2**-16)], *rest)


@pytest.mark.parametrize("broken", [_swapped_gates, _slightly_larger_state])
def test_broken_reference_fails(broken):
    """The comparison notices a wrong gate order, and one of two thousandths of a percent."""

    class Broken(ReferenceLSTM):
        layer = staticmethod(broken)

    case = OPTIONS[0]
    inputs = make_inputs(case, torch.float32)
    expected = run(ReferenceLSTM, case, inputs)
    with pytest.raises(AssertionError, match="times the allowed error"):
        check(run(Broken, case, inputs.to("cpu", torch.float32)), expected, case, torch.float32)


@pytest.mark.parametrize("case", [TILES[6], OPTIONS[-1]], ids=lambda case: case.name)
def test_equal_calls_are_bitwise_equal(case, device):
    inputs = make_inputs(case, torch.float32).to(device, torch.float32)
    first, second = run(FusedLSTM, case, inputs), run(FusedLSTM, case, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case.name)
def test_inference_equals_training(case, device):
    module = FusedLSTM(**case.module_kwargs(), device=device)
    x = torch.randn(case.T, case.B, case.input_size, device=device)
    output, (h_n, c_n) = module(x)
    with torch.no_grad():
        inference, (h, c) = module(x)
    for actual, expected in ((inference, output), (h, h_n), (c, c_n)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=4e-7)


def test_nan_stays_in_its_sample(device):
    module = FusedLSTM(3, 5, 2, bidirectional=True, device=device)
    x = torch.randn(7, 4, 3, device=device)
    x[3, 2] = float("nan")
    output = module(x)[0]
    assert output[:, 2].isnan().all(-1).any()
    assert not output[:, [0, 1, 3]].isnan().any()


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("proj_size", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_huge_input_saturates(dtype, proj_size, value, device):
    """Gates at 0 and 1 exactly as the formula says, no NaN from inf - inf, nor from what pads the units."""
    module = FusedLSTM(1, 9, proj_size=proj_size, device=device, dtype=dtype)
    x = torch.full((4, 20, 1), value)
    torch_module = nn.LSTM(1, 9, proj_size=proj_size, dtype=torch.float64)
    torch_module.load_state_dict(module.state_dict())
    expected = torch_module(x.double().clamp(-1e30, 1e30))[0]
    output = module(x.to(device, dtype))[0]
    torch.testing.assert_close(output.double().cpu(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("T, B", [(0, 3), (4, 0), (0, 0)])
def test_empty(T, B, device):
    """No steps: the state passes through. No rows: everything is empty. Both have gradients."""
    module = FusedLSTM(3, 5, 2, bidirectional=True, device=device)
    x = torch.randn(T, B, 3, device=device, requires_grad=True)
    hx = tuple(torch.randn(4, B, 5, device=device, requires_grad=True) for _ in range(2))
    output, (h_n, c_n) = module(x, hx)
    assert output.shape == (T, B, 10)
    if T == 0:
        assert torch.equal(h_n, hx[0]) and torch.equal(c_n, hx[1])
    (output.sum() + h_n.sum() + 2 * c_n.sum()).backward()
    assert x.grad.shape == x.shape
    assert all((p.grad == 0).all() for p in module.parameters())
    if T == 0:
        assert (hx[0].grad == 1).all() and (hx[1].grad == 2).all()


@pytest.mark.parametrize("layout", ["transposed", "expanded", "offset", "strided"])
def test_any_strides(layout, device):
    """Inputs, states, weights and incoming gradients of any layout; none is changed."""
    T, B, I, H = 4, 3, 6, 5

    def laid_out(*shape):
        if layout == "transposed":
            return torch.randn(*shape[::-1], device=device).permute(*range(len(shape))[::-1])
        if layout == "expanded":
            return torch.randn(shape[-1], device=device).expand(shape)
        if layout == "offset":
            return torch.randn(shape[0] + 1, *shape[1:], device=device)[1:]
        return torch.randn(*shape[:-1], 2 * shape[-1], device=device)[..., ::2]

    module = FusedLSTM(I, H, device=device)
    for parameter in module.parameters():
        parameter.data = laid_out(*parameter.shape) / 4
    tensors = [laid_out(T, B, I), laid_out(1, B, H), laid_out(1, B, H), laid_out(T, B, H)]
    before = [t.clone() for t in tensors]

    def gradients(x, h, c, d_output):
        x, h, c = (t.detach().requires_grad_() for t in (x, h, c))
        wanted = [x, h, c, *module.parameters()]
        return torch.autograd.grad(module(x, (h, c))[0], wanted, d_output)

    actual = gradients(*tensors)
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
    expected = gradients(*(t.contiguous() for t in tensors))
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-5)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before))


@pytest.mark.parametrize("T", [1, 3])
def test_results_share_no_memory(T, device):
    module = FusedLSTM(3, 3, device=device)
    x, hx = torch.randn(T, 2, 3, device=device), torch.zeros(1, 2, 3, device=device)
    with torch.no_grad():
        output, (h_n, c_n) = module(x, (hx, hx))
    tensors = [x, hx, output, h_n, c_n, *module.parameters()]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)


def test_more_steps_than_16_bits_count(device):
    module = FusedLSTM(1, 2, device=device)
    x = torch.randn(70_000, 1, 1, device=device)
    with torch.no_grad():
        output, (h_n, _) = module(x)
        first, state = module(x[:40_000])
        second, _ = module(x[40_000:], state)
    torch.testing.assert_close(output, torch.cat([first, second]), rtol=0, atol=1e-6)
    assert torch.equal(output[-1], h_n[0])


# On a GPU it would compare with cuDNN, whose own errors vary: that is a measurement, not a test.
# So many features that d_x and d_weight_ih have 100 000 elements and more: where both layers round the gradients of
# gates to bfloat16, for instructions that multiply it, errors differ by a few percent, and those of a tenth of the
# elements by half a percent from draw to draw.
@pytest.mark.parametrize("device", [torch.device("cpu")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case",
    [Case("long", 400, 2, 400, 64), Case("wide", 20, 16, 333, 200), Case("large", 10, 8, 512, 512)],
    ids=lambda case: case.name,
)
def test_as_accurate_as_torch(case, dtype, device):
    """Root mean square error of outputs and gradients, beside that of nn.LSTM."""
    inputs = make_inputs(case, dtype)
    exact = run(nn.LSTM, case, inputs)
    inputs = inputs.to(device, dtype)
    of_torch, ours = run(nn.LSTM, case, inputs), run(FusedLSTM, case, inputs)

    def error(found, name):
        return (found[name].double().cpu() - exact[name]).square().mean().sqrt().item()

    for name in ("output", "d_x", "d_weight_ih_l0", "d_weight_hh_l0"):
        assert error(ours, name) <= error(of_torch, name), name
