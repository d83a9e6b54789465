"""ONNX Runtime as a contender."""

from __future__ import annotations

import torch
from torch import Tensor

from . import onnx_peers
from .onnx_peers import Request, forward_with
from .workload import Model, Workload


def build(workload: Workload) -> Model:
    return run(workload, workload.onnx_model)


def run(workload: Workload, onnx_model: bytes) -> Model:
    """A session of a model with the inputs and outputs of `Workload.onnx_model`, in PyTorch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(onnx_model, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def open_request() -> Request:
        binding = session.io_binding()
        outputs = tuple(torch.empty(argument.shape) for argument in session.get_outputs())
        for argument, output in zip(session.get_outputs(), outputs, strict=True):
            binding.bind_output(argument.name, *_buffer(output))
        return Request(
            lambda position, value: binding.bind_input(names[position], *_buffer(value)),
            lambda: session.run_with_iobinding(binding),
            outputs,
        )

    return Model(forward_with(workload, open_request), {}, stored_bytes=len(onnx_model))


def _buffer(value: Tensor) -> tuple:
    """A dense tensor as a binding takes it: device, its number, dtype, shape, address."""
    return "cpu", 0, value.numpy().dtype, value.shape, value.data_ptr()


def why_not(workload: Workload) -> str | None:
    """As Contender's."""
    return onnx_peers.why_not(workload, "onnxruntime")
