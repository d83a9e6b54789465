"""Runs the commands of a build where there is no ninja: all of them, since nothing is known of an earlier build."""

import itertools
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple


class Command(NamedTuple):
    output: str  # by its place in the folder of the build
    line: str  # for a shell
    links: bool  # or compiles


def run(commands: list[Command], folder: Path, jobs: int) -> bool:
    """Whether all succeeded, `jobs` at a time. What links comes last and in order; a failure is the end.

    folder: of the build, in which the commands run.
    """
    numbers, counting = itertools.count(1), threading.Lock()

    def run_one(command: Command) -> bool:
        with counting:  # else lines of two threads mix, or come in another order
            print(f"[{next(numbers)}/{len(commands)}] {command.output}", flush=True)
        (folder / command.output).parent.mkdir(parents=True, exist_ok=True)
        return subprocess.run(command.line, shell=True, cwd=folder).returncode == 0

    compiling = [command for command in commands if not command.links]
    linking = [command for command in commands if command.links]
    pool = ThreadPoolExecutor(jobs)
    try:
        return all(pool.map(run_one, compiling)) and all(map(run_one, linking))
    finally:
        pool.shutdown(cancel_futures=True)
