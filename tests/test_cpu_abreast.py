"""Layers of a stack beside each other on the CPU: the same bits as one after the other, however threads come and go."""

import copy
import itertools
import threading

import pytest
import torch
from family import EVERY, LSTM, every, tensors_of
from forked_python import run_python
from instruction_sets import ISAS
from pairwise import pairwise
from quantized_layers import weights_of
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fusedlstm
from fusedlstm import freeze, quantize

PREPARE = freeze, quantize
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CASES = {  # of FusedLSTM's options, sizes T and B
    "two layers": ({"num_layers": 2}, 65, 1),
    "more layers than threads": ({"num_layers": 5}, 33, 3),
    "without bias": ({"num_layers": 3, "bias": False}, 40, 2),
    "a step": ({"num_layers": 2}, 1, 1),
    "two steps": ({"num_layers": 3}, 2, 2),
    "parts of a chunk backward": ({"num_layers": 2}, 101, 1),
    "a chunk of one step backward": ({"num_layers": 2}, 257, 1),
    "chunks backward": ({"num_layers": 2}, 700, 1),
    "blocks in chunks backward": ({"num_layers": 3}, 173, 3),
    "many rows": ({"num_layers": 2}, 20, 40),
    "projection": ({"num_layers": 3, "proj_size": 5}, 50, 2),
}


@pytest.fixture
def cpu_threads(forced):
    """Sets the number of threads, and the plan by name."""
    threads = torch.get_num_threads()

    def set_both(count, plan, isa=""):
        torch.set_num_threads(count)
        forced(isa, plan)

    yield set_both
    torch.set_num_threads(threads)


def _called(module, x, hx):
    output, last = module(x, hx)
    return [output.data if isinstance(output, PackedSequence) else output, *tensors_of(last)]


@torch.no_grad()
def _inferred(module, x, hx):
    return _called(module, x, hx)


def _results(module, x, hx):
    """Of inference, of training, and all gradients."""
    inferred, trained = _inferred(module, x, hx), _called(module, x, hx)
    loss = sum((one.double() * torch.linspace(-1, 1, one.numel()).view(one.shape)).sum() for one in trained)
    return [*inferred, *trained, *torch.autograd.grad(loss, [*tensors_of(hx), *module.parameters()])]


def _after_nan(results, module, x, hx):
    """results(module, x, hx), in memory where nothing is right by chance: of NaN in place of x."""
    nan = x * torch.nan if isinstance(x, torch.Tensor) else x._replace(data=x.data * torch.nan)
    results(module, nan, hx)
    return results(module, x, hx)


def _states(module, B, dtype):
    sizes = (module.num_layers, B, module.proj_size or module.hidden_size), (module.num_layers, B, module.hidden_size)
    states = [torch.randn(size, dtype=dtype).requires_grad_() for size in sizes]
    return tuple(states) if module.mode == "LSTM" else states[0]


def _is_one(member, name, *_):
    return member is LSTM or "proj_size" not in CASES[name][0]


@pairwise(_is_one, member=EVERY, name=CASES, dtype=DTYPES)
def test_are_those_of_one_thread(member, name, dtype, cpu_threads):
    options, T, B = CASES[name]
    torch.manual_seed(1)
    module = member.layer(6, 19, **options, dtype=dtype)
    x, hx = torch.randn(T, B, 6, dtype=dtype), _states(module, B, dtype)
    cpu_threads(1, "")
    expected = _results(module, x, hx)
    for threads in (2, 3):
        cpu_threads(threads, "abreast")
        for actual, wanted in zip(_after_nan(_results, module, x, hx), expected, strict=True):
            assert torch.equal(actual, wanted)


@pairwise(
    _is_one,
    member=EVERY,
    name=CASES,
    prepared=[("freeze", torch.float32), ("freeze", torch.bfloat16), ("quantize", torch.float32)],
)
def test_prepared_weights(member, name, prepared, cpu_threads):
    """With states, and without."""
    (options, T, B), dtype = CASES[name], prepared[1]
    prepare = {"freeze": freeze, "quantize": quantize}[prepared[0]]
    module = prepare(member.layer(6, 19, **options, dtype=dtype).eval())
    x, hx = torch.randn(T, B, 6, dtype=dtype), _states(module, B, dtype)
    cpu_threads(1, "")
    expected = [_inferred(module, x, states) for states in (hx, None)]
    for threads in (2, 3):
        cpu_threads(threads, "abreast")
        for states, wanted in zip((hx, None), expected):
            assert all(map(torch.equal, _after_nan(_inferred, module, x, states), wanted))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("member", [LSTM, EVERY[1]], ids=str)
def test_every_instruction_set(member, isa, cpu_threads):
    for dtype in (torch.float32, torch.bfloat16):
        module = member.layer(6, 19, num_layers=3, dtype=dtype)
        x, hx = torch.randn(130, 1, 6, dtype=dtype), _states(module, 1, dtype)
        cpu_threads(1, "", isa)
        prepared = [prepare(copy.deepcopy(module).eval()) for prepare in PREPARE[: 1 + (dtype == torch.float32)]]

        def results(module, x, hx):
            return [*_results(module, x, hx), *[y for own in prepared for y in _inferred(own, x, hx)]]  # noqa: B023

        expected = results(module, x, hx)
        cpu_threads(3, "abreast", isa)
        assert all(map(torch.equal, _after_nan(results, module, x, hx), expected))


