"""FusedLSTMCell against nn.LSTMCell."""

from functools import partial

import pytest
import torch
from family import every, tensors_of
from tolerance import MEMORY, SAFETY, activations, assert_near, tolerance
from torch import nn
from torch.func import grad, jacrev, vmap

from fusedlstm import FusedLSTMCell


def _pair(input_size, hidden_size, **options):
    plain = nn.LSTMCell(input_size, hidden_size, **options)
    fused = FusedLSTMCell(input_size, hidden_size, **options)
    fused.load_state_dict(plain.state_dict(), strict=True)
    return plain, fused


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [None, 0, 1, 3, 33])
@pytest.mark.parametrize("with_state", [True, False])
def test_near_torch(bias, batch, with_state, device):
    plain, fused = _pair(5, 7, bias=bias, dtype=torch.float64, device=device)
    outer = () if batch is None else (batch,)
    x = torch.randn(*outer, 5, dtype=torch.float64, device=device, requires_grad=True)
    hx = [torch.randn(*outer, 7, dtype=torch.float64, device=device) for _ in range(2)]
    results = []
    for module in (plain, fused):
        h, c = module(x, hx if with_state else None)
        results.append([h, c, *torch.autograd.grad((h * h).sum() + c.sin().sum(), [x, *module.parameters()])])
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


def test_seed_repr_and_absent_biases():
    torch.manual_seed(1)
    plain = nn.LSTMCell(3, 4)
    torch.manual_seed(1)
    fused = FusedLSTMCell(3, 4)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), fused.parameters()))
    assert repr(FusedLSTMCell(3, 4, bias=False)) == "FusedLSTMCell(3, 4, bias=False)"
    assert FusedLSTMCell(3, 4, False).bias_ih is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype, device):
    plain, fused = _pair(5, 7, dtype=dtype, device=device)
    x = torch.randn(3, 5, dtype=dtype, device=device)
    allowed = 4 * torch.finfo(dtype).eps + SAFETY * activations(device.type, dtype)
    for actual, expected in zip(fused(x), plain(x)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=allowed)


def test_gradients(device):
    cell = FusedLSTMCell(3, 4, dtype=torch.float64, device=device)
    x, h, c = (torch.randn(2, n, dtype=torch.float64, device=device, requires_grad=True) for n in (3, 4, 4))
    assert torch.autograd.gradcheck(lambda *a: cell(a[0], a[1:]), (x, h, c))
    assert torch.autograd.gradgradcheck(lambda *a: cell(a[0], a[1:]), (x, h, c))


@every
def test_gradients_of_each_sample(member):
    """vmap around gradients: what a cell returns is then a view of a result of several members."""
    fused, plain = member.pair_of_cells(3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    def energy(cell, x):
        return sum(state.square().sum() for state in tensors_of(cell(x)))

    (expected,) = torch.autograd.grad(energy(plain, x.flatten(0, 1)), x)
    x = x.detach()
    torch.testing.assert_close(vmap(grad(partial(energy, fused)))(x), expected)
    torch.testing.assert_close(vmap(jacrev(partial(energy, fused)))(x[:, 0]), expected[:, 0])


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, lambda: torch.autocast("cpu")])
def test_states_are_tensors_of_their_own(context, batch):
    """They can be written to and detached in place, as truncated backpropagation and resets do."""
    cell = FusedLSTMCell(3, 4)
    x = torch.randn(3) if batch is None else torch.randn(batch, 3)
    start = torch.nn.Parameter(torch.zeros(4))
    with context():
        h, c = cell(x)
    expected = c.clone()
    if h.requires_grad:
        h.sum().backward()
    h.detach_(), c.detach_()
    h[...] = start
    h.sum().backward()
    assert start.grad.sum() == h.numel() and torch.equal(c, expected)


def test_writing_into_a_state_keeps_the_gradients():
    plain, fused = _pair(3, 4, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64)
    h, c = plain(x)
    h, c = plain(x, (h * 2, c + 1))
    (h.sum() + c.sum()).backward()
    h, c = fused(x)
    h, c = fused(x, (h.mul_(2), c.add_(1)))
    (h.sum() + c.sum()).backward()
    for a, e in zip(fused.parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, e.grad, rtol=0, atol=1e-13)


