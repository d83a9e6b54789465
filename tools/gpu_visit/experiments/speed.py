"""E0 and E2-E6: microseconds per time step of cuDNN, the planner's choice ("automatic") and forced plans.

Timing: events around at least 10 ms of work, the contenders in turns, median of the rounds; random data, never zeros.
`host_<contender>`: microseconds until an eager call returns, which is what it takes the CPU. `difference`: of the
results of `automatic`, or of the worst forced plan, from those of STREAM in the same run.
"""

import statistics
import time
from functools import partial

import torch

from gpu_visit.layers import difference, fits, pair, random_input, use, verdict


def measure(device, item):
    precision, T, B, H = (item[key] for key in ("precision", "T", "B", "H"))
    ours, cudnn = pair(device, H, H, precision, num_layers=item["layers"])
    x = random_input(device, precision, T, B, H).requires_grad_()
    grad = random_input(device, precision, T, B, H)

    def infer(module, plan):
        use(precision, plan)
        with torch.no_grad():
            return [module(x)[0]]

    def train(module, plan):
        use(precision, plan)
        out = module(x)[0]
        return [out, *torch.autograd.grad(out, [x, *module.parameters()], grad)]

    modules = {name: (cudnn, "") if name == "cudnn" else (ours, "" if name == "automatic" else name)
               for name in item["contenders"]}  # fmt: skip

    def fitting(call):
        calls = {name: partial(call, *module) for name, module in modules.items()}
        return {name: timed for name, timed in calls.items() if fits(device, timed)}

    about = {key: item[key] for key in ("name", "H", "B", "T", "layers", "precision")}
    for mode, call in (("forward", infer), ("forward+backward", train)):
        calls, right = fitting(call), call(ours, "stream")
        errors = {name: difference(timed(), right)[0] for name, timed in calls.items()}
        mine = [error for name, error in errors.items() if name != "cudnn"]
        checked = {"difference": max(mine), **verdict(precision, max(mine))} if mine else {}
        host = {f"host_{name}": microseconds_to_return(device, timed) for name, timed in calls.items()}
        yield {**about, "mode": mode, **time_in_turns(device, calls, T), **host, **checked}
    # Last: a capture that fails costs its own row.
    graphs = {name: device.captured(timed)[0] for name, timed in fitting(infer).items()}
    yield {**about, "mode": "forward in a graph", **time_in_turns(device, graphs, T)}


def time_in_turns(device, calls, steps):
    """Median microseconds per step of each call, measured in turns."""
    samples, repeats = {name: [] for name in calls}, {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        repeats[name] = max(1, int(device.sample_milliseconds / max(device.milliseconds(call, 1), 0.01)))
    for _ in range(device.rounds):
        for name, call in calls.items():
            samples[name].append(device.milliseconds(call, repeats[name]) * 1000 / steps)
    return {name: round(statistics.median(values), 3) for name, values in samples.items()}


def microseconds_to_return(device, call):
    """Median of the time until a call returns, when the device has nothing else to do."""
    samples = []
    for _ in range(device.rounds):
        device.synchronize()
        begin = time.perf_counter()
        call()
        samples.append((time.perf_counter() - begin) * 1e6)
    device.synchronize()
    return round(statistics.median(samples), 1)
