"""Autocast: everything in its dtype, as for torch.nn's layers; gradients in the parameters' own."""

import pytest
import torch
from family import every, tensors_of
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fusedlstm import FusedLSTM, FusedLSTMCell
from fusedlstm.cells import CELLS


def of_results(member, dtype, device):
    """The dtype of results in autocast's `dtype`, from float32: on the CPU a GRU keeps its state's, as nn.GRU does."""
    return torch.float32 if CELLS[member.cell].promotes[0] and device.type == "cpu" else dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@every
def test_dtypes_and_values(member, dtype, options, device):
    options = options | ({"proj_size": 2} if options and CELLS[member.cell].has_projection else {})
    module, plain = member.pair(3, 4, **options, device=device)
    x = torch.randn(5, 2, 3, device=device)
    with torch.autocast(device.type, dtype):
        output, *states = tensors_of(module(x))
    assert {result.dtype for result in (output, *states)} == {of_results(member, dtype, device)}
    output.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    torch.testing.assert_close(output.float(), plain(x)[0], rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_mixed_inputs_are_cast(device):
    module = FusedLSTM(3, 4, device=device)
    hx = torch.zeros(1, 2, 4, device=device), torch.zeros(1, 2, 4, device=device).half()
    with torch.autocast(device.type, torch.bfloat16):
        output, _ = module(torch.randn(5, 2, 3, device=device).bfloat16(), hx)
    assert output.dtype == torch.bfloat16


@every
def test_packed_input_is_cast(member, device):
    packed = pack_sequence([torch.randn(n, 3, device=device) for n in (4, 2)])
    with torch.autocast(device.type, torch.bfloat16):
        output, state = member.layer(3, 4, device=device)(packed)
    expected = of_results(member, torch.bfloat16, device)
    assert {result.dtype for result in (output.data, *tensors_of(state))} == {expected}


@every
def test_float64_is_left_alone(member, device):
    module = member.layer(3, 4, device=device, dtype=torch.float64)
    with torch.autocast(device.type, torch.bfloat16):
        output, _ = module(torch.randn(5, 2, 3, device=device, dtype=torch.float64))
    assert output.dtype == torch.float64


@every
def test_float64_input_of_a_float32_module_is_refused(member, device):
    with torch.autocast(device.type, torch.bfloat16), pytest.raises(RuntimeError, match="does not match"):
        member.layer(3, 4, device=device)(torch.randn(5, 2, 3, device=device, dtype=torch.float64))


def test_backward_inside_autocast(device):
    """Neither the backward nor the double backward is cast a second time."""
    module = FusedLSTM(3, 4, device=device, dtype=torch.float64)
    x = torch.randn(5, 2, 3, device=device, dtype=torch.float64, requires_grad=True)

    def penalty():
        (gradient,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), module.weight_hh_l0)[0]

    expected = penalty()
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(penalty(), expected)


STATES = [None, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("state", STATES, ids=str)
def test_cell(state, device):
    """On CUDA nn.LSTMCell is one operator, which is cast; on the CPU the dtype of its state counts too."""
    x, plain, fused = torch.randn(2, 3, device=device), nn.LSTMCell(3, 4).to(device), FusedLSTMCell(3, 4).to(device)
    fused.load_state_dict(plain.state_dict())
    hx = None if state is None else tuple(torch.randn(2, 2, 4, device=device).to(state))
    with torch.autocast(device.type, torch.bfloat16):
        for actual, expected in zip(fused(x, hx), plain(x, hx)):
            torch.testing.assert_close(actual, expected, rtol=0, atol=2**-7)


def test_the_cell_state_of_a_projection(device):
    """As without a projection; nn.LSTM leaves c in float32 on the CPU."""
    with torch.autocast(device.type, torch.bfloat16):
        output, (h, c) = FusedLSTM(3, 4, proj_size=2, device=device)(torch.randn(5, 2, 3, device=device))
    assert {output.dtype, h.dtype, c.dtype} == {torch.bfloat16}


def test_meta_module_under_autocast_of_another_device():
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        assert FusedLSTM(3, 4)(torch.randn(5, 2, 3))[0].dtype == torch.float32


def test_the_reference_path(device):
    """Under vmap too, results have autocast's dtype."""
    module = FusedLSTM(3, 4, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        output = torch.func.vmap(lambda x: module(x)[0])(torch.randn(2, 5, 2, 3, device=device))
    assert output.dtype == torch.bfloat16
