"""E8: any difference between two runs is a race. Large products on another stream compete for the SMs."""

import torch

from gpu_visit.layers import fits, forward_and_gradients, pair, random_input, use

PRODUCTS = 8  # some milliseconds: longer than the layer


def measure(device, item):
    precision, plan, T, B, H = (item[key] for key in ("precision", "plan", "T", "B", "H"))
    use(precision, plan)
    ours, _ = pair(device, 16, H, precision)
    x = random_input(device, precision, T, B, 16)
    if not fits(device, lambda: forward_and_gradients(ours, x)):
        yield {"name": item["name"], "skipped": "does not fit"}
        return
    first = forward_and_gradients(ours, x)
    a = torch.randn(device.product_size, device.product_size, device=device.name)
    product, beside = torch.empty_like(a), device.new_stream()
    device.synchronize()
    with device.on(beside):
        for _ in range(PRODUCTS):
            torch.mm(a, a, out=product)
    second = forward_and_gradients(ours, x)
    row = {"name": item["name"], "overlapped": device.is_busy(beside)}
    device.synchronize()
    if not all(torch.equal(p, q) for p, q in zip(first, second)):
        row["failed"] = "wrong value: two runs differ"
    yield row
