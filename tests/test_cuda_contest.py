"""cuDNN as a contender on a real GPU, called as this package calls it, and differentiated; needs one, else skips.

The choice itself is tested by stand-ins in test_contest.py.
"""

import pytest
import torch
from family import EVERY, LSTM, tensors_of
from torch.nn.utils.rnn import pack_sequence

import fusedlstm
from fusedlstm import _contest, _planner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

OPTIONS = {
    "plain": {},
    "stack in both directions": {"num_layers": 3, "bidirectional": True},
    "no bias": {"num_layers": 2, "bias": False},
    "batch first": {"batch_first": True},
    "projection": {"num_layers": 2, "proj_size": 24},
}


@pytest.fixture
def by_cudnn(monkeypatch, tmp_path):
    """The model prefers cuDNN; without tables of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_contest, "_decisions", {})
    monkeypatch.setattr(_planner.Planner, "expects_cudnn", lambda *_: True)
    monkeypatch.setattr(_planner, "of_device", _planner.Planner)
    monkeypatch.delenv("FUSEDLSTM_PLAN")
    return monkeypatch


def values_and_gradients(module, x, packed=False):
    results = tensors_of(module(pack_sequence(list(x.unbind(1))) if packed else x))
    results = [result for result in results if result.is_floating_point()]
    inputs = [x, *module.parameters()]
    return [*results, *torch.autograd.grad(results, inputs, [result.cos() for result in results])]


CASES = {
    f"{member}-{name}{'-packed' * packed}": (member, options, packed)
    for member in EVERY
    for name, options in OPTIONS.items()
    for packed in (False, True)
    if (member is LSTM or "proj_size" not in options) and not (packed and "batch_first" in options)
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("member, options, packed", CASES.values(), ids=CASES)
def test_values_and_gradients(member, options, packed, dtype, by_cudnn):
    module = member.layer(40, 64, **options, dtype=dtype).cuda()
    x = torch.randn(12, 8, 40, dtype=dtype, device="cuda", requires_grad=True)
    found = values_and_gradients(module, x, packed)
    assert fusedlstm.last_plan() == "cuDNN (the model)"
    by_cudnn.setenv("FUSEDLSTM_PLAN", "stream")
    expected = values_and_gradients(module, x, packed)
    assert fusedlstm.last_plan().startswith("forward: ")
    allowed = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float64: 1e-9}[dtype]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).double().norm() <= allowed * other.double().norm()


def test_inference_autocast_and_second_order(by_cudnn):
    module, x = fusedlstm.FusedLSTM(40, 64, 2).cuda(), torch.randn(12, 8, 40, device="cuda", requires_grad=True)
    with torch.no_grad():
        inference = module(x)[0]
        assert fusedlstm.last_plan() == "cuDNN (the model)"
    with torch.autocast("cuda", torch.bfloat16):
        assert module(x)[0].dtype is torch.bfloat16 and fusedlstm.last_plan() == "cuDNN (the model)"

    def penalty():
        output = module(x)[0]
        torch.testing.assert_close(output, inference, rtol=0, atol=1e-4)
        (d_x,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return torch.autograd.grad(d_x.square().sum(), [x, *module.parameters()])

    found = penalty()
    by_cudnn.setenv("FUSEDLSTM_PLAN", "stream")
    for one, other in zip(found, penalty(), strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm()


def test_measured(by_cudnn):
    """Every contender runs and agrees, and the fastest is kept."""
    module, x = fusedlstm.FusedLSTM(64, 64).cuda(), torch.randn(50, 16, 64, device="cuda")
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        module(x)
    device, problem, decision = _contest.last
    assert decision.source == "measured"
    times = _planner.of_device(device).tables.find(problem.name)["microseconds"]
    assert times.keys() == {"fusedlstm", "cudnn"} and min(times.values()) > 0
