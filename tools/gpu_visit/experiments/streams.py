"""Two launches of GRID on two streams: each needs the whole GPU at once, and waits for all of its CTAs."""

import torch

from gpu_visit.layers import pair, random_input, use


def measure(device, item):
    precision, plan, T, B, H = (item[key] for key in ("precision", "plan", "T", "B", "H"))
    use(precision, plan)
    ours, _ = pair(device, H, H, precision)
    inputs = [random_input(device, precision, T, B, H) for _ in range(2)]
    streams = [device.new_stream() for _ in inputs]
    with torch.no_grad():
        alone = [ours(x)[0] for x in inputs]
        device.synchronize()
        together = []
        for x, stream in zip(inputs, streams):
            with device.on(stream):
                together.append(ours(x)[0])
        device.synchronize()
    equal = all(torch.equal(a, b) for a, b in zip(alone, together))
    yield {"name": item["name"], **({} if equal else {"failed": "wrong value: results together and alone differ"})}
