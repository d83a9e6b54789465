"""Workers that take the items of experiments one by one, under a deadline each.

One that hangs, or whose context a fault has killed, is ended and replaced, while the others go on. After a hang a probe
decides whether the device still answers.
"""

import contextlib
import json
import queue
import subprocess
import threading
import time

from gpu_visit import agenda, children
from gpu_visit.children import Deadline

STARTS = 2  # in a row that may fail before a place stays empty


class Pool:
    """The places of workers, which are kept from one experiment to the next.

    target: the module of the device. spawn: starts a command as children.start does. probe: whether the device answers.
    patience: tells the seconds to wait for a process that was killed.
    """

    def __init__(self, count, target, visits, spawn, probe, patience, log):
        self.target, self.agenda, self.spawn, self.probe, self.log = target, visits, spawn, probe, log
        self.patience = patience
        self.device = None  # what the first worker that was ready says of it
        self.unable = "no worker was ready"  # why the last that could not start could not
        self.workers = [None] * count
        self.is_lost = False
        self._probing, self._probed = threading.Lock(), 0.0

    def start(self):
        """Lets all import torch while other things are done."""
        self.workers = [self._spawn() for _ in self.workers]

    def run(self, name, experiment, until, on_row):
        """Runs an experiment until all items are done or time is up. Returns why it is not whole, as sentences."""
        state = _State(name, experiment, until, on_row)
        places = range(min(experiment.workers, len(self.workers)))
        threads = [threading.Thread(target=self._serve, args=(place, state), daemon=True) for place in places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        left = len(state.todo)
        if not left:
            return []
        if self.is_lost:
            why = "the device no longer answers"
        elif state.too_many_faults():
            why = f"stopped after {state.faults} faults"
        elif not until.left():
            why = "out of time"
        else:
            why = f"no worker: {self.unable}"
        return [f"{why}: {left} of {len(experiment.items)} not run"]

    def close(self):
        for worker in filter(None, self.workers):
            children.end(worker.process, 1)
        self.workers = [None] * len(self.workers)

    def _spawn(self):
        return _Worker(self.spawn(agenda.python("worker", self.target)), Deadline(self.agenda.start), self.log)

    def _serve(self, place, state):
        failed_starts = 0
        while failed_starts < STARTS and not self.is_lost and (item := state.take()):
            worker = self._ready_worker(place, state.until)
            if worker is None:
                state.give_back(item)
                failed_starts += 1
                if not state.until.left():
                    return
                continue
            failed_starts = 0
            self._measure(place, worker, item, state)

    def _ready_worker(self, place, until):
        worker = self.workers[place] = self.workers[place] or self._spawn()
        if not worker.is_ready:
            answer = worker.answer(Deadline(worker.start.left(), within=until))
            if not answer or "ready" not in answer:
                if not until.left():
                    return None  # it may be ready for the next experiment
                self.unable = (answer or {}).get("unable", "it did not start in time")
                self._replace(place, worker)
                return None
            worker.is_ready, self.device = True, self.device or answer["ready"]
        return worker

    def _measure(self, place, worker, item, state):
        deadline = Deadline(state.experiment.seconds, within=state.until)
        worker.ask(state.name, item)
        while (answer := worker.answer(deadline)) and "row" in answer:
            state.on_row(answer["row"])
        if answer and "done" in answer:
            if answer["done"]:
                state.fault(item, answer["done"])
            if answer["lost"]:
                self._replace(place, worker)
            return
        if answer is not None:  # its output ended
            state.fault(item, f"its process died: exit status {worker.exit_status()}")
            self._replace(place, worker)
            return
        self._replace(place, worker)
        if not state.until.left():
            state.fault(item, "not done when the time was up")
        else:
            state.fault(item, f"hang: no answer within {state.experiment.seconds:g} s")
            self._probe_after(time.monotonic())

    def _probe_after(self, moment):
        """One probe serves all that hung before it."""
        with self._probing:
            if self._probed < moment and not self.is_lost:
                self._probed = time.monotonic()
                self.is_lost = not self.probe()

    def _replace(self, place, worker):
        children.end(worker.process, self.patience())
        self.workers[place] = None


class _State:
    """One run of an experiment, shared by the threads that serve it."""

    def __init__(self, name, experiment, until, on_row):
        self.name, self.experiment, self.until, self.on_row = name, experiment, until, on_row
        self.todo, self.faults, self.lock = list(experiment.items), 0, threading.Lock()

    def too_many_faults(self):
        return self.experiment.most_faults is not None and self.faults > self.experiment.most_faults

    def take(self):
        with self.lock:
            return self.todo.pop(0) if self.todo and self.until.left() and not self.too_many_faults() else None

    def give_back(self, item):
        with self.lock:
            self.todo.insert(0, item)

    def fault(self, item, why):
        with self.lock:
            self.faults += 1
        self.on_row({"name": item["name"], "failed": why})


class _Worker:
    """A process of worker.py, and its answers."""

    def __init__(self, process, start, log):
        self.process, self.start, self.is_ready, self.lines = process, start, False, queue.Queue()
        threading.Thread(target=self._read, args=(log,), daemon=True).start()

    def ask(self, experiment, item):
        with contextlib.suppress(OSError):  # it is dead: its output has ended too
            self.process.stdin.write(json.dumps([experiment, item]) + "\n")
            self.process.stdin.flush()

    def answer(self, deadline):
        """The next line; {} when there will be none; None if none came in time."""
        try:
            return self.lines.get(timeout=deadline.left())
        except queue.Empty:
            return None

    def exit_status(self):
        """Of a process whose output has ended, which may be a moment before itself; None if it does not end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        return self.process.returncode

    def _read(self, log):
        for line in self.process.stdout:
            row = children.row_of(line)
            log.write(line) if row is None else self.lines.put(row)
        self.lines.put({})
