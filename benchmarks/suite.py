"""From a list of jobs to rows: check, time in pairs, relate to the floor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache

import torch

import fusedlstm
from fusedlstm.cells import CELLS

from . import machine, memory
from .accuracy import Reference
from .cases import Case
from .contenders import CONTENDERS, fused_name
from .limit import Limit
from .load import OtherWork
from .neighbours import busy_neighbours
from .rows import FAILED, LEFT_OUT, OK, PEER_FAILED, PEER_WRONG, SKIPPED, WRONG, Job, Row
from .timing import Budget, OutOfTime, Program, Summary, interleave, ratio
from .workload import Model, Workload, precision_switches


def run_jobs(
    jobs: Iterable[Job],
    budget: Budget,
    on_row: Callable[[Row], None] = lambda row: None,
    limit: Limit | None = None,
) -> list[Row]:
    """One row for each job and peer; `on_row` sees each as soon as it exists. What the limit leaves no time for is left
    out: a row that says so."""
    rows, limit, work = [], limit or Limit(), OtherWork()
    threads = torch.get_num_threads()
    # The next job is often the same case with another number of threads.
    prepared = lru_cache(maxsize=1)(_Subject)
    try:
        for job in jobs:
            for row in _run_job(job, budget, limit, prepared):
                cores = work.cores()
                if row.status not in (SKIPPED, LEFT_OUT):  # which took no time
                    row.other_work = cores
                rows.append(row)
                on_row(row)
    finally:
        torch.set_num_threads(threads)
    return rows


class _Subject:
    """A workload, the one that stands for it where results are compared, and what to compare them with."""

    def __init__(self, case: Case, mode: str, precision: str, device: torch.device, cell: str):
        self.workload = Workload.of(case, mode, precision, device, CELLS[cell])
        self.checked = self.workload.without_dropout()
        self._reference: Reference | None = None

    @property
    def reference(self) -> Reference:
        if self._reference is None:
            self._reference = Reference(self.checked)
        return self._reference


def _run_job(job: Job, budget: Budget, limit: Limit, prepared: Callable[..., _Subject]) -> Iterable[Row]:
    """Nothing is timed before its results have been compared with float64."""
    torch.set_num_threads(job.threads)
    subject = prepared(job.case, job.mode, job.precision, job.device, job.cell)
    workload = subject.workload
    rows = [_empty_row(job, workload, name) for name in job.peers]
    if limit.left() <= 0:
        yield from (_left_out(row, limit.reason) for row in rows)
        return
    with precision_switches(job.precision):
        try:
            reference = subject.reference
        except Exception as failure:  # out of memory, for example
            note = reason("float64 reference", failure)
            yield from (replace(row, status=FAILED, note=note) for row in rows)
            return
        fused, fused_error, fused_problem = _build(fused_name(workload.cell, workload.precision), subject)
        plan = "" if fused_problem else _what_ran(workload)
        for row in rows:
            row.error_limit, row.fused_error, row.plan = reference.limit, fused_error, plan
            if fused_problem:
                row.status, row.note = fused_problem
            if row.status != OK:
                yield row
                continue
            if limit.left() <= 0:
                yield _left_out(row, limit.reason)
                continue
            peer, row.peer_error, problem = _build(row.peer, subject)
            if problem:
                status, row.note = problem
                row.status = PEER_WRONG if status == WRONG else PEER_FAILED
                peer = None
            yield _timed(row, job, workload, fused, peer, limit.of_row(budget))


def _left_out(row: Row, note: str) -> Row:
    """The row of a peer that there was no time for; one that could not be measured anyway says why."""
    return row if row.status != OK else replace(row, status=LEFT_OUT, note=note)


def _build(name: str, subject: _Subject) -> tuple[Model | None, float | None, tuple[str, str] | None]:
    """(model, error, problem): a problem is a status and its reason."""
    workload, checked, reference = subject.workload, subject.checked, subject.reference
    contender = CONTENDERS[workload.cell.name][name]
    try:
        model = contender.build(checked)
        error = reference.error_of(model)
        if checked is not workload:
            model = contender.build(workload)
    except Exception as failure:  # whatever a peer raises becomes its row's note
        return None, None, (FAILED, reason(name, failure))
    if error > reference.limit:
        note = f"{name}: error {error:.2g} against float64, expected at most {reference.limit:.2g}"
        return None, error, (WRONG, note)
    return model, error, None


def reason(name: str, failure: Exception) -> str:
    """Who failed with what, on one line."""
    text = " ".join(str(failure).split())
    return f"{name}: {type(failure).__name__}: {text[:200]}"


def _timed(row: Row, job: Job, workload: Workload, fused: Model, peer: Model | None, budget: Budget) -> Row:
    """The row with its times. Where a program raises, ours timed alone tells whose failure it is."""
    timed = replace(row)  # what a failure leaves half filled in is dropped
    try:
        _time(timed, job, workload, fused, peer, budget)
    except OutOfTime as failure:
        return _left_out(row, str(failure))
    except Exception as failure:
        if peer is None:
            return replace(row, status=FAILED, note=reason(fused_name(workload.cell, workload.precision), failure))
        alone = replace(row, status=PEER_FAILED, note=reason(row.peer, failure))
        return _timed(alone, job, workload, fused, None, budget)
    return timed


def _time(row: Row, job: Job, workload: Workload, fused: Model, peer: Model | None, budget: Budget) -> None:
    ours = fused_name(workload.cell, workload.precision)
    programs = {ours: workload.program(fused)}
    if peer is not None:
        programs[row.peer] = workload.program(peer)
    if job.cuda_graph:
        programs = {name: _captured(run, workload) for name, run in programs.items()}
    with busy_neighbours(job.neighbours):
        samples = interleave(programs, job.device, budget, job.callers)
    seconds = {name: Summary.of(values / workload.calls) for name, values in samples.items()}
    ceilings = machine.ceilings(job.device, job.precision, job.threads * job.callers)
    torch.set_num_threads(job.threads)
    flops = workload.flops() / workload.calls
    # Calls of a decoding loop read the same weights again: the floor of one call, times one.
    floor = ceilings.floor_seconds(flops, workload.bytes_moved() / workload.calls)

    mine = seconds[ours]
    row.rounds = len(samples[ours])
    row.fused_us, row.fused_us_low, row.fused_us_high = _micro(mine)
    row.fused_gflops = flops / mine.median * 1e-9
    row.percent_of_mm = 100 * flops / mine.median / ceilings.mm_flops
    row.floor_us = floor * 1e6
    row.percent_of_floor = 100 * floor / mine.median
    if workload.training:
        row.fused_peak_mib = memory.peak_mib(programs[ours], job.device)
    row.fused_bytes = fused.stored_bytes
    if peer is None:
        return
    row.peer_bytes = peer.stored_bytes
    theirs = seconds[row.peer]
    row.peer_us, row.peer_us_low, row.peer_us_high = _micro(theirs)
    row.peer_gflops = flops / theirs.median * 1e-9
    pairs = ratio(samples, row.peer, ours)
    row.ratio, row.ratio_low, row.ratio_high = pairs.median, pairs.low, pairs.high
    if workload.training:
        row.peer_peak_mib = memory.peak_mib(programs[row.peer], job.device)


def _captured(program: Program, workload: Workload) -> Program:
    """The program as CUDA graphs, one for each rotating batch."""
    stream = torch.cuda.Stream()
    graphs = []
    for index in range(len(workload.batches)):
        with torch.cuda.stream(stream):
            for _ in range(2):  # lazy initialisation may not happen during capture
                program(index)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            program(index)
        graphs.append(graph)
    return lambda call: graphs[call % len(graphs)].replay()


def _what_ran(workload: Workload) -> str:
    """What has run our layer just now: the CPU's kernels by their instruction set; on a GPU cuDNN, or of each pass the
    kernel."""
    if workload.device.type == "cpu":
        return json.loads(torch.ops.fusedlstm._cpu_info())["isa"]
    passes = fusedlstm.last_plan(workload.device).splitlines()
    if workload.mode != "train":
        passes = passes[:1]  # the backward one is of an earlier job
    return ", ".join(each.split(",")[0] for each in passes)


def _micro(seconds: Summary) -> tuple[float, float, float]:
    return seconds.median * 1e6, seconds.low * 1e6, seconds.high * 1e6


def _empty_row(job: Job, workload: Workload, peer: str) -> Row:
    """Nothing measured yet; skipped where the peer cannot compute the workload."""
    case = workload.case
    features = (case.variable, "resets" * case.resets, "dropout" * bool(case.dropout), "cell" * case.by_step)
    excuse = CONTENDERS[job.cell][peer].why_not(workload)
    return Row(
        case=case.name,
        cell=job.cell,
        T=1 if job.mode == "decode" else case.T,
        B=case.B,
        I=case.input_size,
        H=case.hidden_size,
        layers=case.num_layers,
        directions=case.directions,
        proj_size=case.proj_size,
        feature=" ".join(filter(None, features)),
        mode=job.mode,
        precision=job.precision,
        device=job.device.type,
        threads=job.threads,
        cuda_graph=job.cuda_graph,
        peer=peer,
        callers=job.callers,
        neighbours=job.neighbours,
        status=SKIPPED if excuse else OK,
        note=excuse or "",
    )
