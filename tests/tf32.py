"""PyTorch's switches of TF32 on CUDA, for as long as a test needs them."""

import contextlib

import torch


@contextlib.contextmanager
def tf32(lstm: bool, matmul: bool):
    """Turns TF32 on or off: for nn.LSTM, which is cuDNN's and has it on by default, and for matrix products."""
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch, value in zip(switches, (lstm, matmul)):
            switch.allow_tf32 = value
        yield
    finally:
        for switch, value in zip(switches, before):
            switch.allow_tf32 = value
