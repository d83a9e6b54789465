"""ONNX Runtime as a contender: the layers as it gets them from `torch.onnx.export`, one ONNX node each."""

from __future__ import annotations

import importlib.util

import torch

from .workload import Batch, Model, Workload, fused_class, hx_of


def build(workload: Workload) -> Model:
    """The fused module exported, and run in as many threads as PyTorch has now."""
    import onnxruntime

    module = workload.layer(fused_class(workload.cell.layer))
    has_lengths = workload.case.variable == "lengths"
    first = workload.batches[0]
    steps = first.input[: len(first.input) // workload.calls]
    lengths = [first.lengths] if has_lengths else []
    program = torch.onnx.export(module, (steps, hx_of(first.states), *lengths), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def forward(batch: Batch):
        values = [batch.input, *batch.states, *([batch.lengths] if has_lengths else [])]
        given = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return tuple(map(torch.from_numpy, session.run(None, given)))

    return Model(forward, {})


def why_not(workload: Workload) -> str | None:
    """As Contender's."""
    case = workload.case
    if workload.mode not in ("inference", "decode"):
        return "inference only"
    if workload.device.type != "cpu" or workload.precision != "float32":
        return "float32 on a CPU only"
    if case.by_step or case.proj_size or case.resets or case.variable == "packed":
        return "no cells, projections, resets or packed input"
    missing = [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"{missing[0]} is not installed" if missing else None
