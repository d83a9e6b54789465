"""Two processes with gloo: DDP and FSDP2 give the gradients of the whole batch."""

import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from family import EVERY
from forked_python import run_python
from torch.nn.parallel import DistributedDataParallel

WORLD = 2


def _model(member):
    torch.manual_seed(0)
    return member.layer(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)


def _loss(model, x):
    return model(x)[0].square().mean()


def _worker(rank, path):
    torch.set_num_threads(1)
    store = f"file://{path}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    for member in EVERY:
        _compare(rank, member)
    dist.barrier()  # nobody leaves while another still talks to it
    # Not by way of the interpreter's end: DDP and FSDP keep the group alive until then, and gloo's threads, still
    # running, would now and then abort the process. A failed assertion has left through mp.spawn before.
    os._exit(0)


def _compare(rank, member):
    from torch.distributed.fsdp import fully_shard

    whole = _model(member)
    x = torch.randn(5, 2 * WORLD, 3, dtype=torch.float64)
    _loss(whole, x).backward()
    part = x[:, 2 * rank : 2 * rank + 2]

    replicated = DistributedDataParallel(_model(member))
    _loss(replicated, part).backward()
    sharded = fully_shard(_model(member), mesh=dist.init_device_mesh("cpu", (WORLD,)))
    _loss(sharded, part).backward()
    for e, a, b in zip(*(m.parameters() for m in (whole, replicated, sharded))):
        for gradient in (a.grad, b.grad.full_tensor()):
            torch.testing.assert_close(gradient, e.grad, rtol=0, atol=1e-14, msg=lambda text: f"{member}: {text}")


def run(path):
    """Both processes are forked from this one, which has imported all that they need, and has run nothing of it."""
    import torch.distributed.fsdp  # noqa: F401

    mp.start_processes(_worker, (path,), WORLD, start_method="fork")


def test_gradients_are_those_of_the_whole_batch(tmp_path):
    """Of every class in one pair of processes: to start these takes longer than all that they compare."""
    program = "import sys; folder, *sys.path[:0] = sys.argv[1:]; import test_distributed; test_distributed.run(folder)"
    done = run_python(program, tmp_path, *sys.path)
    assert done.returncode == 0, done.stderr
