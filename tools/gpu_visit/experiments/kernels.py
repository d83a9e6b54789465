"""One resident kernel against STREAM on the same GPU: all results of the operator, forward or backward."""

from functools import partial

import torch

from gpu_visit.layers import DTYPES, difference, use, verdict

FEATURES = 16


def measure(device, item):
    precision, cell, G, T, B, H = (item[key] for key in ("precision", "cell", "gates", "T", "B", "H"))

    def draw(*sizes, scale=1.0):
        return (torch.randn(*sizes, device=device.name) * scale).to(DTYPES[precision])

    def states():
        return [draw(1, B, H) for _ in range(2 if cell == "lstm" else 1)]

    layer = [
        draw(T, B, FEATURES), states(),
        [draw(G * H, FEATURES, scale=0.2)], [draw(G * H, H, scale=H**-0.5)], [draw(G * H)], [draw(G * H)], [],
        None, None, None, [], precision == "tf32",
    ]  # fmt: skip
    use(precision, "stream")
    if item["pass"] == "forward":
        run = partial(getattr(device.ops, f"{cell}_layer"), *layer)
    else:
        output, _, saved, carried = getattr(device.ops, f"{cell}_layer")(*layer)
        needs = [True] * 7 + [False]  # the initial states of resets do not take part
        backward = [draw(T, B, H), states(), None, *layer, output, saved, carried, needs]
        run = partial(getattr(device.ops, f"{cell}_layer_backward"), *backward)
    right = run()
    use(precision, item["plan"])
    try:
        got = run()
    except RuntimeError as error:
        if "does not fit" not in str(error):
            raise
        yield {"name": item["name"], "skipped": str(error).splitlines()[0]}
        return
    error, worst = difference(got, right)
    yield {"name": item["name"], "error": error, "worst": worst, **verdict(precision, error, worst)}
