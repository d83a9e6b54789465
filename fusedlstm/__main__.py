"""`python -m fusedlstm`: what is installed, what is in use on this machine, and why.

python -m fusedlstm           versions, devices, libraries, instruction set, GPU architectures
python -m fusedlstm plan ...  how the CUDA kernels would be launched for a problem; needs no GPU
python -m fusedlstm tune ...  measures them and cuDNN on this machine's GPU, and keeps what is fastest
python -m fusedlstm verify    compares each layer with torch.nn's on this machine's devices
"""

import argparse
import json
import platform
import signal
import sys

import torch

from fusedlstm import __version__, _library, _tune
from fusedlstm._options import integer_from
from fusedlstm.cells import CELLS


def main(arguments: list[str] | None = None) -> int:
    """Runs one command of the list above; returns the exit status."""
    parser = argparse.ArgumentParser(
        "fusedlstm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("report", help="the default: versions, devices, libraries, and why something is not in use")
    plan_parser = commands.add_parser("plan", help="how the CUDA kernels would be launched; needs no GPU")
    _add_plan_arguments(plan_parser)
    tune_parser = commands.add_parser("tune", help="measure kernels and cuDNN on this GPU, and keep what is fastest")
    _tune.add_arguments(tune_parser)
    commands.add_parser("verify", help="parity with torch.nn, one line a check")
    options = parser.parse_args(arguments)
    if options.command == "plan":
        return _print_plans(options, plan_parser)
    if options.command == "tune":
        return _tune.main(options, tune_parser)
    if options.command == "verify":
        from fusedlstm import verify

        return verify.main()
    for name, value in report().items():
        print(f"{name:<18} {value}")
    return 0


def report() -> dict[str, str]:
    """The lines of the report, by name, in the order in which they are printed."""
    facts = _library.build_facts()
    lines = {
        "fusedlstm": f"{__version__}, from {_library.CPU_LIBRARY.parent.parent}",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads",
        "built with": f"{facts['compiler']}; torch headers {facts['torch_headers']}; "
        f"CUDA toolkit {facts['cuda_toolkit'] or 'none'}",
        "planner": "fusedlstm._core" if _library.core() else "not built (FUSEDLSTM_NO_PYBIND=1)",
        "CPU kernels": _cpu_line(),
    }
    reason = _library.cuda_inactive_reason()
    lines["CUDA kernels"] = f"not in use: {reason}" if reason else f"for {' '.join(facts['cuda_archs'])}"
    driver = _library.driver_version()
    lines["NVIDIA driver"] = f"serves CUDA {driver[0]}.{driver[1]}" if driver else "none found"
    if torch.version.cuda and not driver:
        lines["NVIDIA driver"] += "; a container has that of its host where it is started with --gpus all"
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(device)
        reason = _library.why_no_kernels(device)
        lines[str(device)] = (
            f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{properties.multi_processor_count} SMs: {f'PyTorch kernels, {reason}' if reason else 'fused kernels'}"
        )
    return lines


def _cpu_line() -> str:
    try:
        info = json.loads(torch.ops.fusedlstm._cpu_info())
    except RuntimeError as error:  # FUSEDLSTM_CPU_ISA names kernels that cannot run here
        return f"none: {str(error).splitlines()[0]}"
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in info.items())


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    for name, meaning in {"T": "time steps", "B": "batch size", "H": "hidden size"}.items():
        parser.add_argument(name, type=integer_from(1), help=meaning)
    parser.add_argument("--cell", default="lstm", choices=CELLS, help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"))
    parser.add_argument("--proj-size", type=integer_from(0), default=0)
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--layer-norm", action="store_true", help="of a layer with it, in one direction")
    parser.add_argument("--no-tf32", action="store_true", help="compute float32 strictly")
    parser.add_argument("--input-size", type=integer_from(0), default=0, help="default: H; cuDNN depends on it")
    parser.add_argument("--layers", type=integer_from(1), default=1, help="of a stack (default: %(default)s)")
    parser.add_argument("--device", default="H100", help="part of a GPU's name (default: %(default)s)")
    parser.add_argument(
        "--force",
        default="",
        metavar="PLAN",
        help="stream, local, cluster, grid, mesh or bulk, and perhaps /LAYERSxPARTS",
    )


def _print_plans(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Prints the plans of the forward and the backward pass, and why faster ones do not fit."""
    core = _library.core()
    if core is None:
        parser.error("expected a build with fusedlstm._core, got one without (FUSEDLSTM_NO_PYBIND=1)")
    known = core.known_devices()
    device = next((d for d in known if options.device and options.device.lower() in d.name.lower()), None)
    if options.proj_size and not CELLS[options.cell].has_projection:
        parser.error(f"--proj-size: expected none for {options.cell}, got {options.proj_size}")
    if options.proj_size >= options.H:
        parser.error(f"--proj-size: expected less than the hidden size {options.H}, got {options.proj_size}")
    if device is None:
        parser.error(f"--device: expected one of {', '.join(d.name for d in known)}, got {options.device!r}")
    print(f"{device.name}: {options.cell} T={options.T} B={options.B} H={options.H} {options.dtype}")
    problem = {
        "device": device, "cell": options.cell, "T": options.T, "B": options.B, "H": options.H, "dtype": options.dtype,
        "proj_size": options.proj_size, "directions": 2 if options.bidirectional else 1,
        "allow_tf32": not options.no_tf32,
    }  # fmt: skip
    if options.layer_norm:
        return _print_varied_plans(core, problem, options, parser)
    of_call = {"I": options.input_size or options.H, "layers": options.layers}
    for direction in ("forward", "backward"):
        is_backward = direction == "backward"
        try:
            plan = core.plan(**problem, backward=is_backward, request=options.force)
        except ValueError as error:
            parser.error(str(error).replace("FUSEDLSTM_PLAN", "--force"))
        print(f"{direction:<8} {plan}")
        for reason in plan.rejected:
            print(f"{'':<8} not taken: {reason}")
        contenders = json.loads(core.contenders(**problem, **of_call, backward=is_backward))
        for other in contenders["plans"]:
            print(f"{'':<8} {other['microseconds']:>8.0f} to {other['doubted']:.0f} us: {other['request']}")
        if options.layers > 1:
            kernel = options.force.split("/")[0]
            stack = core.plan(**problem, backward=is_backward, layers=options.layers, request=options.force)
            loop = core.plan(**problem, backward=is_backward, layers=options.layers, request=f"{kernel}/1x1")
            print(f"{'':<8} {options.layers} layers: {stack}")
            print(
                f"{'':<8} {loop.microseconds:>8.0f} us one after another: {stack.microseconds / loop.microseconds:.2f}"
            )
        print(f"{'':<8} {contenders['cudnn']:>8.0f} us: cuDNN")
    return 0


def _print_varied_plans(core, problem: dict, options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """As `_print_plans`, of a direction of a layer with layer norm, which has plans of its own."""
    sizes = {name: problem[name] for name in ("device", "cell", "T", "B", "H", "dtype")}
    if options.cell not in ("lstm", "gru"):
        parser.error(f"--layer-norm: expected lstm or gru, got {options.cell}")
    if options.proj_size or options.bidirectional or options.layers > 1:
        parser.error("--layer-norm: expected one direction of one layer without projection")
    for direction in ("forward", "backward"):
        try:
            plan = core.varied_plan(**sizes, backward=direction == "backward", request=options.force)
        except ValueError as error:
            parser.error(str(error).replace("FUSEDLSTM_PLAN", "--force"))
        print(f"{direction:<8} {plan}")
    return 0


def command_line() -> int:
    """`main` as a program: ends without a word where its reader does, such as `head`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return main()


if __name__ == "__main__":
    sys.exit(command_line())
