"""Layers of a stack beside each other on the CPU: the same bits as one after the other, however threads come and go."""

import itertools
import subprocess
import sys
import threading

import pytest
import torch
from family import EVERY, LSTM, every, tensors_of
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fusedlstm

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CASES = {  # of FusedLSTM's options, sizes T and B
    "two layers": ({"num_layers": 2}, 65, 1),
    "more layers than threads": ({"num_layers": 5}, 33, 3),
    "without bias": ({"num_layers": 3, "bias": False}, 40, 2),
    "a step": ({"num_layers": 2}, 1, 1),
    "two steps": ({"num_layers": 3}, 2, 2),
    "chunks backward": ({"num_layers": 2}, 700, 1),
    "many rows": ({"num_layers": 2}, 20, 40),
    "projection": ({"num_layers": 3, "proj_size": 5}, 50, 2),
}


@pytest.fixture
def cpu_threads(forced):
    """Sets the number of threads, and the plan by name."""
    threads = torch.get_num_threads()

    def set_both(count, plan):
        torch.set_num_threads(count)
        forced("", plan)

    yield set_both
    torch.set_num_threads(threads)


def _results(module, x, hx):
    """Of inference, of training, and all gradients."""

    def call():
        output, last = module(x, hx)
        return [output.data if isinstance(output, PackedSequence) else output, *tensors_of(last)]

    with torch.no_grad():
        inferred = call()
    trained = call()
    loss = sum((one.double() * torch.linspace(-1, 1, one.numel()).view(one.shape)).sum() for one in trained)
    return [*inferred, *trained, *torch.autograd.grad(loss, [*tensors_of(hx), *module.parameters()])]


def _states(module, B, dtype):
    sizes = (module.num_layers, B, module.proj_size or module.hidden_size), (module.num_layers, B, module.hidden_size)
    states = [torch.randn(size, dtype=dtype).requires_grad_() for size in sizes]
    return tuple(states) if module.mode == "LSTM" else states[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("member", "name"),
    [(m, name) for m in EVERY for name, (options, _, _) in CASES.items() if m is LSTM or "proj_size" not in options],
    ids=str,
)
def test_are_those_of_one_thread(member, name, dtype, cpu_threads):
    options, T, B = CASES[name]
    torch.manual_seed(1)
    module = member.layer(6, 19, **options, dtype=dtype)
    x, hx = torch.randn(T, B, 6, dtype=dtype), _states(module, B, dtype)
    cpu_threads(1, "")
    expected = _results(module, x, hx)
    for threads in (2, 3):
        cpu_threads(threads, "abreast")
        for actual, wanted in zip(_results(module, x, hx), expected, strict=True):
            assert torch.equal(actual, wanted)


LENGTHS = {  # of the sequences of a packed batch
    "some": [90, 41, 41, 2],
    "one goes on alone": [97, *[3] * 39],
    "a chunk of few": [64, 3, 3, 2, 2, 2, 1],
    "one row beyond a block of 256": [100, 100, 99],
    "one": [150],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@every
def test_packed_sequences(member, lengths, dtype, cpu_threads):
    module = member.layer(6, 19, num_layers=3, dtype=dtype)
    x = pack_sequence([torch.randn(length, 6, dtype=dtype) for length in lengths])
    hx = _states(module, len(lengths), dtype)
    cpu_threads(1, "")
    expected = _results(module, x, hx)
    cpu_threads(3, "abreast")
    assert all(map(torch.equal, _results(module, x, hx), expected))


def test_by_themselves(cpu_threads):
    """Where rows are few two threads choose to run layers abreast: no name of a plan is given."""
    module, x = fusedlstm.FusedLSTM(64, 128, 2), torch.randn(200, 1, 64)
    hx = _states(module, 1, torch.float32)
    cpu_threads(1, "")
    expected = _results(module, x, hx)
    cpu_threads(2, "")
    assert all(map(torch.equal, _results(module, x, hx), expected))


def test_calls_of_other_threads(cpu_threads):
    module, x = fusedlstm.FusedGRU(8, 24, 4), torch.randn(200, 1, 8)
    hx = _states(module, 1, torch.float32)
    cpu_threads(3, "abreast")
    expected, found = _results(module, x, hx), []
    threads = [
        threading.Thread(target=lambda: found.extend(_results(module, x, hx) for _ in range(5))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(map(torch.equal, itertools.chain(*found), itertools.chain(*[expected] * 20)))


def test_more_threads_than_cpus():
    """A thread that waits leaves its CPU to the one that it waits for."""
    code = """
import os, torch, fusedlstm
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
module, x = fusedlstm.FusedLSTM(8, 24, 4), torch.randn(300, 1, 8)
expected = [module(x)[0].detach() for torch_threads in (1,) if not torch.set_num_threads(1)][0]
torch.set_num_threads(4)
torch.ops.fusedlstm._cpu_force("", "abreast")
for _ in range(10):
    output = module(x)[0]
    assert torch.equal(output, expected)
    output.sum().backward()
print("right")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["right"], result.stderr
