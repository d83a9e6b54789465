"""In place of gpu_visit.gpu: the whole visit on the CPU, in small sizes, with plants.

A plan of FUSEDLSTM_PLAN that begins with "planted" is one: the operators of this device do what it says.
"""

import contextlib
import ctypes
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from gpu_visit import agenda as visits
from gpu_visit.agenda import Commands, Experiment, item

HERE = Path(__file__).resolve().parent
SECONDS = 3  # of an item that hangs
BENCHMARK = ["--device", "cpu", "--cases", "decode-32", "--mode", "inference", "--threads", "1"]


def kernel(what):
    return item(what, T=2, B=3, H=8) | {"plan": what, "pass": "forward", "cell": "lstm", "gates": 4}


def experiment(items, seconds=20, workers=1):
    return Experiment(items, seconds=seconds, workers=workers)


def planted_tests(*options):
    return visits.pytest([HERE / "planted.py"], "--noconftest", *options, seconds=SECONDS)


def forked(command):
    """The same words, of Python, for a process that finds torch imported."""
    python, *words = command
    return [python, "-S", HERE / "forked.py", *words]


def load(kit):
    nvidia_smi, python = visits.of_gpu().commands["load"].lines(kit)
    return [nvidia_smi, forked(python)]


def with_plants():
    of_gpu = visits.of_gpu()
    few = [kernel("before"), kernel("planted hang"), kernel("planted fault"), kernel("planted wrong value"),
           kernel("planted misfit"), kernel("planted lost context"), kernel("after")]  # fmt: skip
    speed = [item("", H=8, B=2, T=4, layers=2, contenders=c) for c in (("cudnn", "automatic"), ("stream", "local"))]
    sizes = {"T": 4, "B": 2, "H": 8}
    return replace(
        of_gpu,
        experiments={
            "layer": experiment([item("", "float32", plan="stream", **sizes)]),
            "kernels": experiment(few, SECONDS, workers=2),
            "speed": experiment(speed),
            "numerics": experiment([item("", "float32", scale=3, **sizes)]),
            "streams": experiment([item("two launches", "float32", plan="grid", **sizes)]),
            "graphs": experiment([item("", "float32", plan="stream", **sizes)]),
            "robustness": experiment(
                [item("0", "float32", plan="stream", **sizes), item("1", "float32", plan="", **sizes)]
            ),
        },
        commands={
            **of_gpu.commands,
            "load": replace(of_gpu.commands["load"], lines=load),
            "constants": replace(of_gpu.commands["constants"], seconds=2),  # the kit of the test has one that sleeps
            "tests": Commands(lambda kit: [planted_tests("-n", "2")], 120),
            "primitives": Commands(lambda kit: [planted_tests("-k", "nothing")], 60),
            "tune": Commands(lambda kit: [visits.python("tune_rows")], 20),
            "benchmark": Commands(lambda kit: [visits.python("quick_benchmark", *BENCHMARK)], 120),
            "sanitizer": Commands(lambda kit: [visits.sanitizer("memcheck", "gpu_stand_in")], 60),
        },
        probe=20, killed=5, ending=1,
    )  # fmt: skip


visits.python = lambda module, *options, started=visits.python: forked(started(module, *options))
agenda = with_plants()


class Cpu:
    """Has the methods of gpu_visit.device.Cuda."""

    name = "cpu"
    rounds = 2
    sample_milliseconds = 0.1
    product_size = 32
    is_lost = False

    @property
    def ops(self):
        return Operators(self)

    def describe(self):
        import fusedlstm  # noqa: F401  (not in the time of the first item)

        return {"gpu": "stand-in"}

    def probe(self):
        if self.is_lost:
            raise RuntimeError("CUDA error: the context is lost")

    synchronize = probe

    def milliseconds(self, call, repeats):
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - began) * 1000 / repeats

    def captured(self, call):
        results = call()

        def replay():
            for result, new in zip(results, call()):
                result.data.copy_(new.data)

        return replay, results

    def new_stream(self):
        return None

    def on(self, stream):
        return contextlib.nullcontext()

    def is_busy(self, stream):
        return False


class Operators:
    def __init__(self, device):
        self.device = device

    def lstm_layer(self, *arguments):
        import torch

        plan = os.environ["FUSEDLSTM_PLAN"]
        results = torch.ops.fusedlstm.lstm_layer(*arguments)
        if plan == "planted hang":
            while True:
                ctypes.CDLL(None).pause()  # in C, as a wait for the device
        if plan == "planted fault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if plan == "planted wrong value":
            results[0][0, 0, 0] += 1
        if plan == "planted misfit":
            raise RuntimeError("FUSEDLSTM_PLAN=local does not fit: none compiled")
        if plan == "planted lost context":
            self.device.is_lost = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return results


def device():
    return Cpu()
