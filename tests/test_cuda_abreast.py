"""Layers abreast on a real GPU: the streams and events that test_cuda_stack.py only emulates; needs one, else skips."""

import pytest
import torch
from family import tensors_of
from tolerance import assert_near, tolerance

import fusedlstm
from fusedlstm import FusedGRU, FusedLSTM

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.fusedlstm, "lstm_layer") or not torch.cuda.is_available(), reason="no CUDA device"
)

T, B, H, L = 67, 9, 64, 4
ABREAST, ONE_BY_ONE = "local/4x6", "local/1x1"


def run(module, x, plan, monkeypatch):
    """Results and gradients of everything."""
    monkeypatch.setenv("FUSEDLSTM_PLAN", plan)
    leaf = x.detach().requires_grad_()
    results = tensors_of(module(leaf))
    return [*results, *torch.autograd.grad(results, [leaf, *module.parameters()], [t.cos() for t in results])]


@pytest.fixture(params=[FusedLSTM, FusedGRU], ids=lambda layer: layer.__name__)
def module(request):
    return request.param(H, H, L, device="cuda", dtype=torch.bfloat16)


def test_is_layer_after_layer(module, monkeypatch):
    x = torch.randn(T, B, H, device="cuda", dtype=torch.bfloat16)
    expected = run(module, x, ONE_BY_ONE, monkeypatch)
    for _ in range(10):  # what comes in time by chance would not always
        found = run(module, x, ABREAST, monkeypatch)
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            scale = max(1.0, b.abs().max().item())
            assert_near(a / scale, b / scale, tolerance(torch.bfloat16, H, T, device_type="cuda"), f"tensor {i}")
    assert "4 layers abreast in 6 parts" in fusedlstm.last_plan()


def test_on_another_stream_and_in_a_graph(module, monkeypatch):
    monkeypatch.setenv("FUSEDLSTM_PLAN", ABREAST)
    x = torch.randn(T, B, H, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        expected = module(x)[0].clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            assert torch.equal(module(x)[0], expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            output = module(x)[0]
    for _ in range(3):
        output.zero_()
        graph.replay()
        assert torch.equal(output, expected)


def test_memory(module, monkeypatch):
    """At most 1.1 times that of layer after layer, with what the planner chooses."""
    x = torch.randn(512, 16, H, device="cuda", dtype=torch.bfloat16)
    peaks = []
    for plan in ("/1x1", ""):
        run(module, x, plan, monkeypatch)
        torch.cuda.reset_peak_memory_stats()
        run(module, x, plan, monkeypatch)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.1 * peaks[0]
