"""`python -m fusedlstm tune`, one problem after the other: `python -m gpu_visit.tune_rows SHAPE:DTYPE ...`. Prints what
was measured as rows, each once it is known.

The table that it is kept in is not the user's, and goes with the process: nothing else in a visit is chosen by it.
"""

import itertools
import json
import os
import sys
import tempfile
from pathlib import Path

from fusedlstm.__main__ import main as run_command
from gpu_visit.worker import sentence


def main(problems, device="cuda"):
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for problem, mode in itertools.product(problems, ("inference", "training")):
            try:
                rows = measured(*problem.split(":"), mode, device, Path(folder, "table.json"))
            except RuntimeError as error:
                rows = [{"name": f"{problem} {mode}", "failed": sentence(error)}]
            for row in rows:
                print(json.dumps(row), flush=True)


def measured(shape, dtype, mode, device, table):
    """A row for the call, and one for each pass of its kernels."""
    arguments = ["--shapes", shape, "--dtype", dtype, "--mode", mode, "--device", device, "--out", str(table)]
    run_command(["tune", *arguments])
    return [{"name": name, **entry} for name, entry in json.loads(table.read_text())["problems"].items()]


if __name__ == "__main__":
    main(sys.argv[1:])
