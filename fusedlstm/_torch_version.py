"""Refuses a torch that is too old, when it is imported: before anything else, since older ones lack names and ABI."""

import re

import torch

OLDEST_TORCH = (2, 10)  # the stable ABI that the libraries were built for

# Of a source build, "2.10.0a0+gitd1f2c3b", the two numbers alone count: it may have what the release has.
if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < OLDEST_TORCH:
    raise ImportError(
        f"fusedlstm expected torch >= {'.'.join(map(str, OLDEST_TORCH))}, got {torch.__version__}; "
        "upgrade torch to use it"
    )
