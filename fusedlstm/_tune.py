"""`python -m fusedlstm tune`: measures problems ahead, so that no call of a program has to."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from fusedlstm import _contest, _library, _planner, modules
from fusedlstm._options import device, integer_from
from fusedlstm._plan_tables import table_of

_MODULES = {"lstm": modules.FusedLSTM, "gru": modules.FusedGRU, "rnn_tanh": modules.FusedRNN}
_CELL_OF_GATES = {4: "lstm", 3: "gru", 1: "rnn_tanh"}
_WIDTH = 10  # of a column of times


class Stack(NamedTuple):
    """A module's sizes."""

    cell: str
    I: int
    H: int
    L: int = 1
    P: int = 0
    D: int = 1

    def module(self, device, dtype):
        """One of them."""
        options = {"proj_size": self.P} if self.P else {}
        return _MODULES[self.cell](
            self.I, self.H, self.L, bidirectional=self.D == 2, device=device, dtype=dtype, **options
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--shapes", nargs="+", type=_shape, metavar="T,B,I,H[,L]",
        help="time steps, batch size, input size, hidden size, layers",
    )  # fmt: skip
    what.add_argument("--model", type=Path, metavar="FILE", help="a state_dict with LSTM, GRU or tanh RNN layers in it")
    parser.add_argument("--steps", nargs="+", type=integer_from(1), default=[128], help="with --model (default: 128)")
    parser.add_argument("--batch", nargs="+", type=integer_from(1), default=[16], help="with --model (default: 16)")
    parser.add_argument("--cell", default="lstm", choices=_MODULES, help="with --shapes (default: %(default)s)")
    parser.add_argument("--bidirectional", action="store_true", help="with --shapes")
    parser.add_argument("--proj-size", type=integer_from(0), default=0, help="with --shapes")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32"], choices=("float32", "float64", "bfloat16", "float16")
    )
    parser.add_argument("--mode", nargs="+", default=["inference", "training"], choices=("inference", "training"))
    parser.add_argument("--device", default="cuda", type=device)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results also there, for FUSEDLSTM_PLANS")


def main(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Measures what is not in a table yet, and prints a line for each problem; returns the exit status."""
    if options.model:
        try:
            stacks = stacks_of(_loaded(options.model))
        except ValueError as error:
            parser.error(f"--model: expected a state_dict {error}")
        if not stacks:
            parser.error(f"--model: expected a state_dict with weight_ih_l0 in it, got none in {options.model}")
        calls = [(T, B, stack) for stack in stacks for T in options.steps for B in options.batch]
    else:
        D = 2 if options.bidirectional else 1
        calls = [(T, B, Stack(options.cell, I, H, L, options.proj_size, D)) for T, B, I, H, L in options.shapes]
    try:
        for _, _, stack in calls:
            stack.module("meta", torch.float32)
    except ValueError as error:
        parser.error(str(error))
    if options.out and not options.out.parent.is_dir():
        parser.error(f"--out: expected a file in a folder that there is, got {options.out}")
    if (reason := _why_not(options.device)) is not None:
        parser.error(f"--device: expected a GPU that fusedlstm has kernels for: {reason}")
    calls = [(*call, dtype, mode) for call in calls for dtype in options.dtype for mode in options.mode]
    print(f"{'problem':<64} {'fusedlstm':>{_WIDTH}} {'cuDNN':>{_WIDTH}}  us of a call, and what runs it")
    found = {}
    for done, call in enumerate(calls, 1):
        if sys.stdout.isatty():
            print(f"measuring {done} of {len(calls)} ...", end="\r", flush=True)
        name, decision, entries = _measured(options.device, *call)
        found |= entries
        times = entries.get(name, {}).get("microseconds", {})
        columns = [
            f"{times[who]:{_WIDTH}.1f}" if who in times else f"{'-':>{_WIDTH}}" for who in ("fusedlstm", "cudnn")
        ]
        print(f"{name:<64} {' '.join(columns)}  {decision}", flush=True)
    own = _planner.of_device(_library.ordinal_of(options.device)).tables
    print(f"kept in {own.path}")
    if options.out:
        options.out.write_text(json.dumps(table_of(own.gpu, found), indent=1))
        print(f"and in {options.out}")
    return 0


def _loaded(file: Path):
    """What is in a file of torch.save."""
    try:
        return torch.load(file, weights_only=True, map_location="meta")
    except Exception as error:  # of many kinds: the file, its archive and what is pickled in it may be at fault
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise ValueError(f"that torch.load reads with weights_only=True, got {file}: {reason}") from None


def stacks_of(state_dict) -> list[Stack]:
    """The layers that a state_dict has parameters of, by the names of torch.nn; each kind once.

    Raises:
        ValueError: it is none, or one of its layers has weights of no such layer.
    """
    if not isinstance(state_dict, dict) or not all(isinstance(name, str) for name in state_dict):
        raise ValueError(f"of tensors by their names, got {type(state_dict).__name__}")
    stacks = []
    for name, weight in state_dict.items():
        if not name.endswith("weight_ih_l0"):
            continue
        prefix = name.removesuffix("weight_ih_l0")
        of_layer = {key.removeprefix(prefix): w for key, w in state_dict.items() if key.startswith(prefix)}
        hr, hh = of_layer.get("weight_hr_l0"), of_layer.get("weight_hh_l0")
        H = 0 if hh is None else hh.size(1) if hr is None else hr.size(1)
        if H == 0 or weight.size(0) not in [gates * H for gates in _CELL_OF_GATES]:
            raise ValueError(f"with layers of torch.nn in it, got weights of no such layer at {name}")
        L = sum(re.fullmatch(r"weight_ih_l\d+", key) is not None for key in of_layer)
        cell = _CELL_OF_GATES[weight.size(0) // H]
        D = 2 if "weight_ih_l0_reverse" in of_layer else 1
        stacks.append(Stack(cell, weight.size(1), H, L, 0 if hr is None else hr.size(0), D))
    return list(dict.fromkeys(stacks))


def _measured(device, T, B, stack, dtype, mode):
    """The problem's name, the decision, and the entries of tables that it rests on."""
    dtype = getattr(torch, dtype)
    module = stack.module(device, dtype)
    x = torch.randn(T, B, stack.I, device=device, dtype=dtype)
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        with torch.set_grad_enabled(mode == "training"):
            module(x)
    finally:
        torch.backends.cudnn.benchmark = before
    _, problem, decision = _contest.last
    tables = _planner.of_device(_library.ordinal_of(device)).tables
    names = [problem.name, *map(problem.name_of_pass, problem.passes)]
    return problem.name, decision, {name: entry for name in names if (entry := tables.find(name)) is not None}


def _shape(text: str) -> tuple[int, int, int, int, int]:
    try:
        sizes = [*map(integer_from(1), text.split(","))]
    except argparse.ArgumentTypeError:
        sizes = []
    if len(sizes) not in (4, 5):
        raise argparse.ArgumentTypeError(f"expected T,B,I,H or T,B,I,H,L of 1 and more, got {text}")
    return tuple(sizes) if len(sizes) == 5 else (*sizes, 1)


def _why_not(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"got {device}"
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False"
    return _library.why_no_kernels(device)
