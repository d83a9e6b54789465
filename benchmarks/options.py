"""The options of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from fusedlstm.cells import CELLS, LSTM, RNN_TANH

from .contenders import INT8_PEERS, peers_of
from .workload import INT8, MODES, PRECISIONS

MAIN_LIMIT = 4.0  # minutes

_DTYPES = [name for name in PRECISIONS if name != INT8]  # which has a run of its own

_CELL_NAMES = ", ".join([*CELLS, "rnn (rnn_tanh)"])


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    made.add_argument("--cell", type=cell_name, default=LSTM.name, help=f"one of {_CELL_NAMES} (default: {LSTM.name})")
    made.add_argument("--device", type=_device, default=default_device, help=f"default: {default_device}")
    made.add_argument("--dtype", type=_choices(_DTYPES), help=names(_DTYPES))
    made.add_argument("--mode", type=_choices(MODES), help=names(MODES))
    made.add_argument("--threads", type=counts, help="CPU threads, like 1,2")
    made.add_argument("--callers", type=counts, help="Python threads that call at the same time, like 1,8")
    made.add_argument("--neighbours", type=counts, help="other processes that keep CPUs busy, like 1,2")
    made.add_argument("--peers", type=_split, help=names(peers_of(LSTM)) + "; of another cell with its own names")
    made.add_argument("--cuda-graph", action="store_true", help="CUDA graphs as well as eager")
    made.add_argument(
        "--quantized", action="store_true", help=f"int8 inference on a CPU, against {', '.join(INT8_PEERS)}"
    )
    size = made.add_mutually_exclusive_group()
    text = "names or patterns, like grid-*,lm-*, in place of the cases of the main, quick or full run"
    size.add_argument("--cases", type=_split, help=text)
    for profile, text in (("quick", "seconds: does it run"), ("full", "everything: about an hour on two cores")):
        size.add_argument(f"--{profile}", dest="profile", action="store_const", const=profile, help=text)
    made.add_argument(
        "--limit",
        type=_minutes,
        help=f"minutes, 0 for none (default: {MAIN_LIMIT:g} in the main and the quantized run, else none)",
    )
    made.add_argument("--out", type=Path, help="folder of the results")
    made.add_argument("--list", action="store_true", help="print the cases and stop")
    return made


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends with the parser's error where options do not go together."""
    device = arguments.device
    if arguments.cuda_graph and device.type != "cuda":
        parser.error(f"argument --cuda-graph: expected --device cuda, got {device}")
    for name in ("callers", "neighbours", "quantized"):
        if getattr(arguments, name) and device.type != "cpu":
            parser.error(f"argument --{name}: expected --device cpu, got {device}")
    if arguments.quantized:
        for option, given in (("--dtype", arguments.dtype), (f"--{arguments.profile}", arguments.profile)):
            if given:
                parser.error(f"argument {option}: not allowed with argument --quantized")
        if others := set(arguments.mode or ()) - {"inference", "decode"}:
            parser.error(f"argument --mode: expected inference or decode with --quantized, got {', '.join(others)}")
    known = peers_of(CELLS[arguments.cell], INT8 if arguments.quantized else "float32")
    for name in arguments.peers or ():
        if name not in known:
            parser.error(f"argument --peers: expected {names(known)}, got {name!r}")


def cell_name(text: str) -> str:
    """The name of a cell; nn.RNN's own is the one with tanh."""
    name = {"rnn": RNN_TANH.name}.get(text, text)
    if name in CELLS:
        return name
    raise argparse.ArgumentTypeError(f"expected one of {_CELL_NAMES}, got {text!r}")


def _device(text: str) -> torch.device:
    """One that this PyTorch can run on, of the two kinds that the timing knows."""
    try:
        device = torch.device(text)
    except RuntimeError:  # no such kind
        device = None
    count = torch.cuda.device_count()
    if device and (device.type == "cpu" or (device.type == "cuda" and (device.index or 0) in range(count))):
        return device
    raise argparse.ArgumentTypeError(f"expected cpu or one of {count} CUDA devices, got {text!r}")


def _split(text: str) -> list[str]:
    """The parts between commas; what is named twice is not measured twice."""
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def counts(text: str) -> list[int]:
    for part in _split(text):
        if not part.isdecimal() or int(part) < 1:
            raise argparse.ArgumentTypeError(f"expected positive numbers like 1,2, got {part!r}")
    return [int(part) for part in _split(text)]


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 <= minutes < math.inf:
        raise argparse.ArgumentTypeError(f"expected minutes like 4 or 0.5, 0 for no limit, got {text!r}")
    return minutes


def _choices(allowed):
    def parse(text: str) -> list[str]:
        for part in _split(text):
            if part not in allowed:
                raise argparse.ArgumentTypeError(f"expected {names(allowed)}, got {part!r}")
        return _split(text)

    return parse


def names(allowed) -> str:
    return "one or more of: " + ", ".join(allowed)
