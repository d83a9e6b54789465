"""Without memory for what a kernel makes, the exception is PyTorch's, in type and words: programs that try again with
less look for either."""

from contextlib import contextmanager

import pytest
import torch
from family import GRU, LSTM, every, tensors_of

from fusedlstm import _out_of_memory, _recurrence, _usual
from fusedlstm.ops import OPERATORS

# As csrc/call/tensors.h has it.
WORDS = "CUDA out of memory. fusedlstm: expected memory for a tensor of size [5, 2, 4], got none"
STEPS = torch.randn(5, 2, 3)


@pytest.mark.parametrize("grads", [False, True])
@every
def test_is_that_of_pytorch(member, grads, device):
    fused, plain = (module.to(device) for module in member.pair(1, 4))
    x = torch.zeros(1, 1, 1, device=device).expand(2**30, 2**18, 1)
    words = "CUDA out of memory" if device.type == "cuda" else "DefaultCPUAllocator: can't allocate memory"
    with torch.set_grad_enabled(grads), pytest.raises(RuntimeError, match=words) as of_pytorch:
        plain(x)
    words += r".*fusedlstm: expected memory for a tensor of size \[\d+, \d+, 4\], got none"
    with torch.set_grad_enabled(grads), pytest.raises(RuntimeError, match=words) as of_ours:
        fused(x)
    assert of_ours.type is of_pytorch.type


@pytest.fixture
def fail(monkeypatch):
    """fail(kind): operators of this kind find no memory, as they say of a GPU."""

    def raising(*arguments):
        raise RuntimeError(WORDS)

    def fail(kind, operators=OPERATORS):
        for name, own in operators.items():
            monkeypatch.setitem(operators, name, own._replace(**{kind: raising}))

    monkeypatch.setattr(_usual, "_PLAIN", {mode: (gates, raising) for mode, (gates, _) in _usual._PLAIN.items()})
    return fail


@contextmanager
def raises():
    with pytest.raises(torch.OutOfMemoryError) as raised:
        yield
    assert str(raised.value) == WORDS


@every
def test_in_inference(member, fail):
    fail("stack_inference")
    with torch.no_grad(), raises():
        member.layer(3, 4)(STEPS)


@every
def test_in_inference_of_a_cell(member, fail):
    fail("cell_inference")
    with torch.no_grad(), raises():
        member.one_step(3, 4)(STEPS[0])


def layers(member):
    return member.layer(3, 4)(STEPS)[0]


def rows(member):
    return member.layer(3, 4)(STEPS, lengths=torch.tensor([3, 5]))[0]


def cell(member):
    return tensors_of(member.one_step(3, 4)(STEPS[0]))[0]


def varied(member):
    return member.layer(3, 4, zoneout=0.1)(STEPS)[0]


# By the operators of forward and backward.
CALLS = {
    ("stack", "stack_backward"): layers,
    ("layer", "backward"): rows,
    ("cell", "cell_backward"): cell,
    ("recurrence", "backward"): varied,
}


# Those whose steps and variants have kernels of ours in training too.
@pytest.mark.parametrize("member", [LSTM, GRU], ids=str)
@pytest.mark.parametrize("forward, backward", CALLS)
def test_in_training(member, forward, backward, fail):
    call = CALLS[forward, backward]
    operators = _recurrence._OPERATORS if call is varied else OPERATORS
    output = call(member)
    fail(backward, operators)
    with raises():
        output.sum().backward()
    fail(forward, operators)
    with raises():
        call(member)


def test_other_words_stay(fail, monkeypatch):
    monkeypatch.setattr(_out_of_memory, "_WORDS", "CUDA error")
    fail("stack_inference")
    with torch.no_grad(), pytest.raises(RuntimeError, match="CUDA out of memory") as raised:
        layers(LSTM)
    assert raised.type is RuntimeError
