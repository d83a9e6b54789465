"""The planner of a CUDA device: what may run a problem there, by its model, and what it is told to prefer."""

from __future__ import annotations

import functools
import json
import logging
from typing import NamedTuple

import torch

from fusedlstm import _library, _measure
from fusedlstm._namespace import REGISTERED
from fusedlstm._plan_tables import Tables
from fusedlstm._version import __version__

log = logging.getLogger("fusedlstm")


class Problem(NamedTuple):
    """What a choice depends on. Sizes as in fusedlstm/reference.py; L layers, P projected features or 0."""

    cell: str
    T: int
    B: int
    I: int
    H: int
    P: int
    L: int
    D: int
    dtype: torch.dtype
    allow_tf32: bool
    is_packed: bool
    is_training: bool

    # In tables. Problems of nearly the same sizes, which take nearly the same time a step, share a name.

    @property
    def name(self) -> str:
        """Of the whole call, for which cuDNN is a contender."""
        sizes = f"I={_power_of_two(self.I)} L={self.L}{' packed' * self.is_packed}"
        return f"{self._recurrence} {sizes} {'training' if self.is_training else 'inference'}"

    def name_of_pass(self, is_backward: bool) -> str:
        """Of what kernels of one layer run."""
        return f"{self._recurrence} {'backward' if is_backward else 'forward'}"

    @property
    def _recurrence(self) -> str:
        arithmetic = "tf32" if self.dtype is torch.float32 and self.allow_tf32 else _name_of(self.dtype)
        T, B, H, P, D = _power_of_two(self.T), _tiles(self.B), self.H, self.P, self.D
        return f"{self.cell} {arithmetic} T={T} B={B} H={H} P={P} D={D}"

    @property
    def passes(self) -> tuple[bool, ...]:
        """For each pass of the call whether it is backward."""
        return (False, True) if self.is_training else (False,)


def _power_of_two(size: int) -> int:
    """The next one."""
    return 1 << (size - 1).bit_length()


def _tiles(batch: int) -> int:
    """Batch rows as tiles of kernels have them: of 8, many of 64."""
    tile = 8 if batch <= 64 else 64
    return (batch + tile - 1) // tile * tile


class Planner:
    """The planner of one CUDA device, as its library has it, and the tables of that GPU."""

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        cuda = "{}.{}".format(*(_library.driver_version() or (0, 0)))
        versions = {"cuda": cuda, "cudnn": str(torch.backends.cudnn.version()), "fusedlstm": __version__}
        self.tables = Tables(torch.cuda.get_device_name(ordinal), versions)

    def contenders(self, problem: Problem, is_backward: bool) -> dict:
        """As contenders_json of csrc/cuda/host/plan_contenders.h."""
        p = problem
        sizes = p.T, p.B, p.I, p.H, p.P, p.D, p.L
        rest = _name_of(p.dtype), p.allow_tf32, p.is_packed, is_backward
        return json.loads(REGISTERED._cuda_contenders(self.ordinal, p.cell, *sizes, *rest))

    def expects_cudnn(self, problem: Problem) -> bool:
        """Whether by the model our best kernels may be slower than cuDNN, input products apart."""
        passes = [self.contenders(problem, is_backward) for is_backward in problem.passes]
        # A stack that runs abreast takes less time than its layers, although its time has the products between them.
        kernels = sum(min(each["plans"][0]["doubted"] * problem.L, each["stack"]) for each in passes)
        return kernels > sum(each["cudnn"] for each in passes)

    def prefer(self, problem: Problem, is_backward: bool, request: str) -> None:
        """The kernels of the problem's pass are those of this request from now on; "" for the planner's choice."""
        p = problem
        try:
            REGISTERED._cuda_prefer(
                self.ordinal, p.cell, p.T, p.B, p.H, p.P, p.D, _name_of(p.dtype), p.allow_tf32, is_backward, request
            )
        except RuntimeError as error:  # a table's problem of this name was nearly this one
            log.info("%s: %s", p.name_of_pass(is_backward), str(error).splitlines()[0])

    def last_plan(self) -> str:
        """Of kernels; "" before the first."""
        plans = [REGISTERED._cuda_last_plan(self.ordinal, backward) for backward in (False, True)]
        return "\n".join(f"{name}: {plan}" for name, plan in zip(("forward", "backward"), plans) if plan)

    def may_measure(self) -> bool:
        """Whether kernels may be run now for their time alone."""
        return not torch.cuda.is_current_stream_capturing()

    def clock(self) -> _measure.Clock:
        """What tells the time on this device."""
        return _measure.cuda_clock


@functools.cache
def of_device(ordinal: int) -> Planner:
    """That of a CUDA device."""
    return Planner(ordinal)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
