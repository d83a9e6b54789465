"""The instruction sets that the CPU kernels are compiled for and this processor has, from the narrowest on."""

import json

import torch

ISAS = json.loads(torch.ops.fusedlstm._cpu_info())["available"]
# Two more have kernels of their own for int8 alone: in floating point they run those of the set before them.
FLOAT_ISAS = [isa for isa in ISAS if isa not in ("avx_vnni", "avx512_vnni")]
