"""Kernels that find no memory on a GPU raise what PyTorch's own operators raise there, torch.OutOfMemoryError.

Of an exception, PyTorch lets words alone through the stable interface that kernels outside of it have. What says so in
csrc/call/tensors.h is therefore given its type here. Where no function of the package is around a kernel, in graphs of
compilers, it stays the RuntimeError that the type is derived from, with the same words.
"""

from __future__ import annotations

import functools

import torch

_WORDS = "CUDA out of memory."


def refuse_if_out_of_memory(error: Exception) -> None:
    """Raises torch.OutOfMemoryError in place of the exception `error` of a kernel that is being handled; or nothing."""
    if type(error) is RuntimeError and str(error).startswith(_WORDS):
        raise torch.OutOfMemoryError(str(error)) from None


def raises_out_of_memory(function):
    """Decorator of what calls kernels and checks nothing else: the backward of autograd functions."""

    @functools.wraps(function)
    def call(*arguments):
        try:
            return function(*arguments)
        except RuntimeError as error:
            refuse_if_out_of_memory(error)
            raise

    return call
