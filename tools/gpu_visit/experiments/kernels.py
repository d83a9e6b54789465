"""One resident kernel against STREAM on the same GPU: all results of the operator, forward or backward."""

import torch

from gpu_visit.layers import DTYPES, difference, use, verdict

FEATURES = 16


def measure(device, item):
    precision, T, B, H = (item[key] for key in ("precision", "T", "B", "H"))

    def draw(*sizes, scale=1.0):
        return (torch.randn(*sizes, device=device.name) * scale).to(DTYPES[precision])

    layer = [
        draw(T, B, FEATURES), [draw(1, B, H), draw(1, B, H)],
        [draw(4 * H, FEATURES, scale=0.2)], [draw(4 * H, H, scale=H**-0.5)], [draw(4 * H)], [draw(4 * H)], [],
        None, None, None, [], precision == "tf32",
    ]  # fmt: skip
    use(precision, "stream")
    forward = device.ops.lstm_layer(*layer)
    incoming = [draw(T, B, H), [draw(1, B, H), draw(1, B, H)], None]
    output, _, gates, cell_states = forward
    # The initial states of resets do not take part.
    backward = [*incoming, *layer, output, gates, cell_states, [True] * 7 + [False]]
    is_forward = item["pass"] == "forward"
    right = forward if is_forward else device.ops.lstm_layer_backward(*backward)
    use(precision, item["plan"])
    try:
        got = device.ops.lstm_layer(*layer) if is_forward else device.ops.lstm_layer_backward(*backward)
    except RuntimeError as error:
        if "does not fit" not in str(error):
            raise
        yield {"name": item["name"], "skipped": str(error).splitlines()[0]}
        return
    error, worst = difference(got, right)
    yield {"name": item["name"], "error": error, "worst": worst, **verdict(precision, error, worst)}
