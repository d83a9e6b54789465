"""Other processes that keep the CPUs busy, as those of a shared machine do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# Ends with the process that it is told to belong to, however that one ends.
_PROGRAM = """
import os, sys
print("busy", flush=True)
while os.getppid() == int(sys.argv[1]):
    pass
"""


@contextmanager
def busy_neighbours(count: int) -> Iterator[list[subprocess.Popen]]:
    """As many processes that compute without a pause; all run when the block begins, none after it."""
    command = [sys.executable, "-ISc", _PROGRAM, str(os.getpid())]
    with ExitStack() as stack:
        processes = []
        for _ in range(count):
            processes.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)))
            stack.callback(processes[-1].kill)
        for process in processes:
            process.stdout.readline()
        yield processes
