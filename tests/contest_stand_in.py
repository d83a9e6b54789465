"""A GPU's contest on the CPU: cuDNN's operators by PyTorch's own layers, a planner of an H200, and a clock that lies.

The kernels are the CPU's, whatever plan is preferred.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from fusedlstm import _contest, _cudnn, _library, _module, _planner, _run
from fusedlstm._plan_tables import Tables

LAYERS = {0: torch.rnn_relu, 1: torch.rnn_tanh, 2: torch.lstm, 3: torch.gru}
OTHERS = 500  # microseconds of who is not in `times`


def layers(x, weights, hx, cx, mode, H, P, L, batch_first, dropout, train, bidirectional, batch_sizes, dropout_state):
    """Output and last states, h first."""
    assert (batch_first, dropout, dropout_state) == (False, 0.0, None)
    assert (hx.size(2) if hx.size(2) != H else 0) == P
    states = (hx, cx) if mode == 2 else hx
    has_bias = len(weights) // (L * (1 + bidirectional)) > 3
    options = weights, has_bias, L, 0.0, train, bidirectional
    if batch_sizes:
        return LAYERS[mode](x, torch.tensor(batch_sizes), states, *options)
    return LAYERS[mode](x, states, *options, False)


def cudnn_rnn(x, weights, per_direction, buffer, hx, cx, *options):
    mode, _, _, L, _, _, train, bidirectional, *_ = options
    assert buffer is None and hx.is_contiguous() and (cx is None) == (mode != 2)
    assert len(weights) == L * (1 + bidirectional) * per_direction
    with torch.no_grad():
        output, *last = layers(x, list(weights), hx, cx, *options)
    last += [x.new_empty(0)] * (2 - len(last))
    return output, *last, x.new_empty(int(train)), x.new_empty(3)


def cudnn_rnn_backward(*arguments):
    """In a thread of its own: the caller's has no derivatives."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_backward, *arguments).result()


def _backward(x, weights, per_direction, buffer, hx, cx, output, d_output, d_h, d_c, *others):
    *options, reserve, asks = others
    assert (len(buffer), len(reserve)) == (3, 1) and len(asks) == 4
    tensors = [t.detach().requires_grad_() for t in (x, hx, *[cx] * (cx is not None), *weights)]
    states = 1 if cx is None else 2
    with torch.enable_grad():
        results = layers(tensors[0], tensors[1 + states :], tensors[1], cx if cx is None else tensors[2], *options)
    torch.testing.assert_close(results[0], output)
    pairs = [(result, d) for result, d in zip(results, (d_output, d_h, d_c)) if d is not None]
    results, incoming = zip(*pairs)
    d_x, *found = torch.autograd.grad(results, tensors, incoming, allow_unused=True)
    d_states, d_weights = found[:states], found[states:]
    return d_x, d_states[0], d_states[1] if states > 1 else None, d_weights if asks[3] else []


class Planner(_planner.Planner):
    """Of an H200.

    preferred: the requests of each problem's passes, by name.
    capturing: whether it may not measure.
    timed: who was, in turn.
    """

    def __init__(self, core):
        self.core, self.preferred, self.capturing, self.asked = core, {}, False, 0
        self.device = next(device for device in core.known_devices() if device.name == "H200")
        self.ordinal = -1
        self.times = {"stream": 900, "cudnn": 700}  # microseconds, of kernels by their request
        self.failing = {}  # "cudnn", or a request -> what is raised
        self.wrong = set()  # whose results are
        self.newest, self.timed = "", []
        self.reload()

    def reload(self):
        """As in a new process."""
        self.tables = Tables("NVIDIA H200", {"cuda": "13.0", "cudnn": "91900"})

    def contenders(self, problem, is_backward):
        self.asked += 1
        p = problem
        return json.loads(
            self.core.contenders(
                device=self.device, cell=p.cell, T=p.T, B=p.B, I=p.I, H=p.H, layers=p.L, proj_size=p.P, directions=p.D,
                dtype=str(p.dtype).removeprefix("torch."), allow_tf32=p.allow_tf32, packed=p.is_packed,
                backward=is_backward,
            )
        )  # fmt: skip

    def prefer(self, problem, is_backward, request):
        self.preferred[problem.name_of_pass(is_backward)] = self.newest = request

    def last_plan(self):
        return "forward: kernels"

    def may_measure(self):
        return not self.capturing

    def clock(self):
        return self.tick

    def tick(self, run, times):
        run()
        self.timed.append(self.running)
        return self.times.get(self.running, OTHERS)


@pytest.fixture
def contest(monkeypatch, tmp_path):
    """The stand-in planner; layers of the CPU run as on its GPU. `ran` lists who was asked to run, in turn."""
    core = pytest.importorskip("fusedlstm._core", reason="built without pybind11")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FUSEDLSTM_PLAN", raising=False)
    planner = Planner(core)
    state = SimpleNamespace(planner=planner, ran=[], tmp_path=tmp_path)

    def watched(name, function):
        def run(*arguments):
            planner.running = planner.newest if name == "kernels" else name
            state.ran.append(planner.running)
            if planner.running in planner.failing:
                raise planner.failing[planner.running]
            results = function(*arguments)
            if planner.running in planner.wrong:
                h = results[1] if name == "cudnn" else results[1][0]
                h.data.add_(1.0)
            return results

        return run

    monkeypatch.setattr(_module, "run_usual", lambda *call: None)  # the short way, which is the CPU's
    monkeypatch.setattr(_run, "is_on_gpu", lambda x: True)
    monkeypatch.setattr(_planner, "of_device", lambda ordinal: planner)
    monkeypatch.setattr(_contest, "_decisions", {})
    monkeypatch.setattr(_contest, "run_stack", watched("kernels", _contest.run_stack))
    monkeypatch.setattr(_cudnn, "cudnn_rnn", watched("cudnn", cudnn_rnn))
    monkeypatch.setattr(_cudnn, "cudnn_rnn_backward", cudnn_rnn_backward)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: planner.ordinal)
    monkeypatch.setattr(_library, "why_no_kernels", lambda device: None)
    return state
