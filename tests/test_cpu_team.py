"""What the CPU kernels share within a process: threads, CPUs and scratch memory."""

import copy
import json
import os
import signal
import threading

import pytest
import torch
from family import every, tensors_of
from forked_python import run_python
from oracle import make_inputs, run

import fusedlstm
from benchmarks.cases import Case

cpu_force = torch.ops.fusedlstm._cpu_force


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    cpu_force("", "")
    torch.set_num_threads(threads)


def printed(code: str) -> str:
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_more_threads_than_cpus():
    code = """
import os, torch, fusedlstm
torch.set_num_threads(64)
print(torch.ops.fusedlstm._cpu_info())
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
print(torch.ops.fusedlstm._cpu_info())
"""
    all_cpus, one = (json.loads(line)["threads"] for line in printed(code).splitlines())
    assert 1 <= all_cpus <= min(64, len(os.sched_getaffinity(0)))
    assert one == 1


@pytest.mark.parametrize("plan", ["", "packed:units", "packed:rows", "direct:units"])
def test_calls_of_other_threads_change_no_bit(plan, two_threads):
    """Calls at the same time get fewer threads, and divide their work as one alone does."""
    module, x = fusedlstm.FusedLSTM(24, 96, 2), torch.randn(30, 16, 24)
    cpu_force("", plan)

    def call():
        output = module(x)[0]
        return [output.detach(), *torch.autograd.grad(output.sum(), list(module.parameters()))]

    alone, results = call(), []
    threads = [threading.Thread(target=lambda: results.extend(call() for _ in range(4))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 24
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, alone))


@pytest.mark.parametrize("options", [{}, {"proj_size": 5}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("plan", ["packed:units", "direct:units", "packed:rows"])
def test_a_team_that_dissolves_changes_no_bit(plan, options, two_threads):
    """One thread goes on with the work of both, from any meeting on: before, between and inside chunks of steps."""
    case = Case("team", 20, 10, 30, 40, **options)
    inputs = make_inputs(case, torch.float32).to("cpu", torch.float32)
    cpu_force("", plan)
    together = run(fusedlstm.FusedLSTM, case, inputs)
    for last_meeting in (1, 2, 3, 4, 9, 20, 21, 40):
        cpu_force("", f"{plan}:{last_meeting}")
        dissolved = run(fusedlstm.FusedLSTM, case, inputs)
        assert all(torch.equal(dissolved[name], together[name]) for name in together), last_meeting


def test_a_team_of_an_ensemble_dissolves(two_threads):
    """Members after the meeting are run by the thread that goes on."""
    modules = [fusedlstm.FusedLSTM(4, 20) for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(modules)
    x = torch.randn(3, 8, 5, 4)

    def outputs():
        with torch.no_grad():
            return torch.func.vmap(lambda p, x: torch.func.functional_call(modules[0], p, (x,))[0])(parameters, x)

    cpu_force("", "packed:units")
    together = outputs()
    for last_meeting in (1, 2, 9, 10, 11):
        cpu_force("", f"packed:units:{last_meeting}")
        assert torch.equal(outputs(), together), last_meeting


@every
def test_a_thread_for_each_direction_changes_no_bit(member, two_threads):
    """Of one sequence, as test_cpu_plans.py says that they are divided."""
    module, x = member.layer(8, 48, bidirectional=True), torch.randn(200, 1, 8)
    prepared = [prepare(copy.deepcopy(module).eval()) for prepare in (fusedlstm.freeze, fusedlstm.quantize)]

    def results():
        output = module(x)[0]
        with torch.no_grad():
            inferred = [output for own in prepared for output in tensors_of(own(x))]
        return [output.detach(), *inferred, *torch.autograd.grad(output.cos().sum(), list(module.parameters()))]

    together = results()
    torch.set_num_threads(1)
    assert all(map(torch.equal, results(), together))


def test_a_forked_process_does_without_torchs_threads(two_threads):
    """They stay with the process whose teams ran: a team in the other would wait for them for ever."""
    module, x = fusedlstm.FusedLSTM(24, 64), torch.randn(20, 4, 24)
    cpu_force("", "packed:units")

    def results():
        output = module(x)[0]
        return [output.detach(), *torch.autograd.grad(output.sum(), list(module.parameters()))]

    together = results()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            status = 0 if all(map(torch.equal, results(), together)) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("training", [False, True])
def test_threads_that_called_once_hold_one_block(training):
    """Scratch memory belongs to the process, not to each thread that ever called."""
    code = f"""
import ctypes, threading, torch
from fusedlstm import FusedLSTM
torch.set_num_threads(1)
# Large tensors do not go through the heaps of threads: what is free there stays, or not, by the order in which it came.
ctypes.CDLL("libc.so.6").mallopt(-3, 1 << 17)  # M_MMAP_THRESHOLD
module, x = FusedLSTM(512, 512), torch.randn(4, 8, 512)
def held():
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def call():
    with torch.set_grad_enabled({training}):
        output = module(x)[0].sum()
        if {training}:
            torch.autograd.grad(output, list(module.parameters()))
call()
once, lock, ready, go = held(), threading.Lock(), threading.Barrier(17), threading.Event()
def work():
    with lock:
        call()
    ready.wait()
    go.wait()
threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads: thread.start()
ready.wait()
print(held() - once)
go.set()
"""
    packed_weights = 4 * 512 * 1024 * 4  # bytes of what each call needs at least
    assert int(printed(code)) < 2 * packed_weights
