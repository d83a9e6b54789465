"""What a visit runs, and how long each thing may take. Imports no torch."""

import itertools
import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PRECISIONS = ("bfloat16", "float16", "tf32", "float32")
PLANS = ("stream", "local", "cluster", "grid")


@dataclass(frozen=True)
class Experiment:
    """The items of one step, each a dict with a name, for `measure` of the file of that name in experiments/."""

    items: list[dict]
    seconds: float  # that one may take
    workers: int = 1  # that share them; 1 where time is measured
    most_faults: int | None = None  # hangs, deaths and errors after which the rest is left


@dataclass(frozen=True)
class Commands:
    """The programs of one step, run one after the other."""

    lines: Callable  # of a Kit, the command lines
    seconds: float  # that each may take


@dataclass(frozen=True)
class Agenda:
    """Every step is an experiment or some commands, and has its place in the order of `shares`.

    Each part begins with a first kernel, without which only "load" is run, of commands.
    """

    seconds: dict[str, float]  # part -> the most that it may take
    shares: dict[str, dict[str, float]]  # part -> step -> share of them; what a step leaves goes to the next ones
    experiments: dict[str, Experiment]
    commands: dict[str, Commands]
    start: float = 60  # seconds in which a worker must be ready
    probe: float = 40  # in which one kernel must have run, torch imported before it, while workers import it too
    killed: float = 20  # that a killed process is waited for
    ending: float = 15  # of a part, kept for ending processes and for the tables


def of_gpu():
    return Agenda(
        seconds={"first": 300, "second": 240},
        shares={
            "first": {"load": 40, "layer": 15, "kernels": 80, "constants": 15, "speed": 110, "numerics": 25},
            "second": {
                "load": 40, "tests": 70, "streams": 20, "graphs": 15, "robustness": 20, "primitives": 15,
                "tune": 30, "benchmark": 40, "sanitizer": 25,
            },
        },
        experiments={
            "layer": Experiment(layer_items(), seconds=15, workers=8),
            "kernels": Experiment(list(kernel_items(ROOT)), seconds=10, workers=8, most_faults=20),
            "speed": Experiment(speed_items(), seconds=15),
            "numerics": Experiment(numerics_items(), seconds=15, workers=8),
            "streams": Experiment([item("two launches", plan="grid", T=4000, B=8, H=1024)], seconds=20),
            "graphs": Experiment(graph_items(), seconds=15, workers=8),
            "robustness": Experiment(robustness_items(200), seconds=10, workers=4, most_faults=20),
        },
        commands={
            "load": Commands(lambda kit: [["nvidia-smi"], [sys.executable, "-m", "fusedlstm"]], seconds=35),
            "constants": Commands(lambda kit: [[kit.constants]], seconds=25),
            "tests": Commands(lambda kit: [pytest(TESTS, "-k", "cuda", *IN_ORDER)], seconds=120),
            "primitives": Commands(lambda kit: [pytest(PRIMITIVES, "-k", "cuda", *IN_ORDER)], seconds=40),
            "tune": Commands(lambda kit: [tune("float16", "bfloat16", "float32")], seconds=45),
            "benchmark": Commands(lambda kit: [benchmark("--device", "cuda")], seconds=60),
            "sanitizer": Commands(lambda kit: [sanitizer(tool) for tool in SANITIZERS], seconds=60),
        },
    )  # fmt: skip


# The most telling ones first: they are begun in this order.
TESTS = [f"tests/test_{name}.py" for name in (
    "cuda", "layer", "cuda_abreast", "varied_kernels", "varied", "cuda_contest", "gradients", "sequences", "module",
    "transforms", "second_order", "ensembles", "autocast", "dropout", "cell",
)]  # fmt: skip

IN_ORDER = ["-n", "8", "--maxschedchunk", "1"]
PRIMITIVES = ["tests/test_primitives.py"]
SANITIZERS = ("memcheck", "racecheck")


def tune(*dtypes):
    """The planner's choice, its next ones and cuDNN, as users measure them."""
    shapes = [f"512,{B},{H},{H}" for H, B in HEADLINES] + ["32,8,64,64,4"]
    return python("tune_rows", *(f"{shape}:{dtype}" for shape in shapes for dtype in dtypes))


def benchmark(*options, minutes=0.4):
    """It prints its rows when it ends, which it must do before it is out of time."""
    return python("quick_benchmark", "--quick", "--limit", str(minutes), *options)


def python(module, *options):
    return [sys.executable, "-m", f"gpu_visit.{module}", *options]


def pytest(files, *options, seconds=20):
    """Tests of which one that hangs, or kills its process, costs itself alone and `seconds` at most."""
    survive = ["--timeout", str(seconds), "--timeout-method", "thread"]  # the signal would wait for the hanging call
    output = ["-p", "gpu_visit.pytest_rows", "-p", "no:cacheprovider", "-q", "--tb=short"]
    place = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    paths = [str(ROOT / file) for file in files]
    return [sys.executable, "-m", "pytest", *place, *survive, *output, *options, *paths]


def sanitizer(tool, target="gpu_visit.gpu"):
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    return [program, "--tool", tool, "--error-exitcode", "1", *python("small", target)]


def item(what, precision="bfloat16", **sizes):
    """A case, named after all that it says."""
    shown = [f"{key}={value}" if key.isupper() else str(value) for key, value in sizes.items() if key != "contenders"]
    return {"name": " ".join(filter(None, [what, precision, *shown])), "precision": precision, **sizes}