def test_gradients_do_not_share_memory(device):
    cell = FusedLSTMCell(3, 4, device=device)
    x = torch.randn(2, 3, device=device, requires_grad=True)
    leaves = [x, *cell.parameters()]
    first = torch.autograd.grad(cell(x)[0].sum(), leaves, create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), leaves)
    for gradients in (first, second):
        assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == len(leaves)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_higher_orders(dtype, bias, device):
    """Second and third order of two steps, against float64 of the same values."""
    plain, fused = _pair(3, 4, bias=bias, device=device)
    fused.to(dtype)
    plain.to(torch.float64).load_state_dict({k: v.double() for k, v in fused.state_dict().items()})
    given = [torch.randn(2, n, device=device).to(dtype) for n in (3, 4, 4)]

    def orders(cell, dtype):
        x, h, c = (tensor.to(dtype).clone().requires_grad_() for tensor in given)
        leaves = [x, h, c, *cell.parameters()]
        h, c = cell(x * 0.5, cell(x, (h, c)))
        first = torch.autograd.grad(h.square().sum() + c.sin().sum(), leaves, create_graph=True)
        norm = sum(gradient.square().sum() for gradient in first)
        alone = torch.autograd.grad(norm, leaves, retain_graph=True)
        second = torch.autograd.grad(norm, leaves, create_graph=True)
        third = torch.autograd.grad(sum(gradient.sin().sum() for gradient in second), leaves)
        return (1, first), (2, alone), (2, second), (3, third)

    for (order, actual), (_, expected) in zip(orders(fused, dtype), orders(plain, torch.float64)):
        # Each order has sums of twice as many products of twice as many factors.
        allowed = 4 ** (order - 1) * tolerance(dtype, 3 + 4 + 2, 2, device_type=device.type)
        for k, (a, e) in enumerate(zip(actual, expected)):
            assert_near(a / e.abs().max(), e / e.abs().max(), allowed, f"order {order}, gradient {k}")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outer", [(), (0,), (2,)], ids=str)
@pytest.mark.parametrize("input_size, hidden_size", [(0, 4), (3, 0), (0, 0)])
def test_sizes_of_zero(input_size, hidden_size, outer, bias, device):
    """nn.LSTMCell allows both; the results and gradients are empty, or those of the biases and the state."""
    plain, fused = _pair(input_size, hidden_size, bias=bias, device=device)
    x = torch.randn(*outer, input_size, device=device, requires_grad=True)
    hx = [torch.randn(*outer, hidden_size, device=device) for _ in range(2)]
    for state in (None, hx):
        results = []
        for module in (plain, fused):
            h, c = module(x, state)
            results.append([h, c, *torch.autograd.grad(h.sum() + c.sum(), [x, *module.parameters()])])
        for expected, actual in zip(*results):
            torch.testing.assert_close(actual, expected)


def test_loop_of_two_cells(device):
    """Two cells of different sizes, one step after another, as written by hand everywhere."""
    plain, fused = zip(_pair(3, 5, device=device), _pair(5, 4, device=device))
    x = torch.randn(6, 2, 3, device=device)

    def loop(first, second):
        a, b, outputs = None, None, []
        for x_t in x:
            a = first(x_t, a)
            b = second(a[0], b)
            outputs.append(b[0])
        return torch.stack(outputs)

    allowed = 1e-6 + 2 * SAFETY * MEMORY * activations(device.type, torch.float32)
    torch.testing.assert_close(loop(*fused), loop(*plain), rtol=0, atol=allowed)


def test_compiles_in_one_graph():
    cell = FusedLSTMCell(3, 4)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3)
    for actual, expected in zip(compiled(x), cell(x)):
        assert torch.equal(actual, expected)


def test_vmap_over_rows():
    cell = FusedLSTMCell(3, 4)
    x = torch.randn(6, 2, 3)
    h, _ = torch.func.vmap(cell)(x)
    torch.testing.assert_close(h, torch.stack([cell(row)[0] for row in x]))


@pytest.mark.parametrize(
    "input, hx, error, text",
    [
        (torch.ones(1, 1, 3), None, ValueError, "Expected input to be 1D or 2D, got 3D"),
        ([1.0], None, TypeError, "Expected input to be a Tensor, got list"),
        (torch.ones(2, 4), None, RuntimeError, "inconsistent input_size: got 4 expected 3"),
        (torch.ones(2, 3), torch.ones(2, 2, 4), TypeError, "Expected hx to be a tuple"),
        (torch.ones(2, 3), (torch.ones(2, 4),) * 3, RuntimeError, "two hidden states, got 3"),
        (torch.ones(2, 3), (), RuntimeError, "two hidden states, got 0"),
        (torch.ones(2, 3).to_sparse(), None, RuntimeError, r"strided\) input, got torch.sparse_coo"),
        (torch.ones(2, 3), (torch.ones(2, 5),) * 2, RuntimeError, "hidden0.*got 5, expected 4"),
        (torch.ones(2, 3), (torch.ones(2, 4), torch.ones(3, 4)), RuntimeError, "hidden1 batch"),
        (torch.ones(2, 3), (torch.ones(1, 1, 2, 4),) * 2, ValueError, "got 4D"),
        (torch.ones(3), (torch.ones(4, 4),) * 2, RuntimeError, "For unbatched 1-D input"),
        (torch.ones(2, 3), (torch.ones(4),) * 2, RuntimeError, "For batched 2-D input"),
        (torch.ones(2, 3).double(), None, RuntimeError, "does not match weight dtype"),
        (torch.ones(2, 3), (torch.ones(2, 4).double(),) * 2, RuntimeError, "same dtype"),
        (
            torch.ones(2, 3),
            (torch.ones(2, 4), torch.ones(2, 4).half()),
            RuntimeError,
            r"32, got torch.float16 for .*\[1\]",
        ),
        (torch.ones(2, 3, device="meta"), None, RuntimeError, "not at the same device"),
    ],
)
def test_bad_input(input, hx, error, text):
    with pytest.raises(error, match=text):
        FusedLSTMCell(3, 4)(input, hx)
