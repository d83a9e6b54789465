"""The measurements of tools/gpu_check: `gpu_experiments.py EXPERIMENT [--out FILE]`.

Rows are written to FILE as they come, so that running out of time loses nothing. Timing: CUDA events around at least
10 ms of work, the contenders in turns, median of the rounds; random data, never zeros.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "_build_backend"))
from cuda_toolkit import find_toolkit
from fusedlstm import FusedLSTM

ROOT = Path(__file__).resolve().parent.parent
PLANS = ("stream", "local", "cluster", "grid")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32}
SPEED_SHAPES = [(64, 64), (128, 64), (256, 64), (512, 8), (512, 64), (1024, 16), (1024, 64), (2048, 16)]  # H, B
STEPS = 512
ROUNDS = 5


class Rows:
    """A JSON list in a file that is whole after every row."""

    def __init__(self, path):
        self.path, self.rows = path, []

    def add(self, **row):
        self.rows.append(row)
        print(row, flush=True)
        if self.path:
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n")


def use(precision, plan=""):
    """Switches TF32 for both contenders, and forces a plan."""
    os.environ["FUSEDLSTM_PLAN"] = plan
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def pair(H, features, precision, **options):
    """The same layer twice: ours and torch's."""
    ours = FusedLSTM(features, H, **options).to("cuda", DTYPES[precision])
    cudnn = torch.nn.LSTM(features, H, **options).to("cuda", DTYPES[precision])
    cudnn.load_state_dict(ours.state_dict())
    cudnn.flatten_parameters()
    return ours, cudnn


def fits(call):
    """False where the planner refuses the forced plan."""
    try:
        call()
    except RuntimeError as error:
        if "does not fit" in str(error):
            return False
        raise
    torch.cuda.synchronize()
    return True


def forward_and_gradients(module, x):
    """The output, and the gradients of the sum of its squares."""
    out = module(x)[0]
    return [out, *torch.autograd.grad(out.double().square().sum(), list(module.parameters()))]


def small(rows):
    """A few small layers, forward and backward, by every plan, for the sanitizer."""
    for plan, (H, options) in itertools.product(PLANS, ((40, {}), (33, {"bidirectional": True}))):
        use("float32", plan)
        ours = FusedLSTM(5, H, **options).cuda()
        x = torch.randn(4, 9, 5, device="cuda")
        if fits(partial(forward_and_gradients, ours, x)):
            rows.add(plan=plan, H=H, **options)


def constants(rows):
    """E1: what the planner's model takes for granted, as gpu_constants.cu measures it."""
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "gpu_constants"
        flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-arch=sm_{major}{minor}", f"-I{ROOT / 'csrc'}"]
        nvcc = str(find_toolkit().nvcc)
        subprocess.run([nvcc, *flags, ROOT / "tools/gpu_constants.cu", "-o", program], check=True)
        with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as running:
            for line in running.stdout:
                rows.add(**json.loads(line))
    if running.returncode:
        raise SystemExit(running.returncode)


def robustness(rows):
    """E8: any difference between two runs is a race. Large products on another stream compete for the SMs."""
    random.seed(0)
    beside, a = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
    product, overlapped = torch.empty_like(a), 0
    for _ in range(200):
        precision, plan = random.choice(list(DTYPES)), random.choice(["", *PLANS])
        T, B, H = random.randint(1, 40), random.randint(1, 40), random.randint(1, 600)
        use(precision, plan)
        ours, _ = pair(H, 16, precision)
        x = torch.randn(T, B, 16, device="cuda", dtype=DTYPES[precision])

        run = partial(forward_and_gradients, ours, x)
        if not fits(run):
            continue
        first = run()
        with torch.cuda.stream(beside):
            for _ in range(8):  # some milliseconds: longer than the layer
                torch.mm(a, a, out=product)
        second = run()
        overlapped += not beside.query()
        if not all(torch.equal(p, q) for p, q in zip(first, second)):
            rows.add(T=T, B=B, H=H, precision=precision, plan=plan, outcome="runs differ")
    torch.cuda.synchronize()
    if rows.rows:
        raise SystemExit(1)
    rows.add(outcome="all equal", overlapped=overlapped)


def numerics(rows):
    """E7: relative error of output and gradients against float64 on the same rounded weights."""
    for precision, H, scale in ((p, H, s) for p in DTYPES for H in (64, 512) for s in (1, 3)):
        use(precision)
        ours, cudnn = pair(H, 64, precision)
        with torch.no_grad():
            for parameter, twin in zip(ours.parameters(), cudnn.parameters()):
                twin.copy_(parameter.mul_(scale))
        x = torch.randn(128, 16, 64, device="cuda").to(DTYPES[precision])
        exact = torch.nn.LSTM(64, H).double()
        exact.load_state_dict({k: v.double().cpu() for k, v in ours.state_dict().items()})

        right = forward_and_gradients(exact, x.double().cpu())
        errors = {}
        for name, module in (("ours", ours), ("cudnn", cudnn)):
            got = forward_and_gradients(module, x)
            relative = [float((g.double().cpu() - r).norm() / r.norm()) for g, r in zip(got, right)]
            errors[f"{name}_output"], errors[f"{name}_gradients"] = f"{relative[0]:.2e}", f"{max(relative[1:]):.2e}"
        rows.add(precision=precision, H=H, scale=scale, **errors)


def time_in_turns(calls, steps):
    """Median microseconds per step of each call, measured in turns."""
    samples = {name: [] for name in calls}
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def measure(call, repeats):
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats

    repeats = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        repeats[name] = max(1, int(10 / max(measure(call, 1), 0.01)))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            samples[name].append(measure(call, repeats[name]) * 1000 / steps)
    return {name: round(statistics.median(values), 3) for name, values in samples.items()}


def captured(call):
    """The call as a CUDA graph: what the GPU alone takes."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def infer(module, precision, plan, x):
    use(precision, plan)
    with torch.no_grad():
        return module(x)


def train(module, precision, plan, x, grad):
    use(precision, plan)
    return torch.autograd.grad(module(x)[0], [x, *module.parameters()], grad)


def speed(rows):
    """E0 and E2-E6. Ours with a forced plan, or the planner's choice under "automatic"."""
    for (H, B), precision in ((shape, p) for shape in SPEED_SHAPES for p in DTYPES):
        ours, cudnn = pair(H, H, precision)
        x = torch.randn(STEPS, B, H, device="cuda", dtype=DTYPES[precision], requires_grad=True)
        grad = torch.randn(STEPS, B, H, device="cuda", dtype=DTYPES[precision])

        contenders = {"cudnn": (cudnn, ""), "automatic": (ours, "")}
        contenders |= {plan: (ours, plan) for plan in PLANS}
        inference = {name: partial(infer, m, precision, plan, x) for name, (m, plan) in contenders.items()}
        inference = {name: call for name, call in inference.items() if fits(call)}
        graphs = {name: captured(call) for name, call in inference.items()}
        training = {name: partial(train, m, precision, plan, x, grad) for name, (m, plan) in contenders.items()}
        training = {name: call for name, call in training.items() if fits(call)}
        for mode, calls in (("forward", inference), ("forward in a graph", graphs), ("forward+backward", training)):
            rows.add(H=H, B=B, precision=precision, mode=mode, **time_in_turns(calls, STEPS))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    experiments = {f.__name__: f for f in (small, constants, robustness, numerics, speed)}
    parser.add_argument("experiment", choices=experiments)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    experiments[args.experiment](Rows(args.out))


if __name__ == "__main__":
    main()
