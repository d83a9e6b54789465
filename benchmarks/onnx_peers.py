"""What the runtimes that are given `Workload.onnx_model` have in common as contenders."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable

from torch import Tensor

from .workload import INT8, Batch, Forward, Workload


def _inputs(batch: Batch) -> list[Tensor]:
    """In the order of the model's own."""
    return [batch.input, *batch.states, *([] if batch.lengths is None else [batch.lengths])]


class Request:
    """One caller's buffers in a runtime, which reads and writes them where they lie: `bind` gives it an input, `run`
    writes to `outputs`."""

    def __init__(self, bind: Callable[[int, Tensor], None], run: Callable[[], object], outputs: tuple[Tensor, ...]):
        self._bind, self._run, self._outputs = bind, run, outputs
        self._bound: dict[int, Tensor] = {}  # which keeps their memory as long as the runtime reads it

    def results(self, batch: Batch) -> tuple[Tensor, ...]:
        """Valid until the next call. An input that is the tensor of the call before is not bound again."""
        for position, value in enumerate(_inputs(batch)):
            if self._bound.get(position) is not value:
                self._bind(position, value)
                self._bound[position] = value
        self._run()
        return self._outputs


def forward_with(workload: Workload, open_request: Callable[[], Request]) -> Forward:
    """Each thread that calls has a request of its own. Results are copied only where one call's are the next one's
    inputs."""
    own = threading.local()

    def forward(batch: Batch) -> tuple[Tensor, ...]:
        if not hasattr(own, "request"):
            own.request = open_request()
        outputs = own.request.results(batch)
        return outputs if workload.calls == 1 else tuple(output.clone() for output in outputs)

    return forward


def why_not(workload: Workload, *packages: str) -> str | None:
    """As Contender's, of a runtime that needs the packages and computes in float32, beside our int8 too."""
    case = workload.case
    if workload.mode not in ("inference", "decode"):
        return "inference only"
    if workload.device.type != "cpu" or workload.precision not in ("float32", INT8):
        return "float32 on a CPU only"
    if case.by_step or case.proj_size or case.resets:
        return "no cells, projections or resets"
    missing = [name for name in (*packages, "onnxscript") if importlib.util.find_spec(name) is None]
    return f"{missing[0]} is not installed" if missing else None
