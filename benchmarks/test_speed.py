"""pytest-benchmark's view of the suite, for developers: `pytest benchmarks -k "digit-rows and gru"`.

Each group is one case of one cell in one mode; results are compared with float64 before they are timed.
"""

import pytest
import torch

from benchmarks.accuracy import Reference
from benchmarks.cases import ACCEPTANCE
from benchmarks.contenders import CONTENDERS, baseline_name, fused_name
from benchmarks.workload import Workload
from fusedlstm.cells import CELLS


@pytest.mark.parametrize("contender", [fused_name, baseline_name], ids=["fused", "torch"])
@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize("case", ACCEPTANCE, ids=lambda case: case.name)
@pytest.mark.parametrize("cell", CELLS)
def test_speed(benchmark, cell, case, mode, contender):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workload = Workload.of(case, mode, "float32", device, CELLS[cell])
    model = CONTENDERS[cell][contender(workload.cell)].build(workload)
    reference = Reference(workload)
    error = reference.error_of(model)
    assert error <= reference.limit, f"error {error:.2g}, expected at most {reference.limit:.2g}"
    program = workload.program(model)

    def run():
        program(0)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.name} {cell} {mode}"
    benchmark.extra_info |= {"error": error, "flops": workload.flops()}
    benchmark(run)
