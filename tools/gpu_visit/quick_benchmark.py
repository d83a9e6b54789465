"""`python -m benchmarks` with the options that are given; prints what it measured as rows, and keeps no files."""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks import results
from benchmarks.__main__ import main as run_benchmark


def main(options):
    with tempfile.TemporaryDirectory() as folder:
        status = run_benchmark([*options, "--out", folder])
        for file in sorted(Path(folder).rglob("*.json")):
            for row in results.Results.read(file).rows:
                print(json.dumps({key: value for key, value in asdict(row).items() if value is not None}), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
