"""Processes that may hang: none is waited for without an end, and each is ended with all that it started.

A line of a child's output that is a JSON object is a row; every other line goes to the log, as its errors do.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time

PIPE = subprocess.PIPE
FINISHING = 5  # seconds in which a command that is out of time may say where it was


def start(command, log, environment, cwd, **options):
    """A child in a session of its own. Raises OSError where there is no such program."""
    options |= {"stdout": subprocess.PIPE, "stderr": log.file, "text": True, "errors": "replace"}
    return subprocess.Popen(list(map(str, command)), env=environment, cwd=cwd, start_new_session=True, **options)


def end(process, patience):
    """Kills a child and what it started. One that the driver does not let go is left after `patience` seconds."""
    _signal(process, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)


def row_of(line):
    """The JSON object of a line, else None."""
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            return json.loads(line)
    return None


def run(command, seconds, log, environment, cwd, on_row, patience):
    """Runs a command. Returns its exit status, or None if it was out of time.

    on_row: takes each row as it comes. patience: tells the seconds to wait for the command after it was killed.
    """
    process = start(command, log, environment, cwd, stdin=subprocess.DEVNULL)

    def read():
        for line in process.stdout:
            row = row_of(line)
            log.write(line) if row is None else on_row(row)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        status = process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        status = None
        _signal(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(FINISHING, seconds))
    finally:
        end(process, patience())
    reader.join(1)
    return status


def _signal(process, number):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class Deadline:
    """A moment, as seconds from now or at most those of another deadline."""

    def __init__(self, seconds, within=None):
        self.at = time.monotonic() + seconds
        if within is not None:
            self.at = min(self.at, within.at)

    def left(self):
        return max(0.0, self.at - time.monotonic())
