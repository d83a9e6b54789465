"""OpenVINO as a contender."""

from __future__ import annotations

import torch
from torch import Tensor

from . import onnx_peers
from .onnx_peers import Request, forward_with
from .workload import Model, Workload


def build(workload: Workload) -> Model:
    """The ONNX model compiled for the CPU: one stream, in as many threads as PyTorch has now, all in float32."""
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # By itself it takes bfloat16 or float16 where the CPU has instructions for it.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(workload.onnx_model), "CPU", settings)

    def shared(value: Tensor) -> openvino.Tensor:
        return openvino.Tensor(value.numpy(), shared_memory=True)

    def open_request() -> Request:
        request = compiled.create_infer_request()
        outputs = tuple(torch.empty(tuple(argument.shape)) for argument in compiled.outputs)
        for position, output in enumerate(outputs):
            request.set_output_tensor(position, shared(output))
        bind = lambda position, value: request.set_input_tensor(position, shared(value))  # noqa: E731
        return Request(bind, request.infer, outputs)

    return Model(forward_with(workload, open_request), {})


def why_not(workload: Workload) -> str | None:
    """As Contender's."""
    return onnx_peers.why_not(workload, "openvino")
