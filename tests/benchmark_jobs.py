"""A small benchmark job and a contender that is wrong, for tests of what becomes of them."""

import torch

from benchmarks import contenders
from benchmarks.cases import Case
from benchmarks.contenders import Contender, baseline_name, fused_name
from benchmarks.rows import Job
from benchmarks.timing import Budget
from benchmarks.workload import Model, Workload
from fusedlstm.cells import CELLS, LSTM

CPU = torch.device("cpu")
SMALL = Case("small", 6, 3, 4, 5, num_layers=2, bidirectional=True)
FUSED, BASELINE = fused_name(LSTM), baseline_name(LSTM)
BRIEF = Budget(seconds=0.01, min_rounds=3, max_rounds=3)


def job(case=SMALL, mode="inference", precision="float32", peers=(), cell="lstm") -> Job:
    """Against torch.nn's layer, if no peers are named."""
    peers = peers or (baseline_name(CELLS[cell]),)
    return Job(case, mode, precision, CPU, torch.get_num_threads(), peers, cell)


def wrong_layer(change):
    """torch.nn's layer with its results changed."""

    def build(workload: Workload) -> Model:
        model = contenders.build_torch(workload)
        return Model(lambda batch: change(*model.forward(batch)), model.leaves)

    return Contender(FUSED, build)
