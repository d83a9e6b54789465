"""The types of options of the command line that several commands have; each says what it expected and what it got."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

_MOST = 2**31 - 1  # so that the planner's products of a few of them are numbers too


def integer_from(least: int) -> Callable[[str], int]:
    """The type of sizes and counts that are at least this."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= _MOST:
            raise argparse.ArgumentTypeError(f"expected an integer from {least} to {_MOST}, got {text!r}")
        return value

    return integer


def device(text: str) -> torch.device:
    """The type of a device."""
    try:
        return torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"expected a device such as cuda or cuda:1, got {text!r}") from None