def layer_items():
    sizes = ((64, 5), (200, 19), (512, 11))
    cases = [(p, plan, H, B) for H, B in sizes for p in PRECISIONS for plan in ("stream", "")]
    return [item("" if plan else "automatic", p, plan=plan, T=20, B=B, H=H) for p, plan, H, B in cases]


def kernel_items(root):
    """Every kernel that kernel_shapes.h may compile, at sizes that fill it and at ragged ones.

    Ragged: H fills neither the last CTA nor a vector, B no tile; and, of clusters, a number of CTAs that is no power
    of two (3, 5, 13 ...). The operators themselves say of which shapes there is no kernel.
    """
    text = (root / "csrc/cuda/host/kernel_shapes.h").read_text()
    pattern = r"\{CellKind::k(\w+), Transport::k(\w+), Pass::k(\w+), (\d+), (\d+), (\d+), (\d+), (\d+)\}"
    for found in re.findall(pattern, text):
        cell, transport, which = map(str.lower, found[:3])
        rows, chunks, splits, tiles, shared = map(int, found[3:])
        shape = f"{cell} {transport} {which} {rows}x{chunks}x{splits}x{tiles}{f'+{shared}' if shared else ''}"
        for precision in PRECISIONS:
            yield from kernel_sizes(shape, precision, cell, transport, which, rows, chunks, splits, tiles)


# By the kind of cell: its gates, and the operators that run it, in turns.
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
CELLS = {"lstm": ["lstm"], "gru": ["gru"], "rnn": ["rnn_tanh", "rnn_relu"]}


def kernel_sizes(shape, precision, kind, transport, which, rows, chunks, splits, tiles):
    element_bytes = 2 if precision in ("bfloat16", "float16") else 4
    sums, operands = (GATES[kind], 1) if which == "forward" else (1, GATES[kind])
    weight_rows, k = 8 // splits * 8 * rows, chunks * splits * 64 // element_bytes
    units = weight_rows // sums
    in_cluster = transport in ("cluster", "bulk")
    if in_cluster and which == "backward":  # a CTA multiplies its own operands
        units, k = k // operands, weight_rows * operands
    if transport == "mesh":  # a CTA has an eighth of the units and of the K of its cluster
        units, k = units // 8, k * 8
    most_ctas = {"local": 1, "cluster": 16, "bulk": 16, "grid": 128, "mesh": 128}[transport]
    full = min(most_ctas * units, k // operands)
    sizes = {full, max(1, full - units // 2 - 3)}
    if in_cluster:
        sizes.add(full - 3 * units - 5 if full > 8 * units else full - units - 5)
    for H, cell in zip(sorted(sizes), itertools.cycle(CELLS[kind])):
        two_tiles = transport not in ("grid", "mesh") or -(-H // units) * 2 <= 132
        B = 8 * tiles + 3 if two_tiles else 8 * tiles - 1
        case = item(shape, precision, T=7, B=B, H=H)
        yield case | {"plan": f"{transport}:{units}x{8 * tiles}x{k}", "pass": which, "cell": cell, "gates": GATES[kind]}


HEADLINES = [(128, 64), (512, 64), (1024, 16), (1024, 64)]  # H, B
OTHERS = [(64, 64), (256, 64), (512, 8), (2048, 16)]


# The two ways to send within a cluster, by kernels that differ in nothing else: H, B and what a CTA has of them. H is
# beyond what CLUSTER has another kernel of that shape for.
SENDING = [(512, 8, "32x8"), (512, 64, "64x8"), (512, 1, "32x8"), (320, 8, "32x8")]


def sending_items():
    return [
        item(f"cluster and bulk {units}", H=H, B=B, T=512, layers=1, contenders=(f"cluster:{units}", f"bulk:{units}"))
        for H, B, units in SENDING
    ]


def speed_items():
    """What is asked first comes first: the headline shapes, against cuDNN; how to send; the others; every plan."""
    small = [(64, 8, 32, 4), (64, 1, 32, 4)]  # launches of 4 layers: what the host takes
    first = [(H, B, 512, 1) for H, B in HEADLINES] + small
    then = [(H, B, 512, 1) for H, B in OTHERS]
    asked = items_of([(first, ("cudnn", "automatic"))])
    return asked + sending_items() + items_of([(then, ("cudnn", "automatic")), (first, PLANS), (then, PLANS)])


def items_of(passes):
    return [
        item("plans" if contenders is PLANS else "", p, H=H, B=B, T=T, layers=layers, contenders=contenders)
        for shapes, contenders in passes
        for H, B, T, layers in shapes
        for p in PRECISIONS
    ]


def numerics_items():
    cases = [(p, H, scale) for H in (64, 512) for scale in (1, 3) for p in PRECISIONS]
    return [item("", p, H=H, B=16, T=128, scale=scale) for p, H, scale in cases]


def graph_items():
    cases = [(p, plan, H) for plan in ("", *PLANS) for H in (64, 256) for p in PRECISIONS]
    return [item("" if plan else "automatic", p, plan=plan, T=20, B=11, H=H) for p, plan, H in cases]


def robustness_items(count):
    draw = random.Random(0)
    items = []
    for number in range(count):
        precision, plan = draw.choice(PRECISIONS), draw.choice(["", *PLANS])
        T, B, H = draw.randint(1, 40), draw.randint(1, 40), draw.randint(1, 600)
        items.append(item(f"{number}", precision, plan=plan, T=T, B=B, H=H))
    return items
