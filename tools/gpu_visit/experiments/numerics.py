"""E7: errors against float64 on the same rounded weights, ours over cuDNN's. Numbers, no verdict."""

import torch

from gpu_visit.layers import difference, exact, forward_and_gradients, pair, random_input, use


def measure(device, item):
    precision, T, B, H = (item[key] for key in ("precision", "T", "B", "H"))
    use(precision)
    ours, cudnn = pair(device, 64, H, precision)
    with torch.no_grad():
        for parameter, twin in zip(ours.parameters(), cudnn.parameters()):
            twin.copy_(parameter.mul_(item["scale"]))
    x = random_input(device, precision, T, B, 64)
    right = forward_and_gradients(exact(ours), x.double().cpu())
    row = {"name": item["name"]}
    errors = {}
    for name, module in (("ours", ours), ("cudnn", cudnn)):
        got = forward_and_gradients(module, x)
        errors[name] = [difference([g], [r])[0] for g, r in zip(got, right)]
    for what, part in (("output", slice(0, 1)), ("gradients", slice(1, None))):
        mine, theirs = (errors[name][part] for name in ("ours", "cudnn"))
        row[f"{what}_error"] = max(mine)
        row[f"{what}_over_cudnn"] = round(max(a / max(b, 1e-30) for a, b in zip(mine, theirs)), 2)
    yield row
