"""`python -m fusedlstm`: what is installed, what is in use on this machine, and why.

    python -m fusedlstm           versions, devices, libraries, instruction set, GPU architectures
    python -m fusedlstm verify    compares FusedLSTM with torch.nn.LSTM on this machine's devices
"""

import argparse
import json
import platform
import sys

import torch

from fusedlstm import __version__, _library


def main(arguments: list[str] | None = None) -> int:
    """Runs one command of the list above; returns the exit status."""
    parser = argparse.ArgumentParser("fusedlstm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("report", help="the default: versions, devices, libraries, and why something is not in use")
    commands.add_parser("verify", help="parity with torch.nn.LSTM, one line a check")
    options = parser.parse_args(arguments)
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
    info = json.loads(torch.ops.fusedlstm._cpu_info())
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in info.items())


if __name__ == "__main__":
    sys.exit(main())
