"""pytest-benchmark's view of the suite, for developers: `pytest benchmarks -k digit-rows`.

Each group is one case in one mode; results are compared with float64 before they are timed.
"""

import pytest
import torch

from benchmarks.accuracy import Reference
from benchmarks.contenders import BASELINE, CONTENDERS, FUSED
from benchmarks.workload import Workload
from tests.cases import ACCEPTANCE


@pytest.mark.parametrize("contender", [FUSED, BASELINE])
@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize("case", ACCEPTANCE, ids=lambda case: case.name)
def test_speed(benchmark, case, mode, contender):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workload = Workload.of(case, mode, "float32", device)
    model = CONTENDERS[contender].build(workload)
    reference = Reference(workload)
    error = reference.error_of(model)
    assert error <= reference.limit, f"error {error:.2g}, expected at most {reference.limit:.2g}"
    program = workload.program(model)

    def run():
        program(0)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.name} {mode}"
    benchmark.extra_info |= {"error": error, "flops": workload.flops()}
    benchmark(run)