def test_wide_layers(cpu_threads):
    """Whose input gradients take long enough to be missed, if the layer below is told of them before."""
    module, x = fusedlstm.FusedLSTM(6, 320, 2), torch.randn(100, 1, 6)
    hx = _states(module, 1, torch.float32)
    cpu_threads(1, "")
    expected = _results(module, x, hx)
    cpu_threads(2, "abreast")
    for _ in range(3):
        assert all(map(torch.equal, _after_nan(_results, module, x, hx), expected))


LENGTHS = {  # of the sequences of a packed batch
    "some": [90, 41, 41, 2],
    "one goes on alone": [97, *[3] * 39],
    "one goes on alone, of many": [20, *[3] * 47],
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
    assert all(map(torch.equal, _after_nan(_results, module, x, hx), expected))


def _weights_of(kind, layer, **options):
    """A layer's, as its operator takes them."""
    if kind == "quantized":
        return weights_of(quantize(layer.eval(), **options))[0]
    return [*torch.ops.fusedlstm.lstm_freeze([*layer.parameters()], 1, 1)]


def _of_stack(kind, ways):
    """The weights of layers as the operator of a stack takes them; of each, `ways` has what `_weights_of` gives."""
    if kind == "quantized":
        return [weight for own in ways for weight in own]
    most = max(len(row) for (row,) in ways)
    return torch.stack([pad(row, (0, -most % 64 + most - len(row))) for (row,) in ways])


@pytest.mark.parametrize("kind", ["frozen", "quantized"])
def test_layers_that_other_kernels_run(kind, forced, cpu_threads):
    """Weights of reduced range, for which AVX2 has other kernels, with some of full range; frozen ones with those of
    another instruction set."""
    x, ways = torch.randn(40, 1, 19), []
    isa = "avx2" if kind == "quantized" and "avx2" in ISAS else ""
    for is_first in (True, False):
        forced(ISAS[0] if is_first else "", "")
        options = {"reduce_range": is_first} if kind == "quantized" else {}
        ways.append(_weights_of(kind, fusedlstm.FusedLSTM(19, 19), **options))
    forced("", "")
    layer, stack = (getattr(torch.ops.fusedlstm, f"lstm_{of}_{kind}") for of in ("layer", "stack"))
    for both in (ways, ways[::-1]):
        cpu_threads(1, "", isa)
        expected, last_of_each = x, []
        for own in both:
            weights = own if kind == "quantized" else own[0]
            expected, last = layer(expected, [], weights, None, None, None, [])
            last_of_each.append(last)
        cpu_threads(2, "abreast", isa)
        output, *last = stack(x, None, None, _of_stack(kind, both), 2)
        assert torch.equal(output, expected)
        assert all(map(torch.equal, last, map(torch.cat, zip(*last_of_each))))


@pytest.mark.parametrize("kind", ["frozen", "quantized"])
def test_prepared_layers_of_other_sizes(kind):
    """What is written into the states of all layers stays inside of them."""
    layers = [fusedlstm.FusedLSTM(*sizes) for sizes in ((5, 7), (7, 70))]
    weights = _of_stack(kind, [_weights_of(kind, layer) for layer in layers])
    message = r"expected the states of every layer of size \[2, 3, 70\], got \[2, 3, 7\]"
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.fusedlstm, f"lstm_stack_{kind}")(torch.randn(4, 3, 5), None, None, weights, 2)


def test_by_themselves(cpu_threads):
    """Where rows are few two threads choose to run layers abreast (test_cpu_plans.py): no name of a plan is given."""
    module, x = fusedlstm.FusedLSTM(64, 128, 2), torch.randn(200, 1, 64)
    hx, prepared = _states(module, 1, torch.float32), [prepare(copy.deepcopy(module).eval()) for prepare in PREPARE]

    def results():
        return [*_results(module, x, hx), *[y for own in prepared for y in _inferred(own, x, hx)]]

    cpu_threads(1, "")
    expected = results()
    cpu_threads(2, "")
    assert all(map(torch.equal, results(), expected))


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
import copy, os, torch, fusedlstm
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
module, x = fusedlstm.FusedLSTM(8, 24, 4), torch.randn(300, 1, 8)
prepared = [fusedlstm.freeze(copy.deepcopy(module).eval()), fusedlstm.quantize(copy.deepcopy(module).eval())]
def results():
    output = module(x)[0]
    gradients = torch.autograd.grad(output.sum(), list(module.parameters()))
    with torch.no_grad():
        return [output.detach(), *gradients, *[own(x)[0] for own in prepared]]
torch.set_num_threads(1)
expected = results()
torch.set_num_threads(4)
torch.ops.fusedlstm._cpu_force("", "abreast")
for _ in range(3):
    assert all(map(torch.equal, results(), expected))
print("right")
"""
    result = run_python(code)
    assert result.stdout.split() == ["right"], result.stderr
