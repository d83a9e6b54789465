"""Small layers, forward and backward, by every plan, and layers with variants: `python -m gpu_visit.small TARGET`. For
compute-sanitizer, which makes everything many times slower. Prints a row for each."""

import importlib
import itertools
import json
import sys
from functools import partial

from fusedlstm import FusedGRU, FusedLSTM, FusedRNN
from gpu_visit.agenda import PLANS
from gpu_visit.layers import fits, forward_and_gradients, pair, random_input, use

VARIED = {FusedLSTM: {"layer_norm": True, "peephole": True}, FusedGRU: {"layer_norm": True}, FusedRNN: {}}


def main(target):
    device = importlib.import_module(target).device()
    for plan, (H, bidirectional) in itertools.product(PLANS, ((40, False), (33, True))):
        use("float32", plan)
        ours, _ = pair(device, 5, H, "float32", bidirectional=bidirectional)
        fit = fits(device, partial(forward_and_gradients, ours, random_input(device, "float32", 4, 9, 5)))
        name = f"{plan} H={H}{' bidirectional' if bidirectional else ''}"
        print(json.dumps({"name": name, **({} if fit else {"skipped": "does not fit"})}), flush=True)
    use("float32")
    for cell, options in VARIED.items():
        layer = cell(5, 33, bidirectional=True, zoneout=0.1, recurrent_dropout=0.1, **options).to(device.name)
        forward_and_gradients(layer, random_input(device, "float32", 4, 9, 5))
        device.synchronize()
        print(json.dumps({"name": f"{cell.__name__} with variants"}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
