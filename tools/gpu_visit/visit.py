"""One part of a visit, from its first step to its tables."""

import os
import tempfile
import threading
import time

from gpu_visit import agenda, children, report
from gpu_visit.agenda import ROOT
from gpu_visit.children import Deadline
from gpu_visit.pool import Pool

SECONDS_BETWEEN_LINES = 5.0  # of progress
LOST = "the device no longer answers"


class Visit:
    """Runs the steps of one part. None waits for another's success; each has its deadline.

    part: of agenda.shares. target: name of the module with the agenda and the device. seconds: of all, from now on.
    """

    def __init__(self, kit, out, part, target, visits, seconds, width):
        self.kit, self.target, self.agenda, self.width = kit, target, visits, width
        self.shares, self.until = visits.shares[part], Deadline(seconds)
        self.report = report.Report(out, part, kit.about)
        self.log = self.report.log
        # Neither the source tree nor its `fusedlstm` is in the current folder of a process: the kit's comes first.
        self.folder = tempfile.TemporaryDirectory(prefix="gpu-visit-", ignore_cleanup_errors=True)
        path = [kit.folder, ROOT / "tools", ROOT, os.environ.get("PYTHONPATH")]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(str(folder) for folder in path if folder),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "2",  # many processes share the cores
            "COLUMNS": "120",
            "FUSEDLSTM_PRIMITIVE_KERNELS": str(kit.primitives),
        }
        self.environment.pop("FUSEDLSTM_PLAN", None)
        most = max(experiment.workers for name, experiment in visits.experiments.items() if name in self.shares)
        self.lost = None  # why no further step can run
        self.pool = Pool(most, target, visits, self.spawn, self.answers, self.patience, self.log)

    def run(self):
        """Returns the exit status: 1 if anything failed."""
        try:
            self.look_for_the_device()
            began, given = time.monotonic(), 0.0
            unit = max(1.0, self.until.left() - self.agenda.ending) / sum(self.shares.values())
            for step, share in self.shares.items():
                if self.lost and step != "load":  # which tells more of a device that does not answer
                    self.report.end(self.report.begin(step), 0.0, [f"not run: {self.lost}"])
                    continue
                given += share * unit
                self.step(step, Deadline(began + given - time.monotonic()))
        finally:
            self.pool.close()
            self.folder.cleanup()
        print(report.summary(self.report.part["steps"], self.width), flush=True)
        return 0 if self.report.is_good() else 1

    def step(self, step, until):
        began, record = time.monotonic(), self.report.begin(step)
        progress = Progress(step, record, self.agenda.experiments.get(step), self.width)

        def on_row(row):
            self.report.add(record, row)
            progress.show(row)

        with progress:
            if step in self.agenda.experiments:
                failures = self.pool.run(step, self.agenda.experiments[step], until, on_row)
                self.report.part["device"] = self.pool.device
                self.lost = LOST if self.pool.is_lost else None
            else:
                failures = self.commands(step, until, on_row)
        self.report.end(record, time.monotonic() - began, failures)

    def commands(self, step, until, on_row):
        """Runs the command lines of a step, one after the other. Returns what failed, as sentences."""
        failures, commands = [], self.agenda.commands[step]
        for command in commands.lines(self.kit):
            shown = " ".join(map(str, command))
            self.log.write(f"$ {shown}")
            given = min(commands.seconds, until.left())
            try:
                status = self.call(command, given, on_row) if given else None
            except OSError as error:
                failures.append(f"cannot be run: {error.filename}: {error.strerror}")
                continue
            if status is None:
                failures.append(f"out of time after {given:.0f} s: {shown}")
                if given and not self.lost and not self.answers():
                    self.lost = LOST
            elif status:
                failures.append(f"exit status {status}: {shown}")
        return failures

    def call(self, command, seconds, on_row):
        seconds = min(seconds, self.until.left())
        return children.run(command, seconds, self.log, self.environment, self.folder.name, on_row, self.patience)

    def patience(self):
        """Seconds to wait for a process that was killed: one in the driver may not be let go."""
        return min(self.agenda.killed, self.until.left())

    def spawn(self, command):
        return children.start(command, self.log, self.environment, self.folder.name, stdin=children.PIPE)

    def answers(self):
        """Whether the device still answers, after a hang. Not asked when there is no time to do anything with it."""
        probe = agenda.python("probe", self.target)
        return not self.until.left() or self.call(probe, self.agenda.probe, lambda row: None) == 0

    def look_for_the_device(self):
        """Runs a first kernel; starts the workers, or says why there is nothing to do.

        In a new machine torch comes from a slow disk: whatever is started later finds it in memory.
        """
        said, given = [], min(self.agenda.start, self.until.left())
        if self.call(agenda.python("probe", self.target), given, said.append) == 0:
            self.pool.start()
            return
        why = said[0]["unable"] if said else f"no answer within {given:.0f} s"
        self.lost = f"expected a device that runs a kernel, got none: {why}"
        print(f"gpu_check: {self.lost}", flush=True)


class Progress:
    """Lines about a step while it runs: one every few seconds, and one for whatever fails."""

    def __init__(self, step, record, experiment, width):
        self.step, self.record, self.width = step, record, width
        self.all = f" of {len(experiment.items)} items" if experiment else ""
        self.began, self.ended = time.monotonic(), threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self):
        self.ticker.start()

    def __exit__(self, *error):
        self.ended.set()
        self.ticker.join()
        self._say()

    def show(self, row):
        if "failed" in row:
            line = f"{self.step}: {row.get('name', '')}: {row['failed']}"
            print(line[: self.width], flush=True)

    def _tick(self):
        while not self.ended.wait(SECONDS_BETWEEN_LINES):
            self._say()

    def _say(self):
        failed = sum("failed" in row for row in self.record["rows"])
        seconds = time.monotonic() - self.began
        print(f"{self.step}: {len(self.record['rows'])} rows{self.all}, {failed} failed, {seconds:.0f} s", flush=True)
