"""Small layers, forward and backward, by every plan: `python -m gpu_visit.small TARGET`. For compute-sanitizer, which
makes everything many times slower. Prints a row for each."""

import importlib
import itertools
import json
import sys
from functools import partial

from gpu_visit.agenda import PLANS
from gpu_visit.layers import fits, forward_and_gradients, pair, random_input, use


def main(target):
    device = importlib.import_module(target).device()
    for plan, (H, bidirectional) in itertools.product(PLANS, ((40, False), (33, True))):
        use("float32", plan)
        ours, _ = pair(device, 5, H, "float32", bidirectional=bidirectional)
        fit = fits(device, partial(forward_and_gradients, ours, random_input(device, "float32", 4, 9, 5)))
        name = f"{plan} H={H}{' bidirectional' if bidirectional else ''}"
        print(json.dumps({"name": name, **({} if fit else {"skipped": "does not fit"})}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
