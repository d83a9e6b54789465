"""The namespace of the operators (`fusedlstm::lstm_layer` and the others), and what PyTorch has in it.

A package for Hugging Face's `kernels` has a namespace of its own here, and in its libraries: several builds may be in
one process. See tools/make_kernels_package.py.
"""

import torch

NAMESPACE = "fusedlstm"
REGISTERED = getattr(torch.ops, NAMESPACE)
