"""The layer with STREAM and with the planner's choice against float64 on the CPU: is anything right at all?"""

from gpu_visit.layers import difference, exact, forward_and_gradients, pair, random_input, use, verdict


def measure(device, item):
    precision, plan, T, B, H = (item[key] for key in ("precision", "plan", "T", "B", "H"))
    use(precision, plan)
    ours, _ = pair(device, H, H, precision)
    x = random_input(device, precision, T, B, H)
    error, worst = difference(forward_and_gradients(ours, x), forward_and_gradients(exact(ours), x.double().cpu()))
    yield {"name": item["name"], "error": error, "worst": worst, **verdict(precision, error, worst)}
