"""Forward and backward in one CUDA graph: a replay with new numbers in the same places gives what a call gives."""

import torch

from gpu_visit.layers import fits, pair, random_input, use

REPLAYS = 3


def measure(device, item):
    precision, plan, T, B, H = (item[key] for key in ("precision", "plan", "T", "B", "H"))
    use(precision, plan)
    ours, _ = pair(device, H, H, precision)
    x = random_input(device, precision, T, B, H).requires_grad_()
    grad = random_input(device, precision, T, B, H)

    def step():
        out = ours(x)[0]
        return [out, *torch.autograd.grad(out, [x, *ours.parameters()], grad)]

    if not fits(device, step):
        yield {"name": item["name"], "skipped": "does not fit"}
        return
    replay, results = device.captured(step)
    for _ in range(REPLAYS):
        with torch.no_grad():
            x.normal_()
            grad.normal_()
        replay()
        device.synchronize()
        replayed = [r.detach().clone() for r in results]
        if not all(torch.equal(a, b) for a, b in zip(replayed, step())):
            yield {"name": item["name"], "failed": "wrong value: a replay and a call differ"}
            return
    yield {"name": item["name"]}
